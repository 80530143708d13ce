package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Result is what a command in the guest left.
type Result struct {
	Stdout string
	Stderr string
	Exit   int // 128 and the signal's number if a signal ended it
}

// Run runs a command line in the guest's shell, as root, in /root, and waits for
// it. It returns an error only if the command could not be run to its end.
// Build command lines from untrusted parts with [Quote].
func (m *Machine) Run(ctx context.Context, command string) (Result, error) {
	var stdout, stderr bytes.Buffer
	exit, err := m.Stream(ctx, command, nil, &stdout, &stderr)
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Exit: exit}, err
}

// Output is [Machine.Run] for commands that must succeed: it returns what the
// command printed on its standard output, without the last newline, and an
// error if it exited with another status than 0.
func (m *Machine) Output(ctx context.Context, command string) (string, error) {
	r, err := m.Run(ctx, command)
	if err != nil {
		return "", err
	}
	if r.Exit != 0 {
		return "", fmt.Errorf("cannot run %q in the guest: exit status %d: %s", abridged(command), r.Exit,
			strings.TrimSpace(tail(r.Stderr+r.Stdout, 2000)))
	}
	return strings.TrimSuffix(r.Stdout, "\n"), nil
}

// Stream is [Machine.Run] with the command's input and output connected to the
// given ones, any of which may be nil. When the context ends first, the command
// is killed as far as its shell is concerned: what it has started may go on.
func (m *Machine) Stream(ctx context.Context, command string, stdin io.Reader, stdout, stderr io.Writer) (exit int, err error) {
	client, err := m.client()
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot run %q in the guest: %w", abridged(command), orContext(ctx, err))
		}
	}()
	session, err := client.NewSession()
	if err != nil {
		return 0, err
	}
	defer session.Close()
	stop := context.AfterFunc(ctx, func() {
		session.Signal(ssh.SIGKILL)
		session.Close()
	})
	defer stop()

	session.Stdin, session.Stdout, session.Stderr = stdin, stdout, stderr
	err = session.Run(command)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if exitErr := (*ssh.ExitError)(nil); errors.As(err, &exitErr) {
		if exitErr.Signal() != "" {
			return 128 + signalNumber(exitErr.Signal()), nil
		}
		return exitErr.ExitStatus(), nil
	}
	return 0, err
}

// signalNumber knows the signals that RFC 4254 names.
func signalNumber(name string) int {
	numbers := map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9,
		"USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15}
	return numbers[name]
}

// Put copies a file of the host into the guest. The file appears there complete,
// or not at all; its directory is made.
func (m *Machine) Put(ctx context.Context, localPath, guestPath string, mode os.FileMode) error {
	f, err := os.Open(localPath)
	if err != nil {
		return fmt.Errorf("cannot copy into the guest: %w", err)
	}
	defer f.Close()
	return m.put(ctx, f, guestPath, mode)
}

// PutBytes is [Machine.Put] with the contents given.
func (m *Machine) PutBytes(ctx context.Context, contents []byte, guestPath string, mode os.FileMode) error {
	return m.put(ctx, bytes.NewReader(contents), guestPath, mode)
}

func (m *Machine) put(ctx context.Context, r io.Reader, guestPath string, mode os.FileMode) error {
	const script = `p=%s; d=$(dirname -- "$p") && mkdir -p -- "$d" && cat >"$p.new" && chmod %04o "$p.new" && mv -- "$p.new" "$p"`
	command := fmt.Sprintf(script, Quote(guestPath), mode.Perm())
	var stderr bytes.Buffer
	exit, err := m.Stream(ctx, command, r, nil, &stderr)
	if err == nil && exit != 0 {
		err = errors.New(strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		return fmt.Errorf("cannot copy to %s in the guest: %w", guestPath, err)
	}
	return nil
}

// Get copies a file of the guest to the host.
func (m *Machine) Get(ctx context.Context, guestPath, localPath string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot copy %s from the guest: %w", guestPath, err)
		}
	}()
	f, err := os.Create(localPath)
	if err != nil {
		return err
	}
	defer f.Close()
	var stderr bytes.Buffer
	exit, err := m.Stream(ctx, "cat -- "+Quote(guestPath), nil, f, &stderr)
	if err == nil && exit != 0 {
		err = errors.New(strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		os.Remove(localPath)
		return err
	}
	return f.Close()
}

