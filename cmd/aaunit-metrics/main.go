// Command aaunit-metrics answers Prometheus on the sockets of aaunit-metrics.socket,
// for which systemd starts it. It asks aaunitd over the bus, as anybody could, and
// needs no privileges.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/exporter"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "aaunit-metrics: it takes no arguments; systemctl edit aaunit-metrics.socket says where it listens")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	listeners, err := activation.Listeners()
	if err == nil {
		err = exporter.Serve(ctx, listeners, exporter.Options{Ask: ask, Log: log, Idle: 10 * time.Minute, Fresh: time.Second})
	}
	if err != nil {
		log.Error("cannot go on", "err", err)
		os.Exit(1)
	}
}

// ask never starts the daemon: that it does not run is to be seen.
func ask(ctx context.Context) (attach.Metrics, error) {
	c, err := api.Dial(ctx, api.DialOptions{NoStart: true})
	if err != nil {
		return attach.Metrics{}, err
	}
	defer c.Close()
	return c.Metrics(ctx)
}
