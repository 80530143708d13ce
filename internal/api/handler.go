package api

import (
	"context"
	"encoding/xml"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
)

// An iface is one interface as it is served and as introspection shows it: the
// two come from the same table.
type iface struct {
	name       string
	methods    []method
	properties []property
	signals    []signal
}

type method struct {
	name    string
	in, out []param
	// large: the answer grows with what there is on the machine, so that only
	// so many of them are made at once.
	large bool
	// call answers; the arguments have the types of in. What it returns has the
	// types of out.
	call func(ctx context.Context, r *request) ([]any, *dbus.Error)
}

type param struct{ name, typ string }

type property struct {
	name, typ string
	// changes is the EmitsChangedSignal annotation; "" means true, the default.
	changes string
}

type signal struct {
	name string
	args []param
}

func (m method) signature() string {
	var s string
	for _, p := range m.in {
		s += p.typ
	}
	return s
}

// A request is one method call.
type request struct {
	session     *session
	sender      string
	uid         uint32
	interactive bool // the caller allows a question for a password
	path        dbus.ObjectPath
	iface       string // "" the caller did not say
	member      string
	signature   string
	body        []any
	msg         *dbus.Message
}

func (r *request) root() bool { return r.uid == 0 }

// handler finds the method of a message for godbus. It accepts every name and
// leaves the finding to admit and answer.
type handler struct{ session *session }

type (
	target struct {
		session *session
		path    dbus.ObjectPath
	}
	targetIface struct {
		target
		iface string
	}
	targetMethod struct {
		targetIface
		member string
	}
)

var (
	_ dbus.Handler         = handler{}
	_ dbus.Method          = targetMethod{}
	_ dbus.ArgumentDecoder = targetMethod{}
)

func (h handler) LookupObject(path dbus.ObjectPath) (dbus.ServerObject, bool) {
	return target{h.session, path}, true
}

func (t target) LookupInterface(name string) (dbus.Interface, bool) {
	return targetIface{t, name}, true
}

func (t targetIface) LookupMethod(name string) (dbus.Method, bool) {
	return targetMethod{t, name}, true
}

// DecodeArguments keeps the message's values as they came: answer compares
// their signature with the method's, strictly.
func (t targetMethod) DecodeArguments(_ *dbus.Conn, sender string, msg *dbus.Message, body []any) ([]any, error) {
	sig, _ := msg.Headers[dbus.FieldSignature].Value().(dbus.Signature)
	return []any{&request{
		session:     t.session,
		sender:      sender,
		interactive: msg.Flags&dbus.FlagAllowInteractiveAuthorization != 0,
		path:        t.path,
		iface:       t.iface,
		member:      t.member,
		signature:   sig.String(),
		body:        body,
		msg:         msg,
	}}, nil
}

// Call has the answer sent, and gives godbus none to send.
func (t targetMethod) Call(args ...any) ([]any, error) {
	r := args[0].(*request)
	if err := r.session.answer(r); err != nil {
		return nil, err
	}
	return nil, nil
}

func (targetMethod) NumArguments() int     { return 1 }
func (targetMethod) NumReturns() int       { return 0 }
func (targetMethod) ArgumentValue(int) any { return (*request)(nil) }
func (targetMethod) ReturnValue(_ int) any { return nil }

// admit is every call's way in. Nothing of the call has been read but its
// header: it counts, and its method is there, or it is never decoded. It runs
// in the goroutine that reads the connection, one call after the other.
func (s *session) admit(ctx context.Context, h *bus.Header) (failed *dbus.Error) {
	r := &request{session: s, sender: h.Sender, path: h.Path, iface: h.Interface, member: h.Member, signature: h.Signature}
	defer r.caught(&failed)
	if failed := r.identify(ctx); failed != nil {
		return failed
	}
	if !s.calls.allow(r.uid, 1+int(min(h.Size, bus.MaxCall)/bytesPerCall)) {
		return fail(ErrorTooFast, "too many calls by this user; try again in a second")
	}
	if r.iface == peerInterface {
		// godbus answers these, whatever else is in the call.
		if r.signature != "" {
			return invalidArgs("%s takes no arguments", shorten(r.member))
		}
		return nil
	}
	_, failed = s.find(r)
	return failed
}

// answer answers a call that was admitted. Its object may have gone meanwhile.
func (s *session) answer(r *request) (failed *dbus.Error) {
	defer r.caught(&failed)
	ctx := s.conn.Context()
	if s.answering != nil {
		select {
		case s.answering <- struct{}{}:
			defer func() { <-s.answering }()
		default:
			return fail(ErrorTooMany, "too many calls are being answered on this connection; try again when one of them is")
		}
	}
	if failed := r.identify(ctx); failed != nil {
		return failed
	}
	m, failed := s.find(r)
	if failed != nil {
		return failed
	}
	// The introspection of this path lists all units.
	if (m.large || r.path == UnitsPath) && !r.root() {
		release, ok := s.reading.take(r.uid)
		if !ok {
			return fail(ErrorTooMany, "too many calls that read are being answered; try again when one of them is")
		}
		defer release()
	}
	defer s.answered()
	out, failed := m.call(ctx, r)
	if failed == nil {
		r.send(out)
	}
	return failed
}

