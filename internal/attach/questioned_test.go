package attach

import "testing"

func TestQuestioned(t *testing.T) {
	for _, tt := range []struct {
		c      Compiled
		want   string
		wholly bool
	}{
		{Compiled{Asked: 375}, "was asked 375 questions about the staged policy; all answers agree", true},
		{Compiled{Asked: 1}, "was asked one question about the staged policy; all answers agree", true},
		{Compiled{Asked: 16, NotAsked: "the time was over"}, "was asked 16 questions about the staged policy, and all answers agree; the rest was not asked: the time was over", false},
		{Compiled{NotAsked: "it has no \x1b[31mquery file"}, `not asked: it has no \u001b[31mquery file`, false},
		{Compiled{NotStaged: "cannot make a policy namespace"}, "not asked: cannot make a policy namespace", false},
		{Compiled{}, "not asked: nothing about it is on record", false},
	} {
		q := tt.c.Questioned()
		if q.String() != tt.want || q.Wholly() != tt.wholly {
			t.Errorf("%+v: %q, wholly %v", tt.c, q, q.Wholly())
		}
	}
	if out := QuestionedOf([]Compiled{{File: "/a", Asked: 3}, {File: "/b", Asked: 3, Disagrees: "it differs"}}); len(out) != 1 || out[0].File != "/a" {
		t.Errorf("%+v", out)
	}
}
