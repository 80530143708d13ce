package apparmor

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
)

// mistake is a profile with one thing wrong in it. The mark ‸ in a text is
// where the caret has to stand.
type mistake struct {
	name  string
	text  string
	code  string
	help  string            // part of cause or help
	more  map[string]string // other files, below /etc/apparmor.d
	since version           // a parser of this version takes it
}

// in makes a profile of one rule.
func in(rule string) string {
	return "profile x /usr/bin/x {\n  /etc/hosts r,\n  " + rule + "\n}\n"
}

var mistakes = []mistake{
	{name: "socket option", text: in("network inet stream,\n  ‸socket (tcp) options=(setsockopt) level=SOL_TCP optname=(TCP_NODELAY),"), code: "socket-option", help: "section [SocketOptions]: Allow=SOL_TCP:TCP_NODELAY"},
	{name: "socket options, no network", text: in("audit deny ‸socket (tcp)\n    options=(setsockopt) level=SOL_SOCKET\n    optname=(SO_KEEPALIVE, SO_LINGER),"), code: "socket-option", help: "network inet stream, and list the options in the attachment file, in its section [SocketOptions]: Allow=SOL_SOCKET:SO_KEEPALIVE Allow=SOL_SOCKET:SO_LINGER"},
	{name: "socket option by call", text: in("‸setsockopt tcp nodelay,"), code: "socket-option", help: "for example"},
	{name: "socket option in network", text: in("network inet stream ‸optname=TCP_NODELAY,"), code: "socket-option", help: "Allow=SOL_TCP:TCP_NODELAY"},
	{name: "socket option after a missing comma", text: in("network inet stream\n  ‸socket (udp) optname=(IP_TTL),"), code: "socket-option", help: "Allow=SOL_IP:IP_TTL"},

	{name: "comma: file", text: in("/etc/passwd r‸\n  /etc/group r,"), code: "missing-comma", help: "/etc/passwd r,"},
	{name: "comma: capability", text: in("capability chown‸\n  network inet stream,"), code: "missing-comma", help: "capability chown,"},
	{name: "comma: comment and empty lines", text: in("network inet stream‸\n\n  # and a comment\n  capability chown,"), code: "missing-comma"},
	{name: "comma: last rule", text: in("/etc/passwd r‸"), code: "missing-comma"},
	{name: "comma: deny", text: in("deny network unix‸ # no sockets\n  /a r,"), code: "missing-comma", help: "deny network unix,"},
	{name: "comma: signal", text: in("signal send‸\n  ptrace read,"), code: "missing-comma"},
	{name: "comma: owner", text: in("owner /a/** rw‸\n  owner /b r,"), code: "missing-comma"},
	{name: "comma: all capabilities", text: in("capability‸\n  /b r,"), code: "missing-comma"},
	{name: "comma: limit", text: in("set rlimit nofile <= 1024‸\n  /b r,"), code: "missing-comma", help: "set rlimit nofile <= 1024,"},
	{name: "comma: transition", text: in("/bin/sh Px -> other‸\n  /b r,"), code: "missing-comma", help: "/bin/sh Px -> other,"},
	{name: "comma: windows", text: "profile x {\r\n  /a r‸\r\n  network inet,\r\n}\r\n", code: "missing-comma"},
	{name: "comma: abi", text: "abi <abi/3.0>‸\nprofile x {\n}\n", code: "missing-comma", help: "abi <abi/3.0>,", more: map[string]string{"abi/3.0": "query {\n}\n"}},
	{name: "comma: alias", text: "alias /a -> /b‸\nprofile x {\n}\n", code: "missing-comma", help: "alias /a -> /b,"},
	{name: "comma: before an include", text: in("/bin/sh ix‸\n  include <abstractions/mine>"), code: "missing-comma", more: map[string]string{"abstractions/mine": "# rules\n/b r,\n"}},
	{name: "comma: in an include", text: in("include <abstractions/mine>"), code: "missing-comma", more: map[string]string{"abstractions/mine": "/a r‸\n/b r,\n"}},
	{name: "comma: at the end of an include", text: in("include <abstractions/mine>\n  network inet,"), code: "missing-comma", more: map[string]string{"abstractions/mine": "/b r,\n/a r‸\n"}},
	{name: "semicolon", text: in("/etc/passwd r‸;"), code: "semicolon"},
	{name: "semicolon after a capability", text: in("capability chown‸;\n  /a r,"), code: "semicolon"},
	{name: "semicolon after a target", text: in("/bin/sh Px -> other‸;\n  /a r,"), code: "semicolon"},
	{name: "semicolon before an include", text: in("/bin/sh Cx -> other‸;\n  include <abstractions/mine>"), code: "semicolon", more: map[string]string{"abstractions/mine": "/b r,\n"}},
	{name: "semicolon apart", text: in(`unix peer=(addr="@/a") ‸;`), code: "semicolon"},
	{name: "comma: value with braces", text: in("dbus send bus=session\n    member={Hello,AddMatch}\n    peer=(name=org.freedesktop.DBus)‸\n  /a r,"), code: "missing-comma"},
	{name: "empty rule", text: in("/a r,‸,"), code: "extra-comma"},

	{name: "brace: end", text: "profile x ‸{\n  /etc/passwd r,\n", code: "missing-brace", help: "never closed"},
	{name: "brace: child", text: "profile x {\n  profile child ‸{\n    /a r,\n\n}\nprofile y {\n  /b r,\n}\n", code: "missing-brace"},
	{name: "brace: extra", text: "profile x {\n  /a r,\n}\n‸}\n", code: "extra-brace"},
	{name: "brace: head", text: "profile x /usr/bin/x‸\n  /etc/passwd r,\n}\n", code: "missing-brace", help: "profile x /usr/bin/x {"},
	{name: "brace: hat", text: in("^h‸,"), code: "missing-brace", help: "^h { … }"},
	{name: "brace: pattern", text: in("/etc/‸{a,b r,"), code: "pattern", help: "is not closed with }"},
	{name: "brace: bracket", text: in("/etc/‸[ab r,"), code: "pattern", help: "is not closed with ]"},
	{name: "brace: one thing", text: in("/etc/‸{a} r,"), code: "pattern", help: "one thing only"},
	{name: "brace: pattern closed", text: in("/etc/a‸}b r,"), code: "pattern", help: "never opened"},
	{name: "outside", text: "‸/etc/passwd r,\nprofile x {\n}\n", code: "outside"},
	{name: "outside after a brace", text: "profile x {\n  /a r,\n}\n  ‸network inet,\n}\n", code: "outside"},

	{name: "include", text: in("include ‸<abstractions/bse>"), code: "missing-include", help: "Did you mean include <abstractions/base>? If the file may be missing, write: include if exists <abstractions/bse>", more: map[string]string{"abstractions/base": "/b r,\n"}},
	{name: "include of old", text: "#include ‸<tunables/globl>\nprofile x {\n}\n", code: "missing-include", help: "include <tunables/global>", more: map[string]string{"tunables/global": "@{HOME}=/home/*/\n"}},
	{name: "include in a wrong directory", text: in("include ‸<abstraction/base>"), code: "missing-include", help: "include <abstractions/base>", more: map[string]string{"abstractions/base": "/b r,\n"}},
	{name: "include by its name alone", text: in("include ‸<base>"), code: "missing-include", help: "include <abstractions/base>", more: map[string]string{"abstractions/base": "/b r,\n"}},
	{name: "include by path", text: in(`include ‸"/etc/apparmor.d/abstractions/bas"`), code: "missing-include", help: "there is no file /etc/apparmor.d/abstractions/bas", more: map[string]string{"abstractions/base": "/b r,\n"}},
	{name: "include in an include", text: in("include <abstractions/mine>"), code: "missing-include", more: map[string]string{"abstractions/mine": "/b r,\ninclude ‸<abstractions/theirs>\n"}},
	{name: "include of nothing like it", text: in("include ‸<abstractions/zzzzz>"), code: "missing-include", help: "install the package"},
	{name: "include not closed", text: in("include ‸<abstractions/base"), code: "character", help: "is not closed with >"},
	{name: "abi", text: "abi ‸<abi/9.0>,\nprofile x {\n}\n", code: "missing-abi", help: "abi <abi/4.0>", more: map[string]string{"abi/4.0": "query {\n}\n"}},
	{name: "abi without a directory", text: "abi ‸3.0,\nprofile x {\n}\n", code: "missing-abi", help: "ls /etc/apparmor.d/abi"},

	{name: "file name as name", text: "‸usr.local.bin.agent {\n  /a r,\n}\n", code: "file-name-as-name", help: "profile NAME /usr/local/bin/agent {"},
	{name: "name with a space", text: "profile my ‸agent {\n  /a r,\n}\n", code: "space-in-name", help: "profile my-agent {"},
	{name: "hat with a space", text: in("^my ‸hat {\n    /a r,\n  }"), code: "space-in-name", help: "hat my-hat {"},
	{name: "no name", text: "‸profile {\n  /a r,\n}\n", code: "no-name"},
	{name: "hat without a name", text: in("‸hat {\n    /a r,\n  }"), code: "no-name"},
	{name: "no word profile", text: "‸agent {\n  /a r,\n}\n", code: "no-profile-word", help: "profile agent {"},
	{name: "profile misspelt", text: "‸profle x {\n  /a r,\n}\n", code: "unknown-word", help: "Did you mean profile?"},
	{name: "program without a slash", text: "profile x ‸usr/bin/x {\n  /a r,\n}\n", code: "relative-path", help: "/usr/bin/x"},
	{name: "program with a space", text: "profile x ‸/usr/bin/my agent {\n  /a r,\n}\n", code: "space-in-path", help: `"/usr/bin/my agent"`},
	{name: "path as name with a space", text: "profile ‸/opt/my agent/run {\n  /a r,\n}\n", code: "space-in-path", help: `"/opt/my agent/run"`},
	{name: "profile twice", text: "profile x {\n}\nprofile y {\n}\nprofile ‸x {\n}\n", code: "duplicate-profile", help: "the name x is taken by the profile in line 1."},
	{name: "child twice", text: in("profile a { }\n  profile ‸a { }"), code: "duplicate-profile", help: "in line 3"},

	{name: "placeholder variable", text: in("‸@{FILL_ME_IN}/** r,"), code: "placeholder", help: "nobody has filled in"},
	{name: "placeholder marks", text: in("‸@@TODO@@ r,"), code: "placeholder", help: "@@TODO@@"},
	{name: "placeholder brackets", text: in("‸<path of the data> r,"), code: "placeholder", help: "<path of the data>"},
	{name: "variable", text: in("/srv/‸@{DATA}/** r,"), code: "undefined-variable", help: "@{DATA} = /some/path"},
	{name: "variable of an attachment", text: "profile x ‸@{EXE} {\n}\n", code: "undefined-variable"},
	{name: "variable in quotes", text: in(`"/srv/‸@{DATA}/a b" r,`), code: "undefined-variable"},
	{name: "variable in an include", text: in("include <abstractions/mine>"), code: "undefined-variable", help: "include <tunables/global>", more: map[string]string{"abstractions/mine": "# @{HOME} here is no use of it\n‸@{HOME}/.mine r,\n"}},
	{name: "variable misspelt", text: "@{AGENT_DATA}=/srv\n" + in("‸@{AGNET_DATA}/** r,"), code: "undefined-variable", help: "Did you mean @{AGENT_DATA}?"},
	{name: "variable in a variable", text: "@{A} = ‸@{B}/b\nprofile x {\n  @{A} r,\n}\n", code: "undefined-variable"},
	{name: "variable in itself", text: "‸@{A} = @{A}/b\nprofile x {\n  @{A} r,\n}\n", code: "recursive-variable", help: "@{A} += value"},
	{name: "variable twice", text: "@{A}=/a\n‸@{A}=/b\nprofile x {\n  @{A} r,\n}\n", code: "variable-set-twice", help: "from line 1 of /etc/apparmor.d/x"},
	{name: "variable of an include twice", text: "include <tunables/mine>\n‸@{A}=/b\nprofile x {\n  @{A} r,\n}\n", code: "variable-set-twice", help: "from line 1 of /etc/apparmor.d/tunables/mine", more: map[string]string{"tunables/mine": "@{A}=/a\n"}},
	{name: "variable added to nothing", text: "‸@{HOME}+=/a\nprofile x {\n  @{HOME} r,\n}\n", code: "undefined-variable", help: "behind include <tunables/global>"},
	{name: "variable with a comma", text: "@{A}=/a‸,\nprofile x {\n  @{A} r,\n}\n", code: "comma-after-variable"},
	{name: "variable without =", text: "@{A}‸ /a\nprofile x {\n  @{A} r,\n}\n", code: "variable", help: "Write: @{A} = value"},
	{name: "variable without a value", text: "@{A}=‸\nprofile x {\n  @{A} r,\n}\n", code: "variable", help: "no value"},
	{name: "variable without marks", text: "‸A = /a\nprofile x {\n  @{A} r,\n}\n", code: "variable", help: "@{A} = value"},
	{name: "variable in a profile", text: in("‸@{A}=/a\n  @{A} r,"), code: "variable", help: "outside the braces"},
	{name: "variable with a bad name", text: "‸@{A-B}=/a\nprofile x {\n  @{A-B} r,\n}\n", code: "character", help: "letters, digits and _ only"},
	{name: "shell variable", text: in("‸$HOME/a r,"), code: "shell-variable", help: "@{HOME}"},
	{name: "shell variable in braces", text: in("‸${HOME}/a r,"), code: "shell-variable", help: "@{HOME}"},
	{name: "boolean", text: in("if ‸$foo {\n    /a r,\n  }"), code: "undefined-variable", help: "$foo = true"},
	{name: "home", text: in("‸~/a r,"), code: "character", help: "@{HOME}"},

	{name: "word: network", text: in("‸netwrk inet stream,"), code: "unknown-word", help: "Did you mean network?"},
	{name: "word: capability", text: in("‸capabilty chown,"), code: "unknown-word", help: "Did you mean capability?"},
	{name: "word: capital", text: in("‸Network inet stream,"), code: "unknown-word", help: "Did you mean network?"},
	{name: "word: deny", text: in("‸denny /a r,"), code: "unknown-word", help: "Did you mean deny?"},
	{name: "word: owner", text: in("deny ‸own /a r,"), code: "unknown-word", help: "Did you mean owner?"},
	{name: "word: plural", text: in("‸signals send,"), code: "unknown-word", help: "Did you mean signal?"},
	{name: "word: abi", text: "‸ab <abi/3.0>,\nprofile x {\n}\n", code: "unknown-word", help: "Did you mean abi?"},
	{name: "word: include", text: in("‸inlcude <abstractions/base>"), code: "unknown-word", help: "Did you mean include?"},
	{name: "word: none", text: in("‸foo bar baz,"), code: "unknown-word", help: "A rule begins with a path"},
	{name: "word: quiet", text: in("‸quiet /a r,"), code: "unknown-word"},
	{name: "word: order", text: in("deny ‸audit /a r,"), code: "word-order"},
	{name: "word: owner of a capability", text: in("‸owner capability chown,"), code: "owner"},
	{name: "word: rlimit", text: in("‸rlimit nofile <= 1024,"), code: "unknown-word", help: "set rlimit nofile <= 1024,"},

	{name: "permission", text: in("/etc/passwd rw‸z,"), code: "permissions", help: "no permission z"},
	{name: "permission: word", text: in("/etc/passwd ‸read,"), code: "permissions", help: "Write r."},
	{name: "permission: word in front", text: in("allow ‸read /etc/passwd,"), code: "permissions", help: "Write r."},
	{name: "permission: word behind file", text: in("file ‸read /etc/passwd,"), code: "permissions", help: "Write r."},
	{name: "permission: numbers", text: in("/a ‸644,"), code: "permissions", help: "chmod"},
	{name: "permission: none", text: in("/a‸,"), code: "no-permissions"},
	{name: "permission: alone", text: in("‸rw, /a"), code: "no-path"},
	{name: "permission: apart", text: in("/a r ‸w,"), code: "permissions", help: "together: rw"},
	{name: "permission: listed", text: in("/a/** r‸,w,"), code: "list", help: "/a/** rw,"},
	{name: "permission: parentheses", text: in("/a ‸(r),"), code: "permissions"},
	{name: "permission: p", text: in("/bin/sh ‸p,"), code: "permissions", help: "in front of x"},
	{name: "permission: a and w", text: in("/a ‸wa,"), code: "append-write"},
	{name: "permission: x", text: in("/bin/sh ‸rx,"), code: "exec-bare", help: "Write rix"},
	{name: "permission: two of x", text: in("/bin/sh ‸mrUXix,"), code: "exec-conflict"},
	{name: "permission: x denied", text: in("deny /bin/sh ‸Ux,"), code: "exec-denied"},
	{name: "permission: unsafe", text: in("‸unsafe /a r,"), code: "unsafe"},
	{name: "conflict", text: in("/bin/sh ix,\n  ‸/bin/sh Px,"), code: "exec-conflict", help: "Px here, and ix in line 3"},
	{name: "conflict of patterns", text: in("/bin/* ix,\n  ‸/bin/s* Ux,"), code: "exec-conflict", help: "Ux here, and ix in line 3"},
	{name: "conflict of targets", text: in("/bin/sh Cx -> a,\n  ‸/bin/sh Cx -> b,\n  profile a {}\n  profile b {}"), code: "exec-conflict", help: "Cx -> b here"},
	{name: "conflict with an include", text: in("include <abstractions/mine>\n  ‸/bin/sh ix,"), code: "exec-conflict", help: "Px in line 1 of /etc/apparmor.d/abstractions/mine", more: map[string]string{"abstractions/mine": "/bin/sh Px,\n"}},

	{name: "capability", text: in("capability ‸chwn,"), code: "unknown-capability", help: "Did you mean chown?"},
	{name: "capability of C", text: in("capability ‸CAP_NET_ADMIN,"), code: "unknown-capability", help: "Did you mean net_admin?"},
	{name: "capability with a dash", text: in("capability ‸net-bind-service,"), code: "unknown-capability", help: "Did you mean net_bind_service?"},
	{name: "capability: unlike any", text: in("capability bpf ‸frobnicate,"), code: "unknown-capability"},
	{name: "capability: comma", text: in("capability chown‸, kill,"), code: "list", help: "capability chown kill,"},
	{name: "capability: parentheses", text: in("capability ‸(chown kill),"), code: "list", help: "capability chown kill"},
	{name: "capability: variable", text: in("capability ‸@{CAPS},"), code: "unknown-capability"},

	{name: "network: ipv4", text: in("network ‸ipv4 stream,"), code: "unknown-network", help: "Did you mean inet?"},
	{name: "network: misspelt", text: in("network inet ‸sream,"), code: "unknown-network", help: "Did you mean stream?"},
	{name: "network: of C", text: in("network ‸AF_INET6,"), code: "unknown-network", help: "Did you mean inet6?"},
	{name: "network: type of C", text: in("network inet ‸SOCK_STREAM,"), code: "unknown-network", help: "Did you mean stream?"},
	{name: "network: two families", text: in("network ‸inet netlink,"), code: "unknown-network", help: "do not go together"},
	{name: "network: list", text: in("network inet‸, inet6,"), code: "list", help: "a rule for each"},
	{name: "network: parentheses", text: in("network ‸(inet inet6) stream,"), code: "list", help: "a rule for each"},
	{name: "network: port", text: in("network inet stream ‸443,"), code: "network-address", help: "IPAddressAllow="},
	{name: "network: address", text: in("network inet stream ‸to 10.0.0.1,"), code: "network-address", help: "IPAddressAllow="},
	{name: "unix: permission", text: in("unix (‸conect) type=stream,"), code: "unknown-word", help: "Did you mean connect?"},
	{name: "unix: type", text: in("unix type=‸strem,"), code: "unknown-network", help: "Did you mean stream?"},
	{name: "unix: bare type", text: in("unix ‸stream,"), code: "unknown-word", help: "type=stream"},
	{name: "signal", text: in("signal set=(‸trem),"), code: "unknown-signal", help: "Did you mean term?"},
	{name: "signal: word", text: in("signal ‸sned,"), code: "unknown-word", help: "Did you mean send?"},
	{name: "signal: condition", text: in("signal send set=term ‸peeer=y,"), code: "unknown-word", help: "Did you mean peer?"},
	{name: "ptrace", text: in("ptrace ‸raed,"), code: "unknown-word", help: "Did you mean read?"},
	{name: "dbus", text: in("dbus ‸sned bus=system,"), code: "unknown-word", help: "Did you mean send?"},
	{name: "dbus: condition", text: in("dbus send bus=system ‸pth=/a,"), code: "unknown-word", help: "Did you mean path?"},
	{name: "mount: option", text: in("mount options=(rw, ‸bnd) /a -> /b,"), code: "unknown-mount-option", help: "Did you mean bind?"},
	{name: "mount: condition", text: in("mount ‸fstyp=ext4 /a -> /b,"), code: "unknown-word", help: "Did you mean fstype?"},
	{name: "limit", text: in("set rlimit ‸nofiles <= 1024,"), code: "unknown-limit", help: "Did you mean nofile?"},
	{name: "limit: equals", text: in("set rlimit nofile ‸= 1024,"), code: "character", help: "<="},
	{name: "limit: unit", text: in("set rlimit cpu ‸<= 5 parsecs,"), code: "limit-value"},
	{name: "alias", text: "alias /a ‸/b,\nprofile x {\n}\n", code: "missing-arrow"},
	{name: "link", text: in("link /a‸,"), code: "missing-arrow"},

	{name: "space in a path", text: in("‸/srv/my files/** r,"), code: "space-in-path", help: `"/srv/my files/**" r,`},
	{name: "space in an alternation", text: in("‸/{,usr /}bin/sh r,"), code: "space-in-path"},
	{name: "quote not closed", text: in(`‸"/srv/my files/** r,`), code: "character", help: "is not closed"},
	{name: "single quotes", text: in("‸'/srv/my files/**' r,"), code: "character", help: "double quotes"},
	{name: "typographic quotes", text: in("‸“/srv/my files/**” r,"), code: "character", help: "straight double quotes"},
	{name: "no-break space", text: in("‸\u00a0/a r,"), code: "character", help: "no-break space"},
	{name: "relative path", text: in("‸etc/passwd r,"), code: "relative-path", help: "/etc/passwd"},
	{name: "relative pattern", text: in("‸*.conf r,"), code: "character", help: "does not begin with a slash"},
	{name: "relative alternation", text: in("‸{usr/,}bin/sh ix,"), code: "relative-path", help: "/{usr/,}bin/sh"},
	{name: "comment of C", text: in("‸// a comment"), code: "comment", help: "begins with #"},
	{name: "unit file", text: "‸[Service]\nExecStart=/x\n", code: "not-a-profile"},
	{name: "not a text", text: "‸\x00\x01\x02", code: "not-text"},
	{name: "tabs", text: in("\t\tnetwork\t‸inét stream,"), code: "unknown-network", help: "inét"},

	{name: "flag", text: "profile x flags=(‸complan) {\n}\n", code: "unknown-flag", help: "Did you mean complain?"},
	{name: "flag: second", text: "profile x flags=(complain, ‸attach_disconected) {\n}\n", code: "unknown-flag", help: "Did you mean attach_disconnected?"},
	{name: "flag: two modes", text: "profile x flags=(enforce, ‸complain) {\n}\n", code: "flag-conflict"},
	{name: "flag: no list", text: "profile x ‸flags=complain {\n}\n", code: "flags", help: "flags=(complain)"},
	{name: "flag: no equals sign", text: "profile x ‸flags complain {\n}\n", code: "flags", help: "flags=(complain)"},
	{name: "flag: empty", text: "profile x ‸flags=() {\n}\n", code: "flags"},

	{name: "new: userns", text: in("‸userns,"), code: "too-new", help: "userns came with AppArmor 4.0", since: version{4, 0}},
	{name: "new: userns create", text: in("allow ‸userns create,"), code: "too-new", help: "4.0", since: version{4, 0}},
	{name: "new: io_uring", text: in("‸io_uring,"), code: "too-new", help: "4.0", since: version{4, 0}},
	{name: "new: mqueue", text: in("‸mqueue r type=posix /a,"), code: "too-new", help: "4.0", since: version{4, 0}},
	{name: "new: all", text: in("‸all,"), code: "too-new", help: "4.0", since: version{4, 0}},
	{name: "new: priority", text: in("‸priority=5 /a r,"), code: "too-new", help: "4.1", since: version{4, 1}},
	{name: "new: prompt", text: in("‸prompt /a r,"), code: "too-new", help: "4.1", since: version{4, 1}},
	{name: "new: address", text: in("network inet stream ‸ip=127.0.0.1 port=80,"), code: "too-new", help: "4.0", since: version{4, 0}},
	{name: "new: flag", text: "profile x flags=(‸default_allow) {\n}\n", code: "too-new", help: "4.0", since: version{4, 0}},
	{name: "new: error", text: "profile x flags=(‸error=EPERM) {\n}\n", code: "too-new", help: "4.1", since: version{4, 1}},
}

