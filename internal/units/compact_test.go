package units

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// TestWhatIsKeptLetsGoOfMessages: a unit that is kept must not keep the whole
// message that it was read from. A string that is added to attach.Unit and not to
// compact is found here.
func TestWhatIsKeptLetsGoOfMessages(t *testing.T) {
	message := strings.Repeat("0123456789abcdef", 256)
	from := uintptr(unsafe.Pointer(unsafe.StringData(message)))
	var strs func(v reflect.Value, path string, do func(v reflect.Value, path string))
	strs = func(v reflect.Value, path string, do func(reflect.Value, string)) {
		switch v.Kind() {
		case reflect.String:
			do(v, path)
		case reflect.Struct:
			for i := range v.NumField() {
				strs(v.Field(i), path+"."+v.Type().Field(i).Name, do)
			}
		case reflect.Slice:
			if v.Len() == 0 {
				v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			}
			for i := range v.Len() {
				strs(v.Index(i), path+"[]", do)
			}
		}
	}
	k := &kept{}
	unit, deps := reflect.ValueOf(&k.u).Elem(), reflect.ValueOf(&k.deps).Elem()
	n := 0
	fill := func(v reflect.Value, _ string) { n++; v.SetString(message[n : n+10]) }
	strs(unit, "Unit", fill)
	strs(deps, "deps", fill)
	k.files = []stampedFile{{path: message[3:9]}}

	k.compact(common{})

	check := func(v reflect.Value, path string) {
		if at := uintptr(unsafe.Pointer(unsafe.StringData(v.String()))); at >= from && at < from+uintptr(len(message)) {
			t.Errorf("%s still lies in the message", path)
		}
	}
	strs(unit, "Unit", check)
	strs(deps, "deps", check)
	strs(reflect.ValueOf(&k.files[0].path).Elem(), "files", check)
	if k.u.ID != message[1:11] || k.files[0].path != message[3:9] {
		t.Errorf("compact changed %q and %q", k.u.ID, k.files[0].path)
	}
}

// TestOwnStringsLieTogether: what a unit's strings say stays, and one that is part of
// another takes no room of its own.
func TestOwnStringsLieTogether(t *testing.T) {
	for _, n := range []int{1, manyStrings} { // few, and too many to be compared
		want := []string{"a.service", "", "/etc/systemd/system/a.service.d/50-aaunit.conf", "/etc/systemd/system/a.service", "b", "/etc/systemd/system/a.service.d"}
		for range n {
			want = append(want, "a.service")
		}
		is, own := slices.Clone(want), []*string(nil)
		for i := range is {
			own = append(own, &is[i])
		}
		together(own)
		if !slices.Equal(is, want) {
			t.Errorf("the strings became %q", is)
		}
		place := func(i int) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(is[i]))) }
		if from := place(2); n == 1 && (place(3) != from || place(5) != from || place(0) != from+uintptr(len("/etc/systemd/system/")) || place(4) == place(2)) {
			t.Error("the name of a unit does not lie in the path of its drop-in")
		}
	}
}

// TestCommonStringsAreTheSame: what many units say is there once, and no unit can make the list of
// such words grow without end.
func TestCommonStringsAreTheSame(t *testing.T) {
	w := common{}
	at := func(s string) *byte { return unsafe.StringData(w.one(strings.Clone(s))) }
	if first, again := at("loaded"), at("loaded"); first != again || at("active") == first {
		t.Error("equal words are not the same")
	}
	for i := range 2 * maxCommon {
		w.one(fmt.Sprint("After", i))
	}
	if at(strings.Repeat("x", maxCommonSize+1)); len(w) != maxCommon {
		t.Errorf("%d words are held", len(w))
	}
	if got := common(nil).one("a"); got != "a" {
		t.Errorf("without a list a word becomes %q", got)
	}
}
