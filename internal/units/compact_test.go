package units

import (
	"reflect"
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

	k.compact()

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