// put writes the files of a mistake and says where the caret belongs.
func (m mistake) put(t *testing.T, write func(file, text string)) (file string, line, column int) {
	const mark = "‸"
	files := map[string]string{"x": m.text}
	for f, text := range m.more {
		files[f] = text
	}
	for f, text := range files {
		if before, behind, ok := strings.Cut(text, mark); ok {
			file, line = profileDir+"/"+f, 1+strings.Count(before, "\n")
			column = 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
			text = before + behind
		}
		write(profileDir+"/"+f, text)
	}
	if file == "" {
		t.Fatalf("%s: no mark in it", m.name)
	}
	return file, line, column
}

func (m mistake) judge(t *testing.T, d Diagnosis, file string, line, column int) {
	t.Helper()
	if d.Code != m.code || d.File != file || d.Line != line || d.Column != column || !strings.Contains(d.Cause+" "+d.Help, m.help) || d.Next == "" || d.Says == "" {
		caret := strings.Repeat(" ", max(0, d.Column-1)) + "^"
		t.Errorf("want %s at %s:%d:%d with %q\n%+v\n%s\n%s", m.code, file, line, column, m.help, d, d.Text, caret)
	}
	if strings.Contains(d.Cause+d.Help, "%!") {
		t.Errorf("%q %q", d.Cause, d.Help)
	}
}

