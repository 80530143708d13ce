package rules

import (
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
)

// One answer, from nothing: the text is read, and each pattern made.
func BenchmarkFirstAnswer(b *testing.B) {
	sources := sourcesIn(b, "/etc/apparmor.d")
	q := Question{Class: ClassFile, Path: "/tmp/a", Perm: policydb.Write}
	for b.Loop() {
		text, err := Read(sources, "/etc/apparmor.d/lsb_release", "")
		if err != nil {
			b.Fatal(err)
		}
		text.Granting("lsb_release", q)
	}
}

func BenchmarkAnswer(b *testing.B) {
	text, err := Read(sourcesIn(b, "/etc/apparmor.d"), "/etc/apparmor.d/lsb_release", "")
	if err != nil {
		b.Fatal(err)
	}
	q := Question{Class: ClassFile, Path: "/tmp/a", Perm: policydb.Write}
	for b.Loop() {
		text.Granting("lsb_release", q)
	}
}
