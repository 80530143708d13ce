package gate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"github.com/aaunit/aaunit/internal/attach"
)

// assertions asks what the attachment asserts.
func (a *asking) assertions() {
	for _, as := range a.Desired.Attachment.Assertions {
		a.assert(as)
	}
}

// assert asks one assertion: Deny= of every profile under which the unit's tasks
// can come to run, Allow= of the unit's own.
func (a *asking) assert(as attach.Assertion) {
	if len(a.asked) == 0 {
		return
	}
	if as.Class == attach.AssertFile && as.Object == attach.ExecVariable {
		paths := a.executables(as.Deny)
		if len(paths) == 0 && !attach.IsPattern(a.Desired.Unit) { // of a pattern, each unit is asked
			a.failed(a.asked[0], as, unanswered("no command line of the unit is known"))
		}
		for _, path := range paths {
			one := as
			one.Object = escape(path)
			a.assert(one)
		}
		return
	}
	asked := a.asked
	if !as.Deny {
		asked = asked[:1]
	}
	for _, p := range asked {
		v := a.verdict(p, as)
		if v.Answer == policydb.Unknown || v.Holds == attach.No {
			a.failed(p, as, v)
		}
	}
}

// executables are those that the unit's command lines name: under every path that they
// may have, or only where they really lie, which is what the kernel checks when one is
// read, executed or mapped. Who may write the link puts another in its place.
func (a *asking) executables(every bool) (out []string) {
	for _, c := range a.Unit.Settings.Exec {
		if c.Path == "" {
			continue
		}
		paths := a.reallyAt(c.Path)
		if !every {
			paths = paths[len(paths)-1:]
		}
		for _, path := range paths {
			if !slices.Contains(out, path) {
				out = append(out, path)
			}
		}
	}
	return out
}

func (a *asking) failed(p *policydb.Profile, as attach.Assertion, v Verdict) {
	key := "Allow"
	if as.Deny {
		key = "Deny"
	}
	where := a.Desired.Attachment.Source
	if as.Line > 0 {
		where = fmt.Sprintf("%s:%d", where, as.Line)
	}
	if v.Answer == policydb.Unknown {
		a.find(attach.Error, p, v.Witness, nil, attach.Because(attach.AssertionUnknown, "%s=%s could not be answered of profile %s: %s", key, as.Text, p.Name, v.Why).At(where))
		return
	}
	a.find(attach.Error, p, v.Witness, v.rule, attach.Because(attach.AssertionFailed, "%s=%s does not hold: profile %s %s", key, as.Text, p.Name, v.Why).At(where))
}

// Query implements reconcile.Gate: a question is what Deny= would deny.
func (g *Gate) Query(_ context.Context, profile string, c attach.Compiled, question attach.Assertion) attach.QueryResult {
	r := attach.QueryResult{Profile: profile, File: c.File, May: attach.MayUnknown}
	read, err := g.policy(c)
	if err != nil {
		r.Text = "cannot be asked: " + err.Error()
		return r
	}
	profiles := read.profiles
	for i := range profiles {
		if profiles[i].Name != profile {
			continue
		}
		question.Deny = true
		v := Ask(&profiles[i], question)
		r.Witness, r.Text = v.Witness, v.Why
		r.May = map[policydb.Answer]string{policydb.Yes: attach.MayYes, policydb.No: attach.MayNo, policydb.NotMediated: attach.MayNotMediated}[v.Answer]
		switch r.May {
		case "":
			r.May = attach.MayUnknown
		case attach.MayYes:
			if where, rule := read.granting(profile, v.rule); rule != "" {
				r.Text = withDetail(attach.Reason{}, "%s, by the rule %q (%s)", r.Text, rule, where).Detail
			}
		}
		if r.May == attach.MayNo && profiles[i].Mode == policydb.Complain {
			r.May, r.Text = attach.MayNotMediated, "is in complain mode, which refuses nothing, so it may"
		}
		return r
	}
	r.Text = "is not in the policy that was compiled of " + c.File
	return r
}

// Verdict is the answer to an assertion about one profile.
type Verdict struct {
	// Holds is Yes or No, with a proof, or "could not tell".
	Holds attach.Tri
	// Answer is what the policy said: whether it is allowed.
	Answer policydb.Answer
	// Witness is what shows that it does not hold: a path, a socket's type.
	Witness string
	// Why is a clause with the profile as its subject, or why nothing can be told.
	Why string
	// Proof: all that match were considered, not a sample.
	Proof bool

	rule *rules.Question // asks for the rule that grants the witness
}

// grantedBy says where to look for the rule, of something that must not be allowed and
// is.
func (v Verdict) grantedBy(q rules.Question) Verdict {
	if v.Holds == attach.No && v.Answer == policydb.Yes {
		v.rule = &q
	}
	return v
}

