package exporter

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

var quiet = slog.New(slog.DiscardHandler)

// serve gives a client for an exporter on a unix socket, and its end.
func serve(t *testing.T, o Options) (*http.Client, <-chan error) {
	t.Helper()
	return serveAt(t, filepath.Join(t.TempDir(), "s"), o)
}

func serveAt(t *testing.T, path string, o Options) (*http.Client, <-chan error) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, []net.Listener{nil, l}, o) }()
	t.Cleanup(cancel)
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	return &http.Client{Transport: tr}, ended
}

func get(t *testing.T, c *http.Client, path string) (int, string, string) {
	t.Helper()
	r, err := c.Get("http://aaunit" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b), r.Header.Get("Content-Type")
}

func TestServe(t *testing.T) {
	var asked atomic.Int32
	var failing atomic.Bool
	c, _ := serve(t, Options{Log: quiet, Fresh: 50 * time.Millisecond, Ask: func(context.Context) (attach.Metrics, error) {
		asked.Add(1)
		if failing.Load() {
			return attach.Metrics{}, errors.New("it is not running")
		}
		return attach.Metrics{Version: "9", At: time.Now()}, nil
	}})
	code, text, kind := get(t, c, "/metrics")
	if code != 200 || !strings.Contains(text, `aaunit_build_info{version="9"} 1`) || !strings.HasPrefix(kind, "text/plain; version=0.0.4") {
		t.Errorf("%d %s\n%s", code, kind, text)
	}
	var wg sync.WaitGroup
	for range 3 * maxConnections {
		wg.Go(func() { get(t, c, "/metrics") })
	}
	wg.Wait()
	if n := asked.Load(); n > 3*maxConnections/2 {
		t.Errorf("the daemon was asked %d times", n)
	}
	failing.Store(true)
	time.Sleep(100 * time.Millisecond)
	if code, text, _ := get(t, c, "/metrics"); code != 200 || !strings.Contains(text, "aaunit_up 0") || strings.Contains(text, "version") {
		t.Errorf("without a daemon: %d\n%s", code, text)
	}
	for _, path := range []string{"/x", "/metrics/../etc/passwd", "/debug/pprof/"} {
		if code, _, _ := get(t, c, path); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, _, _ := get(t, c, "/"); code != 200 {
		t.Errorf("/: %d", code)
	}
	r, err := c.Post("http://aaunit/metrics", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Body.Close(); r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", r.StatusCode)
	}
}

// Who asks and goes away at once neither cuts the question off nor has others read that
// the daemon does not answer.
func TestWhoGoesAwayIsNoAnswer(t *testing.T) {
	asked := make(chan struct{}, 10)
	c, _ := serve(t, Options{Log: quiet, Fresh: time.Minute, Ask: func(ctx context.Context) (attach.Metrics, error) {
		asked <- struct{}{}
		select {
		case <-ctx.Done():
			return attach.Metrics{}, ctx.Err()
		case <-time.After(500 * time.Millisecond): // in which it is seen that the client has gone
			return attach.Metrics{Version: "9", At: time.Now()}, nil
		}
	}})
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-asked
		leave()
	}()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://aaunit/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.Do(r); err == nil {
		r.Body.Close()
		t.Fatal("it was answered before it went away")
	}
	if code, text, _ := get(t, c, "/metrics"); code != 200 || !strings.Contains(text, `aaunit_build_info{version="9"} 1`) {
		t.Errorf("%d\n%s", code, text)
	}
}

// Connections that somebody keeps open, and asks something small on now and then, leave
// room for Prometheus.
func TestWhoKeepsConnectionsKeepsNoPlaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c, _ := serveAt(t, path, Options{Log: quiet, Ask: func(context.Context) (attach.Metrics, error) { return attach.Metrics{Version: "9"}, nil }})
	for range maxConnections {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			for {
				if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: aaunit\r\n\r\n"); err != nil {
					return
				}
				time.Sleep(500 * time.Millisecond)
			}
		}()
	}
	time.Sleep(time.Second)
	c.Timeout = readTimeout
	if code, text, _ := get(t, c, "/metrics"); code != 200 || !strings.Contains(text, "aaunit_up 1") {
		t.Errorf("%d\n%s", code, text)
	}
}

// It ends when nobody asks, and goes on while somebody does.
func TestServeEndsWhenIdle(t *testing.T) {
	c, ended := serve(t, Options{Log: quiet, Idle: 2 * time.Second, Ask: func(context.Context) (attach.Metrics, error) { return attach.Metrics{}, nil }})
	for range 6 {
		get(t, c, "/metrics")
		time.Sleep(500 * time.Millisecond)
	}
	select {
	case err := <-ended:
		t.Fatalf("it has ended: %v", err)
	default:
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it does not end")
	}
}

func TestServeNeedsASocket(t *testing.T) {
	if err := Serve(t.Context(), []net.Listener{nil}, Options{Log: quiet}); err == nil {
		t.Error("it serves nobody")
	}
}