// The parser that is installed is asked: what it says of each mistake leads to
// the place and to a way out.
func TestDiagnose(t *testing.T) {
	probe := newHost(t)
	installed := parseVersion(probe.parserVersion(ctx(t)))
	if installed == (version{}) {
		t.Fatal("the parser does not say its version")
	}
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			h := newHost(t)
			file, line, column := m.put(t, func(f, text string) { h.write(f, text) })
			src, err := h.newReader().source(profileDir + "/x")
			if err != nil {
				t.Fatal(err)
			}
			_, errs := h.each(ctx(t), []*source{src}, cutBlobs, "--skip-kernel-load", "--skip-cache", "--stdout")
			var ce *compileError
			if !errors.As(errs[0], &ce) {
				if m.since != (version{}) && !installed.before(m.since) {
					return
				}
				t.Fatalf("the parser takes it: %v", errs[0])
			}
			m.judge(t, ce.found, file, line, column)
			r := problem(src.file, errs[0])
			if r.Where != fmt.Sprintf("%s:%d", file, line) || r.Excerpt.Line != line || r.Excerpt.Column == 0 || !strings.HasPrefix(r.Detail, "cannot compile "+src.file+":") || !strings.Contains(r.Detail, r.Where+": ") || r.Next != ce.found.Next {
				t.Errorf("reason %+v", r)
			}
			if strings.Contains(fmt.Sprintf("%+v", r), h.opt.Scratch) {
				t.Errorf("the reason names the copy: %+v", r)
			}
		})
	}
}

