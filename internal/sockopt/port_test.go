package sockopt

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestOptionName(t *testing.T) {
	for _, c := range []struct {
		call attach.SocketCall
		text string
		want string
	}{
		{attach.SetSockOpt, "6:1", "SOL_TCP:TCP_NODELAY"},
		{attach.SetSockOpt, "IPPROTO_TCP:TCP_NODELAY", "SOL_TCP:TCP_NODELAY"},
		{attach.SetSockOpt, "TCP_NODELAY", "SOL_TCP:TCP_NODELAY"},
		{attach.SetSockOpt, "0:64", "SOL_IP:IPT_SO_SET_REPLACE"},
		{attach.GetSockOpt, "0:64", "SOL_IP:IPT_SO_GET_INFO"},
		{attach.SetSockOpt, "6:0x7fff", "SOL_TCP:32767"},
	} {
		got, err := OptionName(c.call, c.text)
		if err != nil || got != c.want {
			t.Errorf("%s %q: %q, %v; want %q", c.call, c.text, got, err, c.want)
			continue
		}
		if again, err := OptionName(c.call, got); again != got || err != nil {
			t.Errorf("%q is not canonical: %q, %v", got, again, err)
		}
	}
	for _, text := range []string{"", "TCP_FLY", "SOL_TCP:", "6:1:2"} {
		if got, err := OptionName(attach.SetSockOpt, text); err == nil {
			t.Errorf("%q was taken as %q", text, got)
		}
	}
}

// What is declared is what the start helper reads.
func TestHostKeepsWhatIsDeclared(t *testing.T) {
	h := Host{Store: Store(filepath.Join(t.TempDir(), "sockopts"))}
	s := attach.SocketOptions{Mode: attach.SocketsEnforce, Allow: []attach.AllowedOption{{Option: "SOL_TCP:TCP_NODELAY"}, {Option: "SOL_TCP:32767"}},
		AllowGet: []attach.AllowedOption{{Option: "SOL_SOCKET:SO_TYPE"}}}
	for _, want := range []bool{true, false} {
		if changed, err := h.Save("a.service", s); changed != want || err != nil {
			t.Errorf("changed %v, %v", changed, err)
		}
	}
	r, from, err := h.Store.Find("a.service")
	want := Rules{Mode: Enforce, Allow: []Option{{6, 1}, {6, 32767}}, HoldGet: true, AllowGet: []Option{{1, 3}}}
	if err != nil || from != "a.service" || !reflect.DeepEqual(r, want) {
		t.Errorf("%+v from %s, %v", r, from, err)
	}
	s.Allow[0].Option = "SOL_TCP:TCP_FLY"
	if _, err := h.Save("a.service", s); err == nil {
		t.Error("a name that nobody knows was kept")
	}
	s.Allow, s.Mode = nil, "sometimes"
	if _, err := h.Save("a.service", s); err == nil {
		t.Error("a mode that nobody knows was kept")
	}
}

// A .socket unit without a control group had its sockets made elsewhere; a service
// without one is between two starts.
func TestASocketUnitWithoutAControlGroup(t *testing.T) {
	h := Host{System: New(Options{BPF: t.TempDir(), Cgroups: t.TempDir()})}
	rules := attach.SocketOptions{Mode: attach.SocketsEnforce}
	seen := h.Attached("/system.slice/a.socket", "a.socket", rules)
	if seen.Attached != attach.CouldNotTell || seen.Next != "systemctl restart a.socket" {
		t.Errorf("%+v", seen)
	}
	seen = h.Attached("/system.slice/a.service", "a.service", rules)
	if seen.Attached != attach.CouldNotTell || seen.Next != "it exists only while the unit runs" {
		t.Errorf("%+v", seen)
	}
}

// Tables with what aaunit never writes are not as declared, which is put right; a kernel
// that could not be asked leaves it open.
func TestTablesWithoutRules(t *testing.T) {
	_, spoiled := bpfSettings{Mode: 7}.rules()
	programs := Attachment{Set: Part{Program: 1, Tag: "set"}, Get: Part{Program: 2, Tag: "get"}, Why: spoiled.Error()}
	for _, c := range []struct {
		a               Attachment
		err             error
		attached, rules attach.Tri
		says            string
	}{
		{programs, judge("cannot find out", spoiled), attach.Yes, attach.No, "the mode 7"},
		{Attachment{}, judge("cannot find out", unix.ENOMEM), attach.CouldNotTell, attach.CouldNotTell, ErrNoMemory.Error()},
		{Attachment{Ours: true, Rules: rules}, nil, attach.Yes, attach.Yes, ""},
		{Attachment{Ours: true}, nil, attach.Yes, attach.No, "in mode off"},
		{Attachment{Why: "no program"}, nil, attach.No, attach.CouldNotTell, "no program"},
	} {
		seen := c.a.seen("a.service", rules, c.err)
		if seen.Attached != c.attached || seen.Rules != c.rules || !strings.Contains(seen.Why, c.says) {
			t.Errorf("%+v, %v: %+v", c.a, c.err, seen)
		}
	}
}