// Quote makes words of a shell command line that the shell takes as they are.
func Quote(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

func abridged(command string) string {
	first, _, more := strings.Cut(command, "\n")
	if len(first) > 120 {
		first, more = first[:120], true
	}
	if more {
		first += "…"
	}
	return first
}

// connect waits until the guest's sshd lets us in, and keeps the connection: a
// handshake is dear under emulation.
func (m *Machine) connect(ctx context.Context) error {
	m.disconnect()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(m.port))
	config := &ssh.ClientConfig{
		User:            "root",
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(m.keys.user)},
		HostKeyCallback: ssh.FixedHostKey(m.keys.host),
	}
	patience := 2 * time.Second
	for {
		client, err := dialSSH(ctx, address, config, patience)
		if err == nil {
			m.mu.Lock()
			m.ssh = client
			m.mu.Unlock()
			go keepAlive(client)
			return nil
		}
		select {
		case <-m.exited:
			return fmt.Errorf("cannot reach the guest: QEMU has ended: %w\n%s", m.exitErr, m.Console(3000))
		default:
		}
		// QEMU accepts the connection before the guest does, so silence can
		// mean that the guest was not ready then, or that it is slow.
		if patience *= 2; patience > time.Minute {
			patience = time.Minute
		}
		if sleepErr := sleep(ctx, 200*time.Millisecond); sleepErr != nil {
			return fmt.Errorf("cannot reach the guest: %w (last: %w)\n%s", sleepErr, err, m.Console(3000))
		}
	}
}

// dialSSH gives up if sshd says nothing for as long as patience.
func dialSSH(ctx context.Context, address string, config *ssh.ClientConfig, patience time.Duration) (*ssh.Client, error) {
	dialer := net.Dialer{Timeout: patience}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	conn.SetDeadline(time.Now().Add(patience))
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	c, channels, requests, err := ssh.NewClientConn(&unread{Conn: conn, bytes: first}, address, config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if !stop() {
		conn.Close()
		return nil, context.Cause(ctx)
	}
	conn.SetDeadline(time.Time{})
	return ssh.NewClient(c, channels, requests), nil
}

// unread is a connection whose first bytes were read already.
type unread struct {
	net.Conn
	bytes []byte
}

func (u *unread) Read(p []byte) (int, error) {
	if len(u.bytes) > 0 {
		n := copy(p, u.bytes)
		u.bytes = u.bytes[n:]
		return n, nil
	}
	return u.Conn.Read(p)
}

// keepAlive closes the connection when the guest does not answer any more, so
// that whoever waits for a command there gets an error.
func keepAlive(client *ssh.Client) {
	gone := make(chan struct{})
	go func() {
		client.Wait()
		close(gone)
	}()
	for {
		answered := make(chan struct{})
		go func() {
			client.SendRequest("keepalive@openssh.com", true, nil)
			close(answered)
		}()
		select {
		case <-gone:
			return
		case <-answered:
		case <-time.After(3 * time.Minute):
			client.Close()
			return
		}
		select {
		case <-gone:
			return
		case <-time.After(20 * time.Second):
		}
	}
}

// client is the connection, or an error if the guest is off.
func (m *Machine) client() (*ssh.Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ssh == nil {
		return nil, errors.New("cannot reach the guest: it is off")
	}
	return m.ssh, nil
}

// Dial connects to an address as the guest sees it.
func (m *Machine) Dial(network, address string) (net.Conn, error) {
	c, err := m.client()
	if err != nil {
		return nil, err
	}
	return c.Dial(network, address)
}

func (m *Machine) disconnect() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ssh != nil {
		m.ssh.Close()
		m.ssh = nil
	}
}

// SSHCommand is the command line of an OpenSSH client that logs in to the guest.
func (m *Machine) SSHCommand() []string {
	return []string{"ssh", "-i", m.keys.userPath, "-p", strconv.Itoa(m.port),
		"-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "root@127.0.0.1"}
}
