//go:build page

package page

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/report"
)

func testdata(t *testing.T, name string) report.Document {
	t.Helper()
	f, err := os.Open(filepath.Join("../../internal/report/testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := report.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// pages writes the pages to be looked at, and gives their paths by name.
func pages(t *testing.T, dir string) map[string]string {
	t.Helper()
	earlier := testdata(t, "earlier.json")
	var fleet report.Merger
	for i := range 40 {
		d := testdata(t, "host.json")
		h := &d.Hosts[0]
		h.Machine.Name, h.Machine.ID = fmt.Sprintf("edge-%02d", i), fmt.Sprintf("%032d", i)
		if i%13 != 5 {
			h.Units, h.Unattached.Services = h.Units[:1], h.Unattached.Services[1:]
		}
		fleet.Add("fleet.json", d)
	}
	fleet.Refuse("edge-41.json", fmt.Errorf("it is no report"))
	host := testdata(t, "host.json")
	out := map[string]string{}
	for name, of := range map[string]struct {
		d   report.Document
		old *report.Document
	}{"host": {host, &earlier}, "fleet": {fleet.Merged(host.Made), nil}, "hostile": {testdata(t, "hostile.json"), nil}} {
		var b bytes.Buffer
		if err := report.HTML(&b, of.d, of.old); err != nil {
			t.Fatal(err)
		}
		out[name] = filepath.Join(dir, name+".html")
		if err := os.WriteFile(out[name], b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func save(t *testing.T, file, data string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPage: the page fits, complains about nothing and asks for nothing, wherever it
// is looked at; all of it is legible, and it can be read aloud in order.
func TestPage(t *testing.T) {
	dir, err := filepath.Abs("../../build/page")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := startBrowser(t)
	for name, file := range pages(t, dir) {
		for _, look := range []struct {
			name          string
			width, height int
			dark, phone   bool
		}{{"phone", 390, 844, false, true}, {"phone-dark", 390, 844, true, true}, {"small", 320, 640, false, true}, {"desk", 1280, 900, false, false}, {"desk-dark", 1280, 900, true, false}} {
			what := name + "-" + look.name
			b.open(file, look.width, look.height, look.dark, look.phone)
			width, height := b.size()
			if width > look.width {
				t.Errorf("%s: the page is %d wide, %d are there", what, width, look.width)
			}
			if height < 400 {
				t.Errorf("%s: the page is %d high", what, height)
			}
			var shot struct{ Data string }
			b.do("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true,
				"clip": map[string]any{"x": 0, "y": 0, "width": look.width, "height": min(height, 12000), "scale": 1}}, &shot)
			picture, err := png.Decode(bytes.NewReader(save(t, filepath.Join(dir, what+".png"), shot.Data)))
			if err != nil {
				t.Fatal(err)
			}
			if got := picture.Bounds().Dx(); got != look.width {
				t.Errorf("%s: the picture is %d wide", what, got)
			}
			r, g, bl, _ := picture.At(2, 2).RGBA()
			if bright := r+g+bl > 3*0x8000; bright == look.dark {
				t.Errorf("%s: the paper is %x %x %x", what, r>>8, g>>8, bl>>8)
			}
			b.legible(what)
		}
		b.open(file, 1280, 900, false, false)
		b.ordered(name)
		// On paper it is light whatever the screen, and nothing is cut off: A4 without
		// its margins.
		const paper = 717
		b.open(file, paper, 1000, true, false)
		b.do("Emulation.setEmulatedMedia", map[string]any{"media": "print", "features": []map[string]string{{"name": "prefers-color-scheme", "value": "dark"}}}, nil)
		if width, _ := b.size(); width > paper {
			t.Errorf("%s: on paper it is %d wide, %d are there", name, width, paper)
		}
		var shot struct{ Data string }
		b.do("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
		picture, err := png.Decode(bytes.NewReader(save(t, filepath.Join(dir, name+"-print.png"), shot.Data)))
		if err != nil {
			t.Fatal(err)
		}
		if r, g, bl, _ := picture.At(2, 2).RGBA(); r+g+bl != 3*0xffff {
			t.Errorf("%s: the paper is %x %x %x", name, r>>8, g>>8, bl>>8)
		}
		b.legible(name + " on paper")
		var pdf struct{ Data string }
		b.do("Page.printToPDF", map[string]any{"printBackground": true, "paperWidth": 8.27, "paperHeight": 11.69}, &pdf)
		if text := save(t, filepath.Join(dir, name+".pdf"), pdf.Data); !bytes.HasPrefix(text, []byte("%PDF-")) || !bytes.Contains(text, []byte("%%EOF")) {
			t.Errorf("%s: what is printed is no PDF", name)
		}
	}
	// What is told late is told now.
	time.Sleep(300 * time.Millisecond)
	b.do("Page.getLayoutMetrics", map[string]any{}, nil)
	for _, c := range b.complaints {
		t.Errorf("the page complains: %.300s", c)
	}
}

// legible holds the colours of all texts against what is behind them: WCAG 2.2, 1.4.3.
func (b *browser) legible(what string) {
	b.t.Helper()
	var found []struct {
		Text       string
		Fore, Back string
	}
	b.evaluate(`(() => {
		const out = new Map();
		const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		for (let n; (n = walker.nextNode());) {
			const text = n.textContent.trim();
			const e = n.parentElement;
			const box = e.getBoundingClientRect();
			if (!text || !box.width || getComputedStyle(e).clipPath !== 'none') continue;
			let back = 'rgba(0, 0, 0, 0)';
			for (let at = e; at && back === 'rgba(0, 0, 0, 0)'; at = at.parentElement) back = getComputedStyle(at).backgroundColor;
			const fore = getComputedStyle(e).color;
			out.set(fore + back, {Text: text.slice(0, 40), Fore: fore, Back: back});
		}
		return [...out.values()];
	})()`, &found)
	if len(found) < 4 {
		b.t.Errorf("%s: only %d colours were found", what, len(found))
	}
	for _, f := range found {
		if c := contrast(f.Fore, f.Back); c < 4.5 {
			b.t.Errorf("%s: %q has a contrast of %.2f: %s on %s", what, f.Text, c, f.Fore, f.Back)
		}
	}
}

// contrast is the ratio of two colours as CSS writes them; 0 for what it does not know.
func contrast(a, b string) float64 {
	light := func(s string) float64 {
		var c [3]float64
		if n, _ := fmt.Sscanf(strings.NewReplacer("rgba(", "rgb(").Replace(s), "rgb(%f, %f, %f", &c[0], &c[1], &c[2]); n != 3 {
			return -1
		}
		for i, v := range c {
			if v /= 255; v <= 0.04045 {
				c[i] = v / 12.92
			} else {
				c[i] = math.Pow((v+0.055)/1.055, 2.4)
			}
		}
		return 0.2126*c[0] + 0.7152*c[1] + 0.0722*c[2]
	}
	x, y := light(a), light(b)
	if x < 0 || y < 0 {
		return 0
	}
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// ordered looks at what a screen reader goes by: headings without gaps, tables with
// titles, a language, and a name for the one picture that says something.
func (b *browser) ordered(what string) {
	b.t.Helper()
	var seen struct {
		Lang     string
		Headings []int
		Tables   int // without titles of columns
		Rows     int // without a title
		Pictures int // that are neither hidden nor named
		Scripts  int
	}
	b.evaluate(`(() => ({
		Lang: document.documentElement.lang,
		Headings: [...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1])),
		Tables: [...document.querySelectorAll('table')].filter(t => !t.querySelector('thead th[scope=col]')).length,
		Rows: [...document.querySelectorAll('tbody tr')].filter(r => !r.querySelector('th[scope=row]')).length,
		Pictures: [...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-hidden') && !s.getAttribute('aria-label')).length,
		Scripts: document.querySelectorAll('script').length,
	}))()`, &seen)
	if seen.Lang != "en" || seen.Tables+seen.Rows+seen.Pictures+seen.Scripts != 0 || len(seen.Headings) < 3 || seen.Headings[0] != 1 {
		b.t.Errorf("%s: %+v", what, seen)
	}
	for i := 1; i < len(seen.Headings); i++ {
		if seen.Headings[i] > seen.Headings[i-1]+1 {
			b.t.Errorf("%s: heading %d of level %d follows one of level %d", what, i, seen.Headings[i], seen.Headings[i-1])
		}
	}
}