var recordFrom = flag.String("record", "", "a parser whose words on the mistakes are written to testdata/diagnose")

// recorded is what a parser printed: its version, and by mistake what it said.
type recorded struct {
	Version string            `json:"version"`
	Said    map[string]string `json:"said"`
}

// What the parser of Debian 13 said of the same mistakes leads to the same
// places. It was recorded with -record, from the package apparmor 4.1.0-1.
func TestDiagnoseRecorded(t *testing.T) {
	const name = "testdata/diagnose/4.1.0.json"
	if *recordFrom != "" {
		rec := recorded{Said: map[string]string{}}
		for _, m := range mistakes {
			h := newHost(t, *recordFrom)
			m.put(t, func(f, text string) { h.write(f, text) })
			src, err := h.newReader().source(profileDir + "/x")
			if err != nil {
				t.Fatal(err)
			}
			c, err := h.copyTree()
			if err != nil {
				t.Fatal(err)
			}
			p, err := c.add(src)
			if err != nil {
				t.Fatal(err)
			}
			out, err := h.parse(ctx(t), c, 1, "--skip-kernel-load", "--skip-cache", "--stdout", p)
			if err != nil {
				t.Fatal(err)
			}
			rec.Version = h.parserVersion(ctx(t))
			if out.err != nil || strings.Contains(string(out.stderr), "parser error") {
				rec.Said[m.name] = c.original(string(out.stderr))
			}
			c.remove()
		}
		b, err := json.MarshalIndent(rec, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var rec recorded
	if err := json.Unmarshal(b, &rec); err != nil {
		t.Fatal(err)
	}
	v := parseVersion(rec.Version)
	if v != (version{4, 1}) {
		t.Fatalf("recorded from %q", rec.Version)
	}
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			text, ok := rec.Said[m.name]
			if takes := m.since != (version{}) && !v.before(m.since); takes == ok {
				t.Fatalf("recorded: %v, %q", ok, text)
			} else if takes {
				return
			}
			h := newHost(t)
			file, line, column := m.put(t, func(f, text string) { h.write(f, text) })
			src, err := h.newReader().source(profileDir + "/x")
			if err != nil {
				t.Fatal(err)
			}
			m.judge(t, newCompileError(src, text, errors.New("exit status 1"), rec.Version).found, file, line, column)
		})
	}
	for name := range rec.Said {
		if !slices.ContainsFunc(mistakes, func(m mistake) bool { return m.name == name }) {
			t.Errorf("%q was recorded and is no mistake any more: record anew", name)
		}
	}
}

