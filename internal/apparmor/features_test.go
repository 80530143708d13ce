package apparmor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// The feature af_unix tells whether the kernel looks at paths of unix sockets; where
// nothing tells of features, that is not known.
func TestUnixPaths(t *testing.T) {
	const dir = "/sys/kernel/security/apparmor/features"
	for _, tt := range []struct {
		name  string
		files []string // below the kernel's features
		text  string   // of a file of features
		want  attach.Tri
	}{
		{name: "Debian 13", files: []string{"network_v8/af_mask", "network/af_mask"}, want: attach.No},
		{name: "Linux 6.17", files: []string{"network_v8/af_mask", "network_v9/af_mask", "network_v9/af_unix/yes"}, want: attach.Yes},
		{name: "Ubuntu", files: []string{"network/af_unix"}, want: attach.Yes},
		{name: "no sockets at all", files: []string{"file/mask"}, want: attach.No},
		{name: "no AppArmor"},
		{name: "a file", text: "file {mask {create read}}\nnetwork_v8 {af_mask {unix inet}\n}\n", want: attach.No},
		{name: "a file of a newer kernel", text: "network_v9 {af_unix {yes\n}\naf_mask {unix inet}\n}\n", want: attach.Yes},
		{name: "a file of something else", text: "hello\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Root: t.TempDir()}
			for _, f := range tt.files {
				path := filepath.Join(o.Root, dir, f)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, nil, 0o444); err != nil {
					t.Fatal(err)
				}
			}
			if tt.text != "" {
				o.Features = filepath.Join(o.Root, "features")
				if err := os.WriteFile(o.Features, []byte(tt.text), 0o444); err != nil {
					t.Fatal(err)
				}
			}
			if got := New(o).UnixPaths(); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}