// caught makes an error of a panic. A request that trips over a bug of ours
// must not take the daemon down: anybody could do it again.
func (r *request) caught(failed **dbus.Error) {
	if v := recover(); v != nil {
		r.session.log.Error("a D-Bus call made the service panic; please report this",
			"member", r.member, "panic", v, "stack", string(debug.Stack()))
		*failed = fail(ErrorFailed, "the service met an error of its own; the journal of aaunitd has it")
	}
}

func (r *request) identify(ctx context.Context) *dbus.Error {
	var err error
	if r.uid, err = r.session.uidOf(ctx, r.sender); err != nil {
		return fail(errorAccessDenied, "cannot tell who the caller is: %v", err)
	}
	return nil
}

// find gives the method of a request, if it takes arguments of these types.
func (s *session) find(r *request) (*method, *dbus.Error) {
	ifaces, found := s.object(r)
	if !found {
		return nil, fail(errorUnknownObject, "there is no object %s", shorten(string(r.path)))
	}
	m, failed := lookup(ifaces, r)
	if failed != nil {
		return nil, failed
	}
	if want := m.signature(); r.signature != want {
		return nil, invalidArgs("%s takes arguments of the types %q, not %q", m.name, want, shorten(r.signature))
	}
	return m, nil
}

// send sends the answer, and returns when it is sent. godbus would do so only
// after the call has returned, and with it everything that bounds it.
func (r *request) send(out []any) {
	if r.msg.Flags&dbus.FlagNoReplyExpected != 0 {
		return
	}
	r.msg.Flags |= dbus.FlagNoReplyExpected // for godbus, which sends an empty answer otherwise
	m := &dbus.Message{
		Type:  dbus.TypeMethodReply,
		Flags: dbus.FlagNoReplyExpected,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(r.msg.Serial()),
		},
		Body: out,
	}
	if r.sender != "" {
		m.Headers[dbus.FieldDestination] = dbus.MakeVariant(r.sender)
	}
	if len(out) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(out...))
	}
	r.session.conn.Send(m, nil)
}

func lookup(ifaces []iface, r *request) (*method, *dbus.Error) {
	known := false
	for i := range ifaces {
		if r.iface != "" && ifaces[i].name != r.iface {
			continue
		}
		known = true
		for j := range ifaces[i].methods {
			if ifaces[i].methods[j].name == r.member {
				return &ifaces[i].methods[j], nil
			}
		}
	}
	if !known {
		return nil, fail(errorUnknownInterface, "object %s has no interface %s", shorten(string(r.path)), shorten(r.iface))
	}
	return nil, fail(errorUnknownMethod, "object %s has no method %s", shorten(string(r.path)), shorten(r.member))
}

// object gives the interfaces of the object at a path, as this caller may see it.
func (s *session) object(r *request) ([]iface, bool) {
	switch {
	case r.path == "/" || r.path == "/org" || r.path == UnitsPath || r.path == OperationsPath:
		return []iface{introspectable}, true
	case r.path == Path:
		return []iface{introspectable, properties, objectManager, managerIface}, true
	case strings.HasPrefix(string(r.path), string(UnitsPath)+"/"):
		unit, ok := unitOf(r.path)
		if ok {
			ok = s.board.get(unit) != nil
		}
		return []iface{introspectable, properties, attachmentIface}, ok
	case strings.HasPrefix(string(r.path), string(OperationsPath)+"/"):
		return []iface{introspectable, properties, operationIface}, s.operations.of(r) != nil
	}
	return nil, false
}

// children lists the objects right below a path, as this caller may see them.
func (s *session) children(r *request) []string {
	switch r.path {
	case "/":
		return []string{"org"}
	case "/org":
		return []string{"aaunit1"}
	case Path:
		return []string{"operation", "unit"}
	case UnitsPath:
		var out []string
		for _, st := range s.board.all() {
			out = append(out, escapeLabel(st.Unit))
		}
		slices.Sort(out)
		return out
	case OperationsPath:
		return s.operations.visible(r)
	}
	return nil
}

// The tables of the standard interfaces. They are variables set in init,
// because introspection reads the table that it is part of.
var introspectable, properties, objectManager iface

