//go:build vm && long

package guest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/sockopt"
)

// straced are the programs of which it is compared what strace and the recorder see.
// $DIR is a directory of the test's, $AGENT the test agent.
var straced = []struct{ name, script string }{
	{"go", `
$AGENT -web 127.0.0.1:18443 & server=$!
for try in $(seq 100); do $AGENT -get https://127.0.0.1:18443/ && break; sleep 0.3; done
$AGENT -get https://127.0.0.1:18443/ -get-times 20
kill $server; wait $server || :`},
	{"curl", `
$AGENT -web 127.0.0.1:18444 & server=$!
for try in $(seq 100); do curl -sko /dev/null https://127.0.0.1:18444/ && break; sleep 0.3; done
test "$(curl -sk --http2 --keepalive-time 7 -o /dev/null -w '%{http_version}' https://127.0.0.1:18444/)" = 2
kill $server; wait $server || :`},
	{"sshd", `
mkdir -p /run/sshd
ssh-keygen -q -t ed25519 -N '' -f $DIR/key
/usr/sbin/sshd -D -e -f /dev/null -o Port=12222 -o ListenAddress=127.0.0.1 -o HostKey=$DIR/key -o StrictModes=no \
	-o AuthorizedKeysFile=$DIR/key.pub -o UsePAM=no -o PidFile=none & server=$!
for try in $(seq 100); do
	ssh -F /dev/null -i $DIR/key -p 12222 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 true && break; sleep 0.3
done
ssh -F /dev/null -i $DIR/key -p 12222 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 true
kill $server; wait $server || :`},
	{"nginx", `
cat >$DIR/nginx.conf <<CONF
daemon off; worker_processes 2; pid $DIR/nginx.pid; error_log stderr;
events {}
http { access_log off; server { listen 127.0.0.1:18080 so_keepalive=on; listen [::1]:18081 ipv6only=on reuseport deferred; return 200 "ok\n"; } }
CONF
nginx -c $DIR/nginx.conf & server=$!
for try in $(seq 100); do curl -sfo /dev/null http://127.0.0.1:18080/ && break; sleep 0.3; done
curl -sfo /dev/null http://127.0.0.1:18080/ http://127.0.0.1:18080/
curl -sfo /dev/null 'http://[::1]:18081/'
kill $server; wait $server || :`},
	{"asyncio", `
cat >$DIR/a.py <<PY
import asyncio, socket
async def echo(r, w):
    w.write(await r.readline()); await w.drain(); w.close()
async def main():
    for host in "127.0.0.1", "::1":
        s = await asyncio.start_server(echo, host, 0, reuse_port=True)
        for _ in range(20):
            r, w = await asyncio.open_connection(*s.sockets[0].getsockname()[:2])
            w.write(b"x\n"); await r.readline(); w.close()
        s.close()
asyncio.run(main())
PY
python3 $DIR/a.py`},
	{"udp", `
cat >$DIR/u.py <<PY
import asyncio, socket, struct
async def main():
    t, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0), reuse_port=True, allow_broadcast=True)
    t.close()
asyncio.run(main())
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
u.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 16)
u.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
u.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1"))
u.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
try:
    six.setsockopt(socket.IPPROTO_IPV6, 250, 1) # which there is not
except OSError:
    pass
PY
python3 $DIR/u.py`},
	{"netlink", "ip -o address\nip -o route show table all\nss -tlnp"},
	{"parallel", `
$AGENT -web 127.0.0.1:18445 & server=$!
for try in $(seq 100); do $AGENT -get https://127.0.0.1:18445/ && break; sleep 0.3; done
clients=
for n in 1 2 3 4; do $AGENT -get https://127.0.0.1:18445/ -get-times 10 & clients="$clients $!"; done
wait $clients
kill $server; wait $server || :`},
}

