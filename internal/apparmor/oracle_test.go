package apparmor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// Of many policies each has its share of the time, and so has each profile of
// one: children, hats, and what they change to.
func TestTurns(t *testing.T) {
	h := newHost(t)
	var files []string
	for n := range 5 {
		files = append(files, h.profile(fmt.Sprintf("p%d", n), fmt.Sprintf(`profile p%[1]d {
  /srv/%[1]d/** rw,
  /usr/bin/a Cx -> child,
  /usr/bin/b Px -> p%[1]d-target,
  change_profile -> p%[1]d-other,
  profile child { /usr/bin/a mr, }
  ^hat { /usr/bin/c r, }
}
profile p%[1]d-target { /srv/** r, }
profile p%[1]d-other { /opt/** r, }
`, n)))
	}
	done, problems := h.Compile(ctx(t), files, false)
	if len(done) != len(files) {
		t.Fatal(problems)
	}
	const profiles = 5
	for _, tt := range []struct {
		name   string
		rounds int // after which the time is over; 0 never
	}{{"all", 0}, {"no time for all", 3}, {"no time", -1}} {
		t.Run(tt.name, func(t *testing.T) {
			var policies []*attach.Compiled
			for _, c := range done {
				policies = append(policies, &c)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			if tt.rounds < 0 {
				cancel(errTimeOver)
			}
			asked := map[string]int{}
			calls := 0
			takeTurns(ctx, inquiries(policies), func(i *inquiry, questions []Question) error {
				asked[i.p.Name] += len(questions)
				if calls++; calls == tt.rounds*profiles*len(policies) {
					cancel(errTimeOver)
				}
				return nil
			})
			for _, c := range policies {
				if over := strings.Contains(c.NotAsked, errTimeOver.Error()); over != (tt.rounds != 0) {
					t.Errorf("%s: NotAsked = %q", c.File, c.NotAsked)
				}
				if len(c.Profiles) != profiles {
					t.Errorf("%s has %d profiles", c.File, len(c.Profiles))
				}
				for _, p := range c.Profiles {
					n := asked[p.Name]
					if tt.rounds > 0 && n != tt.rounds*portion || tt.rounds < 0 && n != 0 || tt.rounds == 0 && n < 60 {
						t.Errorf("%s was asked %d questions", p.Name, n)
					}
				}
			}
		})
	}

	// One that cannot be asked about costs no other its turn, and the reason stays.
	c := done[0]
	asked := 0
	takeTurns(t.Context(), inquiries([]*attach.Compiled{&c}), func(i *inquiry, questions []Question) error {
		if i.p.Name == "p0//hat" {
			return errors.New("not this one")
		}
		asked += len(questions)
		return nil
	})
	if c.NotAsked != "not this one" || asked < 200 {
		t.Errorf("%d questions, NotAsked = %q", asked, c.NotAsked)
	}
	// A policy that is read differently is asked no more.
	c = done[0]
	asked = 0
	takeTurns(t.Context(), inquiries([]*attach.Compiled{&c}), func(i *inquiry, questions []Question) error {
		asked++
		i.c.Disagrees = "it differs"
		return nil
	})
	if asked != 1 || c.NotAsked != "" {
		t.Errorf("asked %d times after an answer that differs, NotAsked = %q", asked, c.NotAsked)
	}
}

// Where the kernel has no policy namespaces, or answers no questions, that is
// said, and the compiled policy is there to be asked.
func TestAKernelWithoutNamespaces(t *testing.T) {
	h := newHost(t)
	file := h.profile("a", "profile a { owner /srv/** rw, /tmp/** r, }\n")
	done, problems := h.Compile(ctx(t), []string{file}, false)
	if len(done) != 1 {
		t.Fatal(problems)
	}
	for what, make := range map[string]func(){
		"no security file system": func() {},
		"no namespaces":           func() { h.mkdir(securityDir + "/policy/profiles") },
		"no queries":              func() { h.mkdir(securityDir + "/policy/namespaces") },
	} {
		make()
		policies := []attach.Compiled{done[0]}
		h.Stage(ctx(t), policies)
		c := policies[0]
		if q := c.Questioned(); c.Checksums != nil || c.NotStaged == "" || q.Questions != 0 || q.Wholly() || !strings.Contains(q.String(), "not asked") {
			t.Errorf("%s: %+v, %s", what, c, q)
		}
		profiles, err := policydb.Parse(c.Blob)
		if err != nil || len(profiles) != 1 {
			t.Fatal(err)
		}
		srv, err := policydb.ParsePattern("/srv/**")
		if err != nil {
			t.Fatal(err)
		}
		if r := profiles[0].Find(policydb.Query{Pattern: srv, Any: policydb.Write}); r.Answer != policydb.Yes || r.As != policydb.Owner {
			t.Errorf("%s: %+v", what, r)
		}
		if r := profiles[0].Find(policydb.Query{Pattern: srv, Any: policydb.Write, As: policydb.Other}); r.Answer != policydb.No {
			t.Errorf("%s: %+v", what, r)
		}
	}
}