// Ask asks one assertion of one profile.
func Ask(p *policydb.Profile, as attach.Assertion) Verdict {
	if p.Mode == policydb.Unconfined {
		return judge(as, policydb.NotMediated, "", "has the mode unconfined and takes nothing from its tasks")
	}
	switch as.Class {
	case attach.AssertFile:
		return askFile(p, as)
	case attach.AssertNetwork:
		return askNetwork(p, as)
	case attach.AssertCapability:
		return askCapability(p, as)
	case attach.AssertChange:
		return askChange(p, as)
	case attach.AssertSignal, attach.AssertPtrace:
		return askPeer(p, as)
	case attach.AssertUserns:
		return judge(as, p.MayCreateUserns(), "", may(p.MayCreateUserns(), "make user namespaces")).grantedBy(rules.Question{Class: rules.ClassUserns})
	}
	return unanswered("this version does not know assertions of the class %s", as.Class)
}

func unanswered(format string, args ...any) Verdict {
	return Verdict{Why: fmt.Sprintf(format, args...)}
}

// may says what an answer means.
func may(a policydb.Answer, what string) string {
	switch a {
	case policydb.Yes:
		return "may " + what
	case policydb.NotMediated:
		return "does not mediate that, so it may " + what
	}
	return "may not " + what
}

// judge compares the answer, whether it is allowed, with what is asserted.
func judge(as attach.Assertion, got policydb.Answer, witness, why string) Verdict {
	v := Verdict{Answer: got, Witness: witness, Why: why, Proof: true}
	switch got {
	case policydb.Yes, policydb.NotMediated:
		v.Holds = attach.TriOf(!as.Deny)
	case policydb.No:
		v.Holds = attach.TriOf(as.Deny)
	default:
		v.Proof = false
	}
	return v
}

// access are AppArmor's permissions for the words of an assertion.
var access = map[string]policydb.Perm{
	"read": policydb.Read, "write": policydb.Write, "append": policydb.Append, "create": policydb.Create, "delete": policydb.Delete,
	"exec": policydb.Exec, "map": policydb.Mmap, "lock": policydb.Lock, "link": policydb.Link,
}

func askFile(p *policydb.Profile, as attach.Assertion) Verdict {
	pattern, err := policydb.ParsePattern(as.Object)
	if err != nil {
		return unanswered("%v", err)
	}
	var want policydb.Perm
	for _, w := range as.Access {
		want |= access[w]
	}
	q := policydb.Query{Pattern: pattern, As: policydb.Either}
	switch as.Owner {
	case "owner":
		q.As = policydb.Owner
	case "other":
		q.As = policydb.Other
	}
	what := strings.Join(as.Access, ", ")
	if as.Deny {
		if want&policydb.Write != 0 {
			want |= writing // whoever may write may do so in one way or another
		}
		q.Any = want
		r := p.Find(q)
		if r.Answer == policydb.Unknown {
			return unanswered("%s", why(r))
		}
		if r.Answer == policydb.No {
			return judge(as, policydb.No, "", fmt.Sprintf("may %s nothing that matches %s", what, as.Object))
		}
		v := judge(as, r.Answer, r.Witness, fmt.Sprintf("allows %s of %s (%s)", r.Perms.Allow&want, quoted(r.Witness), r.As))
		v.rule = files(r.Witness, r.Perms.Allow&want, r.As)
		return v
	}
	q.All = want
	var r policydb.Result
	for _, who := range []policydb.Who{policydb.Owner, policydb.Other} {
		if q.As&who == 0 {
			continue
		}
		// Whoever owns it, unless the assertion says whose.
		one := q
		one.As = who
		if r = p.Covers(one); r.Answer != policydb.Yes {
			break
		}
	}
	switch r.Answer {
	case policydb.Unknown:
		return unanswered("%s", why(r))
	case policydb.No:
		return judge(as, policydb.No, r.Witness, fmt.Sprintf("may not %s %s (%s)", what, quoted(r.Witness), r.As))
	}
	return judge(as, r.Answer, "", fmt.Sprintf("may %s all that matches %s", what, as.Object))
}

func askNetwork(p *policydb.Profile, as attach.Assertion) Verdict {
	var of []family
	for _, f := range families {
		if as.Family == "" || as.Family == f.name {
			of = append(of, f)
		}
	}
	if len(of) == 0 {
		return unanswered("there is no address family %q; apparmor.d(5) lists them", as.Family)
	}
	socktype := uint16(0)
	if as.Type != "" {
		n, ok := types[as.Type]
		if !ok {
			return unanswered("there is no type of socket %q: use stream, dgram, seqpacket, rdm, raw or packet", as.Type)
		}
		socktype = n
	}
	// Deny= is against any of it, Allow= for all of it.
	for _, f := range of {
		var got policydb.Answer
		witnessed := socktype
		what := "network " + f.name
		switch {
		case as.Type != "" && as.Deny:
			got = p.SomeNetwork(f.number, socktype, policydb.AllNet)
			what += " " + as.Type
		case as.Type != "":
			got = p.Network(f.number, socktype, policydb.AllNet)
			what += " " + as.Type
		case as.Deny:
			var t uint16
			if t, got = p.AnyNetwork(f.number, policydb.AllNet); got == policydb.Yes {
				what += " " + typeName(t)
				witnessed = t
			}
		default:
			got = policydb.Yes
			for t := range types {
				if g := p.Network(f.number, types[t], policydb.AllNet); g != policydb.Yes {
					got, what = g, "network "+f.name+" "+t
				}
			}
		}
		if got == policydb.Unknown {
			return unanswered("its rules on %s depend on more than family and type", what)
		}
		if v := judge(as, got, what, may(got, "use sockets of "+strings.TrimPrefix(what, "network "))); v.Holds == attach.No {
			if as.Deny {
				v.rule = &rules.Question{Class: rules.ClassNetwork, Family: int(f.number), Type: int(witnessed)}
			}
			return v
		}
	}
	if as.Deny {
		return judge(as, policydb.No, "", "allows no such socket")
	}
	return judge(as, policydb.Yes, "", "allows every such socket")
}