// TestStraceSeesTheSame: of the same run of a program, strace and the recorder see the
// same calls for the same options, and as many. Those of systemd, which is no
// program of the unit's, are apart.
func TestStraceSeesTheSame(t *testing.T) {
	s := newScene(t)
	const base = "/run/vm-strace"
	t.Cleanup(func() { os.RemoveAll(base) })
	s.File("/usr/local/bin/vm-agent", read(t, payload(t, "agent")), 0o755)
	for _, w := range straced {
		dir := filepath.Join(base, w.name)
		s.File(dir+"/run.sh", "set -eu\nDIR="+dir+" AGENT=/usr/local/bin/vm-agent\n"+w.script+"\n", 0o755)
		s.Unit("vm-strace-"+w.name+".service", "[Service]\nType=oneshot\nTimeoutStartSec=300\nExecStartPre=+/usr/lib/aaunit/aaunit-sockopts %n\n"+
			"ExecStart=/usr/bin/strace -f -X raw -e trace=setsockopt,getsockopt -e signal=none -o "+dir+"/trace sh "+dir+"/run.sh\n")
	}
	s.Reload()
	system, store := sockopt.New(sockopt.Options{}), sockopt.DefaultStore
	for _, w := range straced {
		t.Run(w.name, func(t *testing.T) {
			unit := "vm-strace-" + w.name + ".service"
			t.Cleanup(func() {
				if _, err := system.Remove(unit); err != nil {
					t.Error(err)
				}
				if _, err := store.Delete(unit); err != nil {
					t.Error(err)
				}
			})
			if _, err := store.Save(unit, sockopt.Rules{Mode: sockopt.Record}); err != nil {
				t.Fatal(err)
			}
			run(t, "systemctl", "start", unit)
			traced, err := parseStrace(read(t, filepath.Join(base, w.name, "trace")))
			if err != nil {
				t.Fatal(err)
			}
			r, err := system.Read(unit)
			if err != nil {
				t.Fatal(err)
			}
			recorded := map[string]uint64{}
			own := 0
			for _, seen := range r.Seen {
				if seen.BySystemd {
					own++
					continue
				}
				recorded[fmt.Sprintf("%s %d:%d", seen.Call, seen.Option.Level, seen.Option.Name)] += seen.Allowed + seen.Refused
			}
			if len(traced) == 0 || r.Lost != (sockopt.Lost{}) {
				t.Errorf("strace saw %d kinds of call; %+v were lost", len(traced), r.Lost)
			}
			for _, k := range slices.Sorted(maps.Keys(union(traced, recorded))) {
				if traced[k] != recorded[k] {
					t.Errorf("%s: strace saw %d calls, %d were recorded", k, traced[k], recorded[k])
				}
			}
			t.Logf("%d kinds of call, %d calls; %d kinds by systemd", len(traced), sumOf(traced), own)
		})
	}
}

func union(a, b map[string]uint64) map[string]uint64 {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func sumOf(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

var (
	straceCall   = regexp.MustCompile(`^(\d+) +(setsockopt|getsockopt)\(\d+, (-?[0-9a-fx]+), (-?[0-9a-fx]+)(.*)$`)
	straceResume = regexp.MustCompile(`^(\d+) +<\.\.\. (setsockopt|getsockopt) resumed>(.*)$`)
	// What was no socket comes to no hook: the call ends before.
	noSocket = regexp.MustCompile(`= -1 (EBADF|ENOTSOCK|0x9|0x58|9|88)\b`)
)

// parseStrace counts the calls of strace -f -X raw, by call, level and option.
func parseStrace(text string) (map[string]uint64, error) {
	out, open := map[string]uint64{}, map[string]string{}
	done := func(key, rest string) {
		if !noSocket.MatchString(rest) {
			out[key]++
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch m, r := straceCall.FindStringSubmatch(line), straceResume.FindStringSubmatch(line); {
		case m != nil:
			level, err := strconv.ParseInt(m[3], 0, 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			option, err := strconv.ParseInt(m[4], 0, 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			key := fmt.Sprintf("%s %d:%d", m[2], int32(level), int32(option))
			if strings.HasSuffix(m[5], "<unfinished ...>") {
				open[m[1]] = key
			} else {
				done(key, m[5])
			}
		case r != nil && open[r[1]] != "":
			done(open[r[1]], r[3])
			delete(open, r[1])
		case strings.Contains(line, "sockopt"):
			return nil, fmt.Errorf("cannot understand what strace wrote: %q", line)
		}
	}
	return out, nil
}
