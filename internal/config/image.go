package config

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// Image is the attachment files of a system that does not run. They are told by the
// paths that they have in that system, as the daemon there will know them.
type Image struct {
	root  string
	files *Files
}

// NewImage gives the attachment files below root, which must not lead through a
// symbolic link. They have to belong to the user who asks. options is that of Files.
func NewImage(root string, options attach.OptionNames) *Image {
	i := &Image{root: root, files: &Files{Owner: uint32(os.Geteuid()), Options: options}}
	for _, dir := range DefaultDirs {
		i.files.Dirs = append(i.files.Dirs, filepath.Join(root, dir))
	}
	return i
}

// inside makes a path of this machine one of the image.
func (i *Image) inside(path string) string {
	if rest, ok := strings.CutPrefix(path, strings.TrimSuffix(i.root, "/")+"/"); ok {
		return "/" + rest
	}
	return path
}

// Read is Files' Read.
func (i *Image) Read() attach.Declared {
	d := i.files.Read()
	for k, a := range d.Attachments {
		inside := *a
		inside.Source = i.inside(a.Source)
		d.Attachments[k] = &inside
	}
	broken := map[string]bool{}
	for path := range d.Broken {
		broken[i.inside(path)] = true
	}
	d.Broken = broken
	return d // problems say where the file lies for whoever is to mend it
}

// Write is Files' Write.
func (i *Image) Write(unit string, a attach.Attachment) (string, func() error, error) {
	file, restore, err := i.files.Write(unit, a)
	return i.inside(file), restore, err
}

// Remove is Files' Remove.
func (i *Image) Remove(file string) error { return i.files.Remove(filepath.Join(i.root, file)) }
