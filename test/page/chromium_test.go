//go:build page

package page

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// browser is a Chromium that takes orders over a pipe, and one page of it
// (Chrome DevTools Protocol: messages of JSON that end with NUL).
type browser struct {
	t       *testing.T
	in      *os.File
	out     *bufio.Reader
	id      int
	session string
	// complaints are what the page had to say to its console.
	complaints []string
}

func startBrowser(t *testing.T) *browser {
	t.Helper()
	orders, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
		"--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "about:blank")
	var stderr bytes.Buffer
	cmd.ExtraFiles, cmd.Stderr = []*os.File{orders, out}, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("cannot start Chromium: %v", err)
	}
	orders.Close()
	out.Close()
	b := &browser{t: t, in: in, out: bufio.NewReaderSize(answers, 1<<20)}
	t.Cleanup(func() {
		in.Close()
		if t.Failed() {
			t.Logf("Chromium: %.2000s", stderr.String())
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		answers.Close()
	})
	watch := time.AfterFunc(3*time.Minute, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() { watch.Stop() })
	var target struct {
		TargetID string `json:"targetId"`
	}
	b.do("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct {
		SessionID string `json:"sessionId"`
	}
	b.do("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Log", "Runtime", "Network"} {
		b.do(domain+".enable", map[string]any{}, nil)
	}
	return b
}

type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

func (b *browser) next() message {
	b.t.Helper()
	text, err := b.out.ReadBytes(0)
	if err != nil {
		b.t.Fatalf("Chromium has ended: %v", err)
	}
	var m message
	if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
		b.t.Fatal(err)
	}
	switch m.Method {
	case "Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled":
		b.complaints = append(b.complaints, m.Method+" "+string(m.Params))
	case "Network.requestWillBeSent":
		var r struct{ Request struct{ URL string } }
		if json.Unmarshal(m.Params, &r) == nil && !strings.HasPrefix(r.Request.URL, "file:///") {
			b.complaints = append(b.complaints, "the page asks for "+r.Request.URL)
		}
	}
	return m
}

// do gives an order and waits for the answer.
func (b *browser) do(method string, params map[string]any, result any) {
	b.t.Helper()
	if err := b.try(method, params, result); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) try(method string, params map[string]any, result any) error {
	b.t.Helper()
	b.id++
	order := map[string]any{"id": b.id, "method": method, "params": params}
	if b.session != "" {
		order["sessionId"] = b.session
	}
	text, err := json.Marshal(order)
	if err != nil {
		return err
	}
	if _, err := b.in.Write(append(text, 0)); err != nil {
		return err
	}
	for {
		m := b.next()
		if m.ID != b.id {
			continue
		}
		if len(m.Error) > 0 {
			return fmt.Errorf("%s: %s", method, m.Error)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(m.Result, result)
	}
}

// wait reads until something happens.
func (b *browser) wait(event string) {
	b.t.Helper()
	for b.next().Method != event {
	}
}

// open shows a file at a width, in a scheme of colours, without JavaScript.
func (b *browser) open(file string, width, height int, dark, phone bool) {
	b.t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	b.do("Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	b.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}, nil)
	b.do("Emulation.setEmulatedMedia", map[string]any{"media": "screen", "features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.do("Page.navigate", map[string]any{"url": "file://" + file}, nil)
	b.wait("Page.loadEventFired")
}

// size is that of the whole page.
func (b *browser) size() (width, height int) {
	b.t.Helper()
	var m struct {
		CSSContentSize struct{ Width, Height float64 } `json:"cssContentSize"`
	}
	b.do("Page.getLayoutMetrics", map[string]any{}, &m)
	return int(m.CSSContentSize.Width), int(m.CSSContentSize.Height)
}

// evaluate asks the page, for which scripts have to be allowed: it is for what tests
// want to know.
func (b *browser) evaluate(expression string, result any) {
	b.t.Helper()
	b.do("Emulation.setScriptExecutionDisabled", map[string]any{"value": false}, nil)
	var r struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		ExceptionDetails json.RawMessage `json:"exceptionDetails"`
	}
	b.do("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &r)
	if len(r.ExceptionDetails) > 0 {
		b.t.Fatal(errors.New(string(r.ExceptionDetails)))
	}
	if err := json.Unmarshal(r.Result.Value, result); err != nil {
		b.t.Fatalf("%s: %v", r.Result.Value, err)
	}
}