// What no rule knows is repeated in the parser's words, with the line.
func TestDiagnoseUnknown(t *testing.T) {
	src := map[string][]byte{"/etc/apparmor.d/x": []byte("profile x {\n  /a r,\n}\n")}
	for _, c := range []struct {
		said string
		line int
		want string
	}{
		{"AppArmor parser error for /etc/apparmor.d/x in profile /etc/apparmor.d/x at line 2: something new", 2, "gave up here"},
		{"AppArmor parser error for /etc/apparmor.d/x in profile /etc/apparmor.d/x at line 99: something new", 99, "gave up here"},
		{"AppArmor parser error for /etc/apparmor.d/x in profile /etc/apparmor.d/x at line 2: syntax error, unexpected TOK_FOO, expecting TOK_MODE or TOK_OPEN", 2, "did not expect the word foo here; it looked for permissions such as r or rw or an opening brace {"},
		{"something without a place", 0, "names no line"},
	} {
		d := Diagnose(Said{File: "/etc/apparmor.d/x", Text: c.said, Sources: src})
		if d.Code != "other" || d.File != "/etc/apparmor.d/x" || d.Line != c.line || !strings.Contains(d.Cause, c.want) || !strings.Contains(c.said, d.Says) || d.Says == "" {
			t.Errorf("%q gives %+v", c.said, d)
		}
	}
	if d := Diagnose(Said{File: "/x", Text: "Cache read/write disabled: interface file missing.\n"}); d.Code != "" {
		t.Errorf("noise gives %+v", d)
	}
}

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{"netwrok": "network", "sginal": "signal", "cap": "capability", "zzzzzz": "", "FILE": "file", "": "", "x": ""} {
		if got := nearest(word, ruleWords); got != want {
			t.Errorf("%q is taken for %q, want %q", word, got, want)
		}
	}
	for s, want := range map[string]version{"AppArmor parser version 3.0.8": {3, 0}, "AppArmor parser version 4.1.0~beta5": {4, 1}, "AppArmor parser version 5.0": {5, 0}, "": {}, "version x.y": {}} {
		if got := parseVersion(s); got != want {
			t.Errorf("%q is %v, want %v", s, got, want)
		}
	}
}

