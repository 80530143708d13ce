package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

// Manager is the daemon's work, as the bus offers it. Every method may be
// called at any time and several at once.
type Manager interface {
	// Attach attaches units. It may take minutes; progress is told each step
	// and never waits for anybody. An error means that the request as a whole
	// could not be worked on; what happened to a unit is in its Outcome.
	Attach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	// Detach takes back exactly what Attach did. With r.DryRun it changes
	// nothing and says in Outcome.Plan what it would do.
	Detach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	// Pause leaves attached units alone for r.For, and Resume ends that. They
	// return when it is so, which may take as long as a pass that is under way.
	Pause(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	Resume(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	// Apply acts now on attachment files, which r.Units names, and tells how their
	// units are.
	Apply(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	// Propose says what would come of it if attachment files and profile files had
	// these texts; it changes nothing.
	Propose(ctx context.Context, files []attach.ProposedFile) ([]attach.Outcome, error)
	// Plan says what Attach would do; it changes nothing.
	Plan(ctx context.Context, r attach.Request) ([]attach.Outcome, error)
	// Verify looks again, now, at attached units (names and globs; none: all).
	Verify(ctx context.Context, units []string) (attach.Report, error)
	// VerifyEvidence does too, and says whether what the last verdicts on them rest
	// on still holds.
	VerifyEvidence(ctx context.Context, units []string) (attach.EvidenceReport, error)
	// Status answers at once from what is known.
	Status(units []string) attach.Report
	// Host is the state of AppArmor alone, however many units there are.
	Host() attach.Host
	// Profiles lists what is under /etc/apparmor.d, at once from what is known. Why
	// there may be more is in unread, by file.
	Profiles() (all []attach.Profile, unread map[string]attach.Reason)
	// Check says what is in profile files and what speaks against units. It
	// changes nothing. trusted as in attach.Request.
	Check(ctx context.Context, args []string, trusted bool) ([]attach.Outcome, error)
	// Query asks profiles, by name or file, whether their compiled policy allows
	// something; none: all profiles. trusted as in attach.Request.
	Query(ctx context.Context, profiles []string, question string, trusted bool) ([]attach.QueryResult, error)
	// QueryLoaded asks what the kernel has loaded; none: all of it.
	QueryLoaded(ctx context.Context, profiles []string, question string) ([]attach.QueryResult, error)
	// Explain gathers what is known of units (names and globs; none: all that are
	// attached) and, with plans, what an attach of the others would come to.
	Explain(ctx context.Context, units []string, plans bool) attach.CaseReport
	// Denials says what was denied to attached units (names and globs; none: all)
	// from since on, at once from what is known.
	Denials(units []string, since time.Time) attach.DenialReport
	// WaitDenials waits until something was denied after the answer that had the
	// cursor, or until ctx ends, and gives what came.
	WaitDenials(ctx context.Context, units []string, cursor string) attach.DenialReport
	// Metrics are the numbers of the daemon, at once from what is known.
	Metrics() attach.Metrics
	// Exposed lists services that no attachment names and that run without a profile.
	Exposed(ctx context.Context) (attach.ExposureReport, error)
	// HostReport is all that there is to report of the host.
	HostReport(ctx context.Context) (attach.HostReport, error)
	// SocketOptions says what is known of the socket options of attached units (names
	// and globs; none: all that have a list or are recorded).
	SocketOptions(units []string) attach.SocketReport
	// ChangeSockets changes lists and modes, which takes effect without a restart.
	ChangeSockets(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	// Subscribe has f told every status that is published from its return on until
	// ctx ends, in their order; a removed unit comes with Status.Attachment == "". f
	// returns at once, and changes none.
	Subscribe(ctx context.Context, f func(*attach.Status))
}

const (
	planTimeout   = 5 * time.Minute
	verifyTimeout = 10 * time.Minute
)

var managerIface = iface{
	name: ManagerInterface,
	methods: []method{
		{name: "Attach", in: []param{{"units", "as"}, {"options", "a{sv}"}}, out: []param{{"operation", "o"}}, call: callAttach},
		{name: "Detach", in: []param{{"units", "as"}, {"options", "a{sv}"}}, out: []param{{"operation", "o"}}, call: callDetach},
		{name: "Pause", in: []param{{"units", "as"}, {"options", "a{sv}"}}, out: []param{{"operation", "o"}}, call: callPause},
		{name: "Resume", in: []param{{"units", "as"}, {"options", "a{sv}"}}, out: []param{{"operation", "o"}}, call: callResume},
		{name: "Apply", in: []param{{"files", "as"}, {"options", "a{sv}"}}, out: []param{{"operation", "o"}}, call: callApply},
		{name: "Propose", in: []param{{"files", "as"}, {"texts", "as"}}, out: []param{{"outcomes", "s"}}, call: callPropose},
		{name: "Plan", in: []param{{"units", "as"}, {"options", "a{sv}"}}, out: []param{{"outcomes", "s"}}, call: callPlan},
		{name: "Verify", in: []param{{"units", "as"}}, out: []param{{"report", "s"}}, call: callVerify},
		{name: "VerifyEvidence", in: []param{{"units", "as"}}, out: []param{{"report", "s"}}, call: callVerifyEvidence},
		{name: "Describe", in: []param{{"units", "as"}}, out: []param{{"report", "s"}}, large: true, call: callDescribe},
		{name: "ListProfiles", out: []param{{"profiles", "s"}}, large: true, call: callListProfiles},
		{name: "ListProfileProblems", out: []param{{"problems", "s"}}, large: true, call: callListProfileProblems},
		{name: "Denials", in: []param{{"units", "as"}, {"since", "t"}}, out: []param{{"denials", "s"}}, large: true, call: callDenials},
		{name: "WaitDenials", in: []param{{"units", "as"}, {"cursor", "s"}}, out: []param{{"denials", "s"}}, call: callWaitDenials},
		{name: "SocketOptions", in: []param{{"units", "as"}}, out: []param{{"options", "s"}}, large: true, call: callSocketOptions},
		{name: "ChangeSocketOptions", in: []param{{"units", "as"}, {"options", "a{sv}"}}, out: []param{{"operation", "o"}}, call: callChangeSockets},
		{name: "Explain", in: []param{{"units", "as"}}, out: []param{{"cases", "s"}}, large: true, call: callExplain},
		{name: "Metrics", out: []param{{"metrics", "s"}}, large: true, call: callMetrics},
		{name: "ListUnconfined", out: []param{{"services", "s"}}, call: callExposed},
		{name: "Report", out: []param{{"report", "s"}}, call: callHostReport},
		{name: "Check", in: []param{{"names", "as"}}, out: []param{{"outcomes", "s"}}, call: callCheck},
		{name: "Query", in: []param{{"profiles", "as"}, {"question", "s"}}, out: []param{{"results", "s"}}, call: callQuery},
		{name: "QueryLoaded", in: []param{{"profiles", "as"}, {"question", "s"}}, out: []param{{"results", "s"}}, call: callQueryLoaded},
	},
	properties: []property{
		{"Version", "s", "const"},
		{"AppArmor", "s", "false"},
		{"GlobalMode", "s", "false"},
	},
}

func (s *session) managerProperties() map[string]dbus.Variant {
	host := s.manager.Host()
	return map[string]dbus.Variant{
		"Version":    dbus.MakeVariant(clean(s.version)),
		"AppArmor":   dbus.MakeVariant(host.Enabled.String()),
		"GlobalMode": dbus.MakeVariant(clean(string(host.GlobalMode))),
	}
}

func callAttach(ctx context.Context, r *request) ([]any, *dbus.Error) {
	req, failed := decodeRequest(r.body[0].([]string), r.body[1].(map[string]dbus.Variant), attachOptions)
	if failed != nil {
		return nil, failed
	}
	return r.begin(ctx, req, r.session.manager.Attach)
}

func callDetach(ctx context.Context, r *request) ([]any, *dbus.Error) {
	req, failed := decodeRequest(r.body[0].([]string), r.body[1].(map[string]dbus.Variant), detachOptions)
	if failed != nil {
		return nil, failed
	}
	return r.begin(ctx, req, r.session.manager.Detach)
}

func callPause(ctx context.Context, r *request) ([]any, *dbus.Error) {
	req, failed := decodeRequest(r.body[0].([]string), r.body[1].(map[string]dbus.Variant), pauseOptions)
	if failed != nil {
		return nil, failed
	}
	req.For = cmp.Or(req.For, attach.DefaultPause)
	return r.begin(ctx, req, r.session.manager.Pause)
}

func callResume(ctx context.Context, r *request) ([]any, *dbus.Error) {
	req, failed := decodeRequest(r.body[0].([]string), r.body[1].(map[string]dbus.Variant), nil)
	if failed != nil {
		return nil, failed
	}
	return r.begin(ctx, req, r.session.manager.Resume)
}

func callApply(ctx context.Context, r *request) ([]any, *dbus.Error) {
	files := r.body[0].([]string)
	if failed := checkNames("file", files); failed != nil {
		return nil, failed
	}
	req, failed := decodeOptions(files, r.body[1].(map[string]dbus.Variant), nil)
	if failed != nil {
		return nil, failed
	}
	return r.begin(ctx, req, r.session.manager.Apply)
}

// callPropose is root's alone: a text can have any file of the host read, and what
// is wrong with that file told.
func callPropose(ctx context.Context, r *request) ([]any, *dbus.Error) {
	names, texts := r.body[0].([]string), r.body[1].([]string)
	if failed := checkNames("file", names); failed != nil {
		return nil, failed
	}
	if len(names) != len(texts) {
		return nil, invalidArgs("%d files and %d texts were given", len(names), len(texts))
	}
	files := make([]attach.ProposedFile, len(names))
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, invalidArgs("the file %q is given twice", shorten(name))
		}
		files[i] = attach.ProposedFile{File: name, Text: texts[i]}
	}
	if !r.root() {
		return nil, fail(ErrorNotAuthorized, "only root may propose the text of a file")
	}
	return expensive(ctx, r, planTimeout, func(ctx context.Context) (any, error) {
		return some(r.session.manager.Propose(ctx, files))
	})
}

// begin asks whether the caller may, and starts the work.
func (r *request) begin(ctx context.Context, req attach.Request, work func(context.Context, attach.Request, func(attach.Event)) ([]attach.Outcome, error)) ([]any, *dbus.Error) {
	if failed := r.authorize(ctx, ActionManage); failed != nil {
		return nil, failed
	}
	req.Trusted, req.By = r.root(), userName(r.uid)
	o, failed := r.session.operations.start(r.session.life, r, func(ctx context.Context, progress func(attach.Event)) ([]attach.Outcome, error) {
		return work(ctx, req, progress)
	})
	if failed != nil {
		return nil, failed
	}
	r.session.log.Info("operation started", "operation", o.id, "method", r.member, "uid", r.uid, "units", len(req.Units))
	return []any{o.path}, nil
}

func callPlan(ctx context.Context, r *request) ([]any, *dbus.Error) {
	req, failed := decodeRequest(r.body[0].([]string), r.body[1].(map[string]dbus.Variant), attachOptions)
	if failed != nil {
		return nil, failed
	}
	return expensive(ctx, r, planTimeout, func(ctx context.Context) (any, error) {
		req.DryRun, req.Trusted = true, r.root()
		return some(r.session.manager.Plan(ctx, req))
	})
}

func callVerify(ctx context.Context, r *request) ([]any, *dbus.Error) {
	units := r.body[0].([]string)
	if failed := checkUnits(units); failed != nil {
		return nil, failed
	}
	return expensive(ctx, r, verifyTimeout, func(ctx context.Context) (any, error) {
		report, err := r.session.manager.Verify(ctx, units)
		report.Exit = attach.ExitOfReport(report, len(units) > 0)
		return report, err
	})
}

func callVerifyEvidence(ctx context.Context, r *request) ([]any, *dbus.Error) {
	units := r.body[0].([]string)
	if failed := checkUnits(units); failed != nil {
		return nil, failed
	}
	return expensive(ctx, r, verifyTimeout, func(ctx context.Context) (any, error) {
		return r.session.manager.VerifyEvidence(ctx, units)
	})
}

func callCheck(ctx context.Context, r *request) ([]any, *dbus.Error) {
	names := r.body[0].([]string)
	if failed := checkNames("file or unit", names); failed != nil {
		return nil, failed
	}
	return expensive(ctx, r, planTimeout, func(ctx context.Context) (any, error) {
		return some(r.session.manager.Check(ctx, names, r.root()))
	})
}

func callQuery(ctx context.Context, r *request) ([]any, *dbus.Error) {
	names, question, failed := r.question()
	if failed != nil {
		return nil, failed
	}
	return expensive(ctx, r, planTimeout, func(ctx context.Context) (any, error) {
		return r.session.manager.Query(ctx, names, question, r.root())
	})
}

// callQueryLoaded is for root: the kernel gives the bytes of loaded policy to
// nobody else.
func callQueryLoaded(ctx context.Context, r *request) ([]any, *dbus.Error) {
	names, question, failed := r.question()
	switch {
	case failed != nil:
		return nil, failed
	case !r.root():
		return nil, fail(errorAccessDenied, "only root may ask what is loaded: the kernel gives it to nobody else")
	}
	return expensive(ctx, r, planTimeout, func(ctx context.Context) (any, error) {
		return r.session.manager.QueryLoaded(ctx, names, question)
	})
}

// question reads the arguments of Query and QueryLoaded.
func (r *request) question() (profiles []string, question string, failed *dbus.Error) {
	profiles, question = r.body[0].([]string), r.body[1].(string)
	if failed := checkNames("profile", profiles); failed != nil {
		return nil, "", failed
	}
	if _, err := attach.ParseAssertion(true, question); err != nil {
		return nil, "", invalidArgs("cannot ask %q: %v", shorten(question), err)
	}
	return profiles, question, nil
}

func callDescribe(_ context.Context, r *request) ([]any, *dbus.Error) {
	units := r.body[0].([]string)
	if failed := checkUnits(units); failed != nil {
		return nil, failed
	}
	if !r.root() {
		if failed := r.pay(units); failed != nil {
			return nil, failed
		}
	}
	report := r.session.manager.Status(units)
	report.Exit = attach.ExitOfReport(report, len(units) > 0)
	if !r.root() {
		report = publicReport(report)
	}
	return reply(report)
}

// pay takes the price of reading about units from a caller who is not root. A name
// that is not attached is looked up at systemd, which loads its unit file, so each
// counts as a call. A glob is compared with every attached unit, so it counts as if it
// were sent anew for each of them.
func (r *request) pay(units []string) *dbus.Error {
	if len(units) > maxPublicNames {
		return invalidArgs("%d names were given, at most %d are taken from others than root; none means all", len(units), maxPublicNames)
	}
	attached, globs := r.session.board.size(), 0
	for _, u := range units {
		if attach.IsGlob(u) {
			globs += len(u)
		}
	}
	price := len(units) + globs*attached/bytesPerCall
	switch {
	case price > callBurst:
		return invalidArgs("comparing these globs with %d attached units is too much for others than root; name fewer, or none for all", attached)
	case !r.session.calls.allow(r.uid, price):
		return fail(ErrorTooFast, "too many names asked for by this user; try again in a few seconds")
	}
	return nil
}

func callListProfiles(_ context.Context, r *request) ([]any, *dbus.Error) {
	profiles, _ := r.session.manager.Profiles()
	if profiles == nil {
		profiles = []attach.Profile{}
	}
	if !r.root() {
		profiles = publicProfiles(profiles)
	}
	return reply(profiles)
}

func callListProfileProblems(_ context.Context, r *request) ([]any, *dbus.Error) {
	_, unread := r.session.manager.Profiles()
	problems := []attach.Reason{}
	for _, file := range slices.Sorted(maps.Keys(unread)) {
		why := unread[file]
		if !r.root() {
			// Which file it is, not what it says.
			why = attach.Reason{Code: why.Code, Detail: why.Code.Title(), Where: file}
		}
		problems = append(problems, why)
	}
	return reply(problems)
}

// expensive answers a call that costs something: asked of polkit first, and
// only so many at once. godbus runs each call in a goroutine of its own, so
// that others are answered meanwhile.
func expensive(ctx context.Context, r *request, limit time.Duration, work func(context.Context) (any, error)) ([]any, *dbus.Error) {
	if failed := r.authorize(ctx, ActionInspect); failed != nil {
		return nil, failed
	}
	release, ok := r.session.looking.take(r.uid)
	if !ok {
		return nil, fail(ErrorTooMany, "too many calls are being worked on; wait for one to end")
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := work(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fail(ErrorFailed, "cannot answer within %v", limit)
	case err != nil:
		return nil, fail(ErrorFailed, "%v", err)
	}
	return reply(v)
}

// some makes an empty list of none, which JSON tells apart.
func some(list []attach.Outcome, err error) ([]attach.Outcome, error) {
	if list == nil {
		list = []attach.Outcome{}
	}
	return list, err
}

// reply gives v as one JSON string.
func reply(v any) ([]any, *dbus.Error) {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false) // it is printed as it is
	if err := e.Encode(v); err != nil {
		return nil, fail(ErrorFailed, "cannot write the answer: %v", err)
	}
	text.Truncate(text.Len() - 1) // its line feed
	if text.Len() > maxReply {
		return nil, fail(ErrorTooLarge, "the answer is %d bytes long, more than fits in a message; name fewer units", text.Len())
	}
	return []any{text.String()}, nil
}
