package units

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"time"
)

// pack puts a value of exported fields, with all that it points to, into one piece of
// memory, which takes far less room than its many small ones. The form is for unpack
// in the same process, and for nothing else. Of times it keeps the nanosecond, in UTC.
// It panics at a type that it does not know, which is a mistake in this package.
func pack(b []byte, v reflect.Value) []byte {
	if t, ok := v.Interface().(time.Time); ok {
		if t.IsZero() {
			return append(b, 0)
		}
		return binary.AppendVarint(append(b, 1), t.UnixNano())
	}
	switch v.Kind() {
	case reflect.String:
		return append(binary.AppendUvarint(b, uint64(v.Len())), v.String()...)
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Int, reflect.Int8, reflect.Int32, reflect.Int64:
		return binary.AppendVarint(b, v.Int())
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		return binary.AppendUvarint(b, v.Uint())
	case reflect.Struct:
		for i := range v.NumField() {
			b = pack(b, v.Field(i))
		}
		return b
	case reflect.Array:
		for i := range v.Len() {
			b = pack(b, v.Index(i))
		}
		return b
	case reflect.Slice:
		if v.IsNil() {
			return append(b, 0)
		}
		b = binary.AppendUvarint(b, uint64(v.Len())+1)
		for i := range v.Len() {
			b = pack(b, v.Index(i))
		}
		return b
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, 0)
		}
		return pack(append(b, 1), v.Elem())
	}
	panic(fmt.Sprintf("cannot pack a %s", v.Type()))
}

// unpack takes a value out of what pack made of one of the same type, and gives what is
// behind it.
func unpack(b []byte, v reflect.Value) []byte {
	number := func() (n uint64) {
		n, size := binary.Uvarint(b)
		b = b[size:]
		return n
	}
	signed := func() (n int64) {
		n, size := binary.Varint(b)
		b = b[size:]
		return n
	}
	if _, ok := v.Interface().(time.Time); ok {
		if number() != 0 {
			v.Set(reflect.ValueOf(time.Unix(0, signed()).UTC()))
		}
		return b
	}
	switch v.Kind() {
	case reflect.String:
		n := number()
		v.SetString(string(b[:n]))
		return b[n:]
	case reflect.Bool:
		v.SetBool(number() != 0)
	case reflect.Int, reflect.Int8, reflect.Int32, reflect.Int64:
		v.SetInt(signed())
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(number())
	case reflect.Struct:
		for i := range v.NumField() {
			b = unpack(b, v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			b = unpack(b, v.Index(i))
		}
	case reflect.Slice:
		if n := number(); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), int(n-1), int(n-1)))
			for i := range v.Len() {
				b = unpack(b, v.Index(i))
			}
		}
	case reflect.Pointer:
		if number() != 0 {
			v.Set(reflect.New(v.Type().Elem()))
			b = unpack(b, v.Elem())
		}
	default:
		panic(fmt.Sprintf("cannot unpack a %s", v.Type()))
	}
	return b
}