// Whatever the parser says about whatever text, the diagnosis is fit to be
// shown and points into the text.
func FuzzDiagnose(f *testing.F) {
	for _, m := range mistakes {
		f.Add("AppArmor parser error for /etc/apparmor.d/x in profile /etc/apparmor.d/x at line 3: syntax error, unexpected TOK_ID, expecting TOK_MODE\n", strings.ReplaceAll(m.text, "‸", ""), "")
	}
	b, err := os.ReadFile("testdata/diagnose/4.1.0.json")
	if err != nil {
		f.Fatal(err)
	}
	var rec recorded
	if err := json.Unmarshal(b, &rec); err != nil {
		f.Fatal(err)
	}
	for _, m := range mistakes {
		f.Add(rec.Said[m.name], strings.ReplaceAll(m.text, "‸", ""), "include <tunables/global>\n/a r\n")
	}
	f.Fuzz(func(t *testing.T, said, text, included string) {
		const file, other = "/etc/apparmor.d/x", "/etc/apparmor.d/abstractions/mine"
		in := Said{File: file, Text: said, Sources: map[string][]byte{file: []byte(text), other: []byte(included)}, Version: "AppArmor parser version 3.0.8",
			Beside: []string{other, "/etc/apparmor.d/tunables/global"}}
		d := Diagnose(in)
		if d.Code == "" {
			return
		}
		if d.Cause == "" || d.Next == "" || d.Says == "" || d.File == "" || d.Line < 0 || d.Column < 0 {
			t.Errorf("incomplete: %+v", d)
		}
		for _, s := range []string{d.Cause, d.Help, d.Says} {
			if len(s) > 900 || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }) {
				t.Errorf("not fit to be shown: %q", s)
			}
		}
		if d.Text != "" {
			lines := strings.Split(string(in.Sources[d.File]), "\n")
			if d.Line < 1 || d.Line > len(lines) || strings.TrimSuffix(lines[d.Line-1], "\r") != d.Text || d.Column > utf8.RuneCountInString(d.Text)+1 {
				t.Errorf("line %d column %d of %s is not in %q", d.Line, d.Column, d.File, d.Text)
			}
		}
		r := d.reason(attach.Because(attach.ProfileBroken, "%s", d))
		if n := utf8.RuneCountInString(r.Excerpt.Text); n > 250 || r.Excerpt.Column > n+1 {
			t.Errorf("excerpt %+v", r.Excerpt)
		}
	})
}