func init() {
	introspectable = iface{name: introspectableInterface, methods: []method{
		{name: "Introspect", out: []param{{"xml_data", "s"}}, call: introspection},
	}}
	properties = iface{
		name: propertiesInterface,
		methods: []method{
			{name: "Get", in: []param{{"interface_name", "s"}, {"property_name", "s"}}, out: []param{{"value", "v"}}, call: getProperty},
			{name: "GetAll", in: []param{{"interface_name", "s"}}, out: []param{{"properties", "a{sv}"}}, call: getProperties},
			{name: "Set", in: []param{{"interface_name", "s"}, {"property_name", "s"}, {"value", "v"}}, call: setProperty},
		},
		signals: []signal{{"PropertiesChanged", []param{{"interface_name", "s"}, {"changed_properties", "a{sv}"}, {"invalidated_properties", "as"}}}},
	}
	objectManager = iface{
		name: objectManagerInterface,
		methods: []method{
			{name: "GetManagedObjects", out: []param{{"objects", "a{oa{sa{sv}}}"}}, large: true, call: managedObjects},
		},
		signals: []signal{
			{"InterfacesAdded", []param{{"object", "o"}, {"interfaces", "a{sa{sv}}"}}},
			{"InterfacesRemoved", []param{{"object", "o"}, {"interfaces", "as"}}},
		},
	}
}

func introspection(_ context.Context, r *request) ([]any, *dbus.Error) {
	ifaces, _ := r.session.object(r)
	node := introspect.Node{Interfaces: []introspect.Interface{introspect.PeerData}}
	for _, i := range ifaces {
		node.Interfaces = append(node.Interfaces, i.describe())
	}
	for _, c := range r.session.children(r) {
		node.Children = append(node.Children, introspect.Node{Name: c})
	}
	text, err := xml.MarshalIndent(node, "", " ")
	if err != nil {
		return nil, fail(ErrorFailed, "cannot write the introspection text: %v", err)
	}
	return []any{strings.TrimSpace(introspect.IntrospectDeclarationString) + "\n" + string(text)}, nil
}

func (i iface) describe() introspect.Interface {
	out := introspect.Interface{Name: i.name}
	args := func(in []param, direction string) (args []introspect.Arg) {
		for _, p := range in {
			args = append(args, introspect.Arg{Name: p.name, Type: p.typ, Direction: direction})
		}
		return args
	}
	for _, m := range i.methods {
		out.Methods = append(out.Methods, introspect.Method{Name: m.name, Args: append(args(m.in, "in"), args(m.out, "out")...)})
	}
	for _, p := range i.properties {
		d := introspect.Property{Name: p.name, Type: p.typ, Access: "read"}
		if p.changes != "" {
			d.Annotations = []introspect.Annotation{{Name: "org.freedesktop.DBus.Property.EmitsChangedSignal", Value: p.changes}}
		}
		out.Properties = append(out.Properties, d)
	}
	for _, s := range i.signals {
		out.Signals = append(out.Signals, introspect.Signal{Name: s.name, Args: args(s.args, "")})
	}
	return out
}

// values gives the properties of an interface of the request's object; nil
// where it has no such interface.
func (s *session) values(r *request, name string) map[string]dbus.Variant {
	switch {
	case r.path == Path && name == ManagerInterface:
		return s.managerProperties()
	case name == AttachmentInterface:
		if unit, ok := unitOf(r.path); ok {
			if st := s.board.get(unit); st != nil {
				return attachmentProperties(*st)
			}
		}
	case name == OperationInterface:
		if o := s.operations.of(r); o != nil {
			return o.properties()
		}
	}
	return nil
}

func getProperty(_ context.Context, r *request) ([]any, *dbus.Error) {
	all, err := propertiesOf(r)
	if err != nil {
		return nil, err
	}
	name := r.body[1].(string)
	v, ok := all[name]
	if !ok {
		return nil, fail(errorUnknownProperty, "there is no property %s", shorten(name))
	}
	return []any{v}, nil
}

func getProperties(_ context.Context, r *request) ([]any, *dbus.Error) {
	all, err := propertiesOf(r)
	if err != nil {
		return nil, err
	}
	return []any{all}, nil
}

func setProperty(_ context.Context, r *request) ([]any, *dbus.Error) {
	all, err := propertiesOf(r)
	if err != nil {
		return nil, err
	}
	if name := r.body[1].(string); all[name].Value() == nil {
		return nil, fail(errorUnknownProperty, "there is no property %s", shorten(name))
	}
	return nil, fail(errorReadOnly, "the property is read-only; Attach, Detach, Pause and Resume change things")
}

// propertiesOf answers for the interface that the first argument names. The
// standard interfaces have no properties, and an empty name means all.
func propertiesOf(r *request) (map[string]dbus.Variant, *dbus.Error) {
	name := r.body[0].(string)
	out := map[string]dbus.Variant{}
	known := name == "" || name == peerInterface
	ifaces, _ := r.session.object(r)
	for _, i := range ifaces {
		if name != "" && name != i.name {
			continue
		}
		known = true
		for key, v := range r.session.values(r, i.name) {
			out[key] = v
		}
	}
	if !known {
		return nil, fail(errorUnknownInterface, "object %s has no interface %s", shorten(string(r.path)), shorten(name))
	}
	return out, nil
}

func managedObjects(_ context.Context, r *request) ([]any, *dbus.Error) {
	out := map[dbus.ObjectPath]map[string]map[string]dbus.Variant{}
	for _, st := range r.session.board.all() {
		out[UnitPath(st.Unit)] = interfacesOf(*st)
	}
	return []any{out}, nil
}
