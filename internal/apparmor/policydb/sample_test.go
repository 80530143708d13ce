package policydb

import (
	"math/rand/v2"
	"testing"
)

func TestSample(t *testing.T) {
	eachSample(t, func(t *testing.T, p *Profile, _ string) {
		// Every thing that some state grants, to which a byte leads, is shown by one
		// string, once.
		want := map[permIndex]bool{}
		for s := range p.file.index {
			for _, k := range p.file.dfa.classes {
				want[p.file.index[p.file.dfa.stepClass(uint32(s), uint32(k))]] = true
			}
		}
		delete(want, p.file.index[stateDead])
		for i, s := range p.Sample(1 << 20) {
			k := p.file.index[p.file.dfa.walkBytes(p.file.start, s)]
			if !want[k] {
				t.Errorf("%d, %q: shown before, or nothing", i, s)
			}
			delete(want, k)
		}
		if len(want) > 0 {
			t.Errorf("%d grants are not shown", len(want))
		}
		if s := p.Sample(3); len(s) != 3 || len(s[0]) > len(s[2]) {
			t.Errorf("three are %q", s)
		}
	})
	if s := parse(t, "profile p { network, }").Sample(10); len(s) > 0 {
		t.Errorf("without file rules: %q", s)
	}
}

func TestWalk(t *testing.T) {
	p := parse(t, sample)
	for _, class := range []byte{ClassFile, ClassNetV8, ClassSignal} {
		w := p.Walker(class)
		if w == nil {
			t.Fatalf("class %d has no rules", class)
		}
		matched, different := 0, map[string]bool{}
		r := rand.New(rand.NewPCG(1, 1))
		for range 1000 {
			s := w.Walk(r, 100)
			if len(s) > 100 {
				t.Fatalf("%d bytes", len(s))
			}
			different[string(s)] = true
			if at := w.d.dfa.walkBytes(w.start, s); at == stateDead {
				t.Fatalf("%q leads nowhere", s)
			} else if w.d.index[at] != w.d.index[stateDead] {
				matched++
			}
		}
		if matched < 100 || len(different) < 5 {
			t.Errorf("class %d: of 1000 %d match, %d different", class, matched, len(different))
		}
	}
	if p.Walker(ClassDBus) != nil || parse(t, "profile p { network, }").Walker(ClassFile) != nil {
		t.Error("a Walker of nothing")
	}
}
