package attach

// Facts are what policy is compared with and systemd does not tell: files, and the
// main process as it really is. What is not known is "could not tell".
type Facts struct {
	// NoNewPrivs is the flag of the running main process (proc_pid_status(5)), which
	// settings other than NoNewPrivileges= bring about, too.
	NoNewPrivs Tri `json:"noNewPrivs"`
	// User is the number of the user that the unit runs as; -1 could not tell.
	User int64 `json:"user"`
	// Files are by the path that was asked about.
	Files map[string]File `json:"files,omitempty"`
}

// File is what lies at a path.
type File struct {
	// Path is where it really lies, links followed; a directory's ends with a slash.
	Path  string   `json:"path,omitempty"`
	Kind  FileKind `json:"kind,omitempty"`
	Owner int64    `json:"owner"` // the number of its user; -1 could not tell
	// Interpreter is what the first line of a script names.
	Interpreter string `json:"interpreter,omitempty"`
	// Runs is the program that the interpreter, which is env(1), starts for it.
	Runs string `json:"runs,omitempty"`
}

// FileKind is the kind of a File; "" could not tell.
type FileKind string

// The kinds.
const (
	FileMissing   FileKind = "missing" // there is certainly none
	FileDirectory FileKind = "directory"
	FileCompiled  FileKind = "compiled" // ELF
	FileScript    FileKind = "script"   // its first line names an interpreter
	FileOther     FileKind = "other"
)
