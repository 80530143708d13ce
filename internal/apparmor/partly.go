package apparmor

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
)

// maxLeftOut bounds the rules that are left out of one file: each takes a run of
// the parser.
const maxLeftOut = 16

// CompilePartly compiles what is left of a file that does not compile, for a
// check of the rest: a rule that the parser refuses hides whatever else is wrong
// with the profile. It is left out, as spaces, so that every line stays where it
// is, and the next one that is refused after it. refused says what was wrong with
// each, in order. ok is false where something does not compile that is no rule by
// itself, such as the head of a profile; there is no policy then.
//
// The policy is of no text that anybody wrote, so it is neither kept nor can it be
// loaded: it has no checksums, and an ID that stands for nothing else.
func (s *System) CompilePartly(ctx context.Context, file string) (c attach.Compiled, refused []attach.Reason, ok bool) {
	r := s.newReader()
	src, err := r.source(file)
	if err != nil || src.untrusted != nil || src.scan.tooLarge {
		return attach.Compiled{}, nil, false
	}
	texts := src.texts()
	for len(refused) <= maxLeftOut {
		parts, errs := s.each(ctx, []*source{src}, cutBlobs, "--skip-kernel-load", "--skip-cache", "--stdout")
		if errs[0] == nil {
			c, err := compiled(src, parts[0], false)
			c.ID, c.Environment = policyID(src, false)+"-partly", s.Environment()
			c.NotStaged = "it is only a part of the profile"
			return c, refused, err == nil
		}
		var ce *compileError
		if !errors.As(errs[0], &ce) || ce.found.Code == "" {
			return attach.Compiled{}, refused, false
		}
		refused = append(refused, problem(file, errs[0]))
		left, ok := leaveOut(texts[ce.found.File], ce.found)
		if !ok {
			return attach.Compiled{}, refused, false
		}
		texts = maps.Clone(texts)
		texts[ce.found.File] = left
		if src, err = s.keptReader(texts).source(file); err != nil {
			return attach.Compiled{}, refused, false
		}
	}
	return attach.Compiled{}, refused, false
}

// leaveOut gives a text without the rule, include or assignment that a diagnosis
// is about.
func leaveOut(text []byte, d Diagnosis) ([]byte, bool) {
	if d.Line <= 0 {
		return nil, false
	}
	at := d.offset(text)
	for _, st := range statementsOf(string(text)) {
		if len(st.words) == 0 || d.Line < st.first() || d.Line > st.line || st.endAt < at {
			continue
		}
		// What ends with a brace opens or closes a block.
		if st.end == '{' || st.head() {
			return nil, false
		}
		from, to := st.words[0].Start, min(st.endAt+1, len(text))
		last := st.words[len(st.words)-1]
		if st.end != ',' {
			to = last.Stop
		}
		if d.Code == "missing-comma" {
			// What follows on the next lines is another rule, without an end to tell it by.
			if i := bytes.IndexByte(text[from:to], '\n'); i >= 0 {
				to = from + i
			}
		}
		out := bytes.Clone(text)
		blank := false
		for i := from; i < to; i++ {
			if out[i] != '\n' {
				blank = blank || out[i] != ' '
				out[i] = ' '
			}
		}
		return out, blank
	}
	return nil, false
}

// offset is the byte that a diagnosis points to; that of its line where it means
// the line as a whole.
func (d Diagnosis) offset(text []byte) int {
	at := 0
	for range d.Line - 1 {
		i := bytes.IndexByte(text[at:], '\n')
		if i < 0 {
			return at
		}
		at += i + 1
	}
	for range d.Column - 1 {
		_, size := utf8.DecodeRune(text[at:])
		at += size
	}
	return at
}