func askCapability(p *policydb.Profile, as attach.Assertion) Verdict {
	for n, name := range capabilities {
		if as.Object != "" && as.Object != name {
			continue
		}
		got := p.Capability(n)
		if got == policydb.Unknown {
			return unanswered("its rules on capability %s are not understood", name)
		}
		if v := judge(as, got, name, may(got, "use capability "+name)); v.Holds == attach.No || as.Object != "" {
			if as.Deny {
				v.rule = &rules.Question{Class: rules.ClassCapability, Capability: name}
			}
			return v
		}
	}
	if as.Object != "" {
		return unanswered("there is no capability %q; capabilities(7) lists them", as.Object)
	}
	if as.Deny {
		return judge(as, policydb.No, "", "allows no capability")
	}
	return judge(as, policydb.Yes, "", "allows every capability")
}

func askChange(p *policydb.Profile, as attach.Assertion) Verdict {
	name := as.Object
	if name == "" {
		name = "**"
	}
	pattern, err := policydb.ParseName(name)
	if err != nil {
		return unanswered("%v", err)
	}
	if !as.Deny {
		got := p.MayChangeProfile(as.Object)
		return judge(as, got, as.Object, may(got, "change to profile "+as.Object))
	}
	r := p.FindChange(policydb.Query{Pattern: pattern, Any: policydb.ChangeProfile})
	if r.Answer == policydb.Unknown {
		return unanswered("%s", why(r))
	}
	return judge(as, r.Answer, r.Witness, may(r.Answer, "change to profile "+quoted(r.Witness))).grantedBy(*changeTo(r.Witness))
}

// signals are all numbers that policy can have: 0, which only asks whether there is such
// a task, the standard ones, and the real-time ones, which AppArmor counts from
// SIGRT_BASE (security/apparmor/include/sig_names.h).
var signals = func() (out []byte) {
	const realTime = 128
	for n := range byte(65) {
		out = append(out, n)
	}
	for n := range byte(33) {
		out = append(out, realTime+n)
	}
	return out
}()

// fields are what a rule on a peer has to be about.
func fields(as attach.Assertion, peer string) map[string]string {
	f := map[string]string{"peer": peer}
	if len(as.Access) == 1 {
		f["access"] = as.Access[0]
	}
	return f
}

var (
	signalAccess = map[string]policydb.Perm{"send": policydb.SignalSend, "receive": policydb.SignalReceive}
	ptraceAccess = map[string]policydb.Perm{
		"read": policydb.PtraceRead, "trace": policydb.PtraceTrace, "readby": policydb.PtraceReadBy, "tracedby": policydb.PtraceTracedBy,
	}
)

func askPeer(p *policydb.Profile, as attach.Assertion) Verdict {
	peer := as.Object
	if peer == "" {
		peer = "**"
	}
	pattern, err := policydb.ParseName(peer)
	if err != nil {
		return unanswered("%v", err)
	}
	words := signalAccess
	if as.Class == attach.AssertPtrace {
		words = ptraceAccess
	}
	var want policydb.Perm
	for word, perm := range words {
		if len(as.Access) == 0 || as.Access[0] == word {
			want |= perm
		}
	}
	if !as.Deny {
		return unanswered("Allow= cannot be asked about peers; ask with Deny=")
	}
	if as.Class == attach.AssertPtrace {
		r := p.FindPtrace(policydb.Query{Pattern: pattern, Any: want})
		if r.Answer == policydb.Unknown {
			return unanswered("%s", why(r))
		}
		return judge(as, r.Answer, r.Witness, may(r.Answer, "do that with tasks under "+quoted(r.Witness))).
			grantedBy(rules.Question{Class: rules.ClassPtrace, Fields: fields(as, r.Witness)})
	}
	for _, n := range signals {
		r := p.FindSignal(n, policydb.Query{Pattern: pattern, Any: want})
		switch r.Answer {
		case policydb.Unknown:
			return unanswered("%s", why(r))
		case policydb.Yes, policydb.NotMediated:
			q := rules.Question{Class: rules.ClassSignal, Fields: fields(as, r.Witness)}
			if name := policydb.SignalName(n); name != "" {
				q.Fields["set"] = name
			}
			return judge(as, r.Answer, r.Witness, may(r.Answer, fmt.Sprintf("do that with signal %d and tasks under %s", n, quoted(r.Witness)))).grantedBy(q)
		}
	}
	return judge(as, policydb.No, "", "allows no such signal")
}
