package attach

import (
	"cmp"
	"fmt"
)

// Questioned says what the kernel was asked about a policy before it goes live,
// in a staging namespace. All answers agree with what the compiled policy says: a
// policy of which one does not is refused (policy-read-differently).
type Questioned struct {
	File string `json:"file"` // the profile's
	// Questions is how many there were.
	Questions int `json:"questions"`
	// NotAsked says why there were none, or no more.
	NotAsked string `json:"notAsked,omitempty"`
}

// Questioned says what the kernel was asked about it.
func (c Compiled) Questioned() Questioned {
	q := Questioned{File: printable(c.File), Questions: c.Asked, NotAsked: printable(cmp.Or(c.NotAsked, c.NotStaged))}
	if q.Questions == 0 && q.NotAsked == "" {
		q.NotAsked = "nothing about it is on record"
	}
	return q
}

// QuestionedOf is that of each policy, but for those that the kernel reads
// otherwise, of which other words are made.
func QuestionedOf(policies []Compiled) (out []Questioned) {
	for _, c := range policies {
		if c.Disagrees == "" {
			out = append(out, c.Questioned())
		}
	}
	return out
}

// Wholly reports whether all was asked that was meant to be.
func (q Questioned) Wholly() bool { return q.Questions > 0 && q.NotAsked == "" }

func (q Questioned) String() string {
	asked := fmt.Sprintf("was asked %d questions", q.Questions)
	if q.Questions == 1 {
		asked = "was asked one question"
	}
	switch {
	case q.Questions == 0:
		return "not asked: " + q.NotAsked
	case q.NotAsked != "":
		return asked + " about the staged policy, and all answers agree; the rest was not asked: " + q.NotAsked
	}
	return asked + " about the staged policy; all answers agree"
}
