package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// qmp talks to QEMU's monitor (docs/interop/qmp-intro.rst), one command at a
// time. Events are not looked at: what matters is asked for.
type qmp struct {
	mu   sync.Mutex
	conn net.Conn
	dec  *json.Decoder
}

func newQMP(conn net.Conn) *qmp {
	return &qmp{conn: conn, dec: json.NewDecoder(conn)}
}

type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

// hello reads the greeting and ends the negotiation.
func (q *qmp) hello(ctx context.Context) error {
	return q.execute(ctx, "qmp_capabilities", nil, nil)
}

// execute runs a command, and unmarshals what it returns into result, unless
// that is nil.
func (q *qmp) execute(ctx context.Context, command string, arguments, result any) (err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot have QEMU do %s: %w", command, err)
		}
	}()

	stop := context.AfterFunc(ctx, func() { q.conn.SetDeadline(time.Now()) })
	defer stop()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		return orContext(ctx, err)
	}
	for {
		var m qmpMessage
		if err := q.dec.Decode(&m); err != nil {
			return orContext(ctx, err)
		}
		switch {
		case m.Error != nil:
			return fmt.Errorf("%s", m.Error.Desc)
		case m.Return != nil:
			if result == nil {
				return nil
			}
			return json.Unmarshal(m.Return, result)
		}
	}
}

// human runs a command of the human monitor, and takes any output for an error:
// savevm and its like say nothing when they succeed.
func (q *qmp) human(ctx context.Context, line string) error {
	var out string
	err := q.execute(ctx, "human-monitor-command", map[string]any{"command-line": line}, &out)
	if err == nil && out != "" {
		err = fmt.Errorf("cannot have QEMU do %s: %s", line, out)
	}
	return err
}

// migration waits until a migration, out or in, has ended.
func (q *qmp) migration(ctx context.Context) error {
	for {
		var status struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := q.execute(ctx, "query-migrate", nil, &status); err != nil {
			return err
		}
		switch status.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("cannot move the machine's state: %s %s", status.Status, status.Desc)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// orContext prefers the context's error, if there is one, to what it caused.
func orContext(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// sleep waits, unless the context ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
