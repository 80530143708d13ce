package units

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// What is packed is what is unpacked: of any unit, with every field that one has. A
// field of a kind that pack does not know is found here.
func TestPack(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		if _, ok := v.Interface().(time.Time); ok {
			if r.IntN(2) == 0 {
				v.Set(reflect.ValueOf(time.Unix(r.Int64N(1<<33), r.Int64N(1e9)).UTC()))
			}
			return
		}
		switch v.Kind() {
		case reflect.String:
			text := make([]byte, r.IntN(300))
			for i := range text {
				text[i] = byte(r.Uint32())
			}
			v.SetString(string(text))
		case reflect.Bool:
			v.SetBool(r.IntN(2) == 0)
		case reflect.Int, reflect.Int64:
			v.SetInt(int64(r.Uint64()))
		case reflect.Int8, reflect.Int32:
			v.SetInt(int64(int8(r.Uint32())))
		case reflect.Uint8, reflect.Uint32:
			v.SetUint(uint64(uint8(r.Uint32())))
		case reflect.Uint64:
			v.SetUint(r.Uint64())
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		case reflect.Array:
			for i := range v.Len() {
				fill(v.Index(i))
			}
		case reflect.Slice:
			if n := r.IntN(4); n > 0 { // nil, empty, one, two
				v.Set(reflect.MakeSlice(v.Type(), n-1, n-1))
				for i := range v.Len() {
					fill(v.Index(i))
				}
			}
		case reflect.Pointer:
			if r.IntN(2) == 0 {
				v.Set(reflect.New(v.Type().Elem()))
				fill(v.Elem())
			}
		default:
			t.Fatalf("a unit has a %s", v.Type())
		}
	}
	for range 200 {
		k := &kept{}
		fill(reflect.ValueOf(&k.content).Elem())
		packed := k.pack()
		if !reflect.DeepEqual(packed.content, content{}) {
			t.Fatal("what is packed is kept beside it too")
		}
		if got := packed.unpack(); !reflect.DeepEqual(got.content, k.content) {
			t.Fatalf("%+v\n%+v", got.content, k.content)
		}
	}
	if k := (&kept{content: content{U: attach.Unit{ID: "a.service"}}}); k.unpack() != k {
		t.Error("what was not packed is copied")
	}
}

func BenchmarkUnpack(b *testing.B) {
	k := (&kept{content: content{U: attach.Unit{ID: "idle0001.service", Names: []string{"idle0001.service"}, FragmentPath: "/etc/systemd/system/idle0001.service", DropIns: []string{"/etc/systemd/system/idle0001.service.d/90-aaunit.conf"},
		Settings: attach.Settings{After: []string{"a.service", "b.target", "c.socket"}, Exec: []attach.ExecCommand{{Property: "ExecStart", Path: "/bin/sleep", Argv: []string{"/bin/sleep", "infinity"}}},
			Assignments: []attach.Assignment{{Key: "AppArmorProfile", Value: "a", Path: "/etc/systemd/system/idle0001.service.d/90-aaunit.conf", Line: 3}}}},
		Files: make([]stampedFile, 3)}}).pack()
	b.ReportMetric(float64(len(k.packed)), "bytes")
	for b.Loop() {
		k.unpack()
	}
}
