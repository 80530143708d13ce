// Package exporter answers Prometheus over HTTP. It is a process of its own, which
// systemd starts when somebody connects and which ends when nobody does any more: what
// reads requests of strangers has no business in the daemon that may load policy, and
// at rest there is nothing in memory.
package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/metrics"
)

// Options are the parts of an exporter.
type Options struct {
	// Ask asks the daemon. It is asked once at a time, and not for every request.
	Ask func(ctx context.Context) (attach.Metrics, error)
	Log *slog.Logger
	// Idle is how long nobody must have asked before Serve returns; 0 is for ever.
	Idle time.Duration
	// Fresh is how long an answer of the daemon's is good for; 0 is no time.
	Fresh time.Duration
}

// Bounds on what strangers can have under way.
const (
	maxConnections = 32
	askTimeout     = 20 * time.Second
	readTimeout    = 5 * time.Second
	writeTimeout   = 30 * time.Second
)

// Serve answers on the listeners until ctx ends, or nobody has asked for a while.
func Serve(ctx context.Context, listeners []net.Listener, o Options) error {
	// What is no socket that listens comes as nil.
	listeners = slices.DeleteFunc(slices.Clone(listeners), func(l net.Listener) bool { return l == nil })
	if len(listeners) == 0 {
		return errors.New("cannot serve metrics: systemd handed over no socket; start aaunit-metrics.socket instead")
	}
	ctx, done := context.WithCancel(ctx)
	defer done()
	e := &exporter{o: o, asking: make(chan struct{}, 1)}
	if o.Idle > 0 {
		e.idle = time.AfterFunc(o.Idle, done)
		defer e.idle.Stop()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", e.metrics)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "aaunit: the metrics are at /metrics")
	})
	s := &http.Server{Handler: mux, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug)}
	// A scrape is one request. Who could keep a connection for more would keep its place.
	s.SetKeepAlivesEnabled(false)
	places := make(chan struct{}, maxConnections)
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- s.Serve(&bounded{Listener: l, places: places, ended: ctx.Done()}) }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	done()
	// Who is being answered is answered.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if serr := s.Shutdown(last); serr != nil && err == nil {
		err = serr
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

type exporter struct {
	o      Options
	idle   *time.Timer
	asking chan struct{} // is full while somebody asks the daemon, and guards the rest

	text []byte
	at   time.Time
}

func (e *exporter) metrics(w http.ResponseWriter, r *http.Request) {
	if e.idle != nil {
		e.idle.Reset(e.o.Idle)
	}
	text, err := e.get(r.Context())
	if err != nil {
		http.Error(w, "cannot answer: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", metrics.ContentType)
	_, _ = w.Write(text) // who went away does not read it
}

// get asks the daemon, unless it was asked a moment ago. Who goes away waits no more; the
// answer is for others, too, so a question that was put is not cut off.
func (e *exporter) get(ctx context.Context) ([]byte, error) {
	select {
	case e.asking <- struct{}{}:
		defer func() { <-e.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if e.text != nil && time.Since(e.at) < e.o.Fresh {
		return e.text, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	var b bytes.Buffer
	m, err := e.o.Ask(ctx)
	if err != nil {
		// An answer all the same: that the daemon is not there is what has to be told.
		e.o.Log.Warn("cannot ask aaunitd", "err", err)
		err = metrics.WriteDown(&b, time.Now())
	} else {
		err = metrics.Write(&b, m)
	}
	if err != nil {
		return nil, err
	}
	e.text, e.at = b.Bytes(), time.Now()
	return e.text, nil
}

// bounded takes so many connections at once; the others wait in the kernel.
type bounded struct {
	net.Listener
	places chan struct{}
	ended  <-chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.places <- struct{}{}:
	case <-b.ended:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.places
		return nil, err
	}
	return &placed{Conn: c, leave: sync.OnceFunc(func() { <-b.places })}, nil
}

type placed struct {
	net.Conn
	leave func()
}

func (p *placed) Close() error {
	p.leave()
	return p.Conn.Close()
}
