package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// A waiting person is told every second, a log every ten.
const (
	liveEvery  = time.Second
	plainEvery = 10 * time.Second
)

// progress says on standard error what the daemon is doing: on a terminal in
// one line that changes and is gone at the end, elsewhere now and then in a
// line of its own.
type progress struct {
	app  *app
	live bool

	mu    sync.Mutex
	began time.Time
	text  string
	shown bool
	done  chan struct{}
	ended sync.WaitGroup
}

func (a *app) startProgress() *progress {
	p := &progress{app: a, live: a.StderrTTY && a.Getenv("TERM") != "dumb", began: a.Now(), done: make(chan struct{})}
	every := plainEvery
	if p.live {
		every = liveEvery
	}
	p.ended.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-p.done:
				return
			case <-tick.C:
				p.show()
			}
		}
	})
	return p
}

func (p *progress) event(e attach.Event) {
	text := e.Unit + ": " + string(e.Step)
	if e.Text != "" {
		text += ": " + e.Text
	}
	p.say(text)
}

// say changes what is shown.
func (p *progress) say(text string) {
	p.mu.Lock()
	p.text = text
	p.mu.Unlock()
	if p.live {
		p.show()
	}
}

func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.text == "" {
		return
	}
	st := p.app.style(p.app.StderrTTY)
	text := st.text(p.text)
	since := fmt.Sprintf(" (%d s)", int(p.app.Now().Sub(p.began).Seconds()))
	if !p.live {
		fmt.Fprintf(p.app.Stderr, "aaunitctl: still at work: %s%s\n", text, since)
		return
	}
	// One column stays free: a full line makes some terminals begin a new one.
	room := max(20, p.app.Columns()-1-len(since))
	fmt.Fprintf(p.app.Stderr, "\r\x1b[K%s", st.paint(dim, st.cut(text, room)+since))
	p.shown = true
}

// stop takes the line away.
func (p *progress) stop() {
	close(p.done)
	p.ended.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live && p.shown {
		fmt.Fprint(p.app.Stderr, "\r\x1b[K")
	}
}
