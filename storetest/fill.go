package storetest

import (
	"fmt"
	"hash/crc32"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/retell-resilience/resilience"
)

// fill gives every field a value of its own, so that none can get lost or change places unseen; see LetterStore for the two
// that are never set. n tells letters and records apart.
func fill(t *testing.T, v reflect.Value, path string, n int) {
	t.Helper()
	label := fmt.Sprintf("%s/%d/ü日本", path, n)
	number := 1000*int(crc32.ChecksumIEEE([]byte(path))%100_000) + n
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = label
	case *bool:
		*p = path != "Letter.Leased"
	case *uint64:
		*p = 1<<53 + uint64(number) + 1 // more than a float keeps
	case *int:
		*p = 1<<40 + number
	case *time.Duration:
		*p = time.Duration(1<<60 + number)
	case *resilience.KeyState:
		*p = resilience.KeyDisputed
	case *resilience.Effect:
		*p = resilience.EffectRead + resilience.Effect(n%3)
	case *resilience.Priority:
		*p = resilience.PriorityNormal + resilience.Priority(n%3)
	case *resilience.Class:
		*p = resilience.ClassRequest + resilience.Class(n%3)
	case *time.Time:
		*p = time.Date(2099, 12, 31, 23, 59, 59, 123456789, time.FixedZone("", 3600)).Add(-time.Duration(number) * time.Second)
	case *[]byte:
		*p = []byte(label)
		for b := range 256 {
			*p = append(*p, byte(b))
		}
	case *http.Header:
		*p = http.Header{"Content-Type": {"application/json", label}, "X-Empty": {""}, "x-raw": {"a, b;\tc"}}
	case *any: // Call.Params
	default:
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				fill(t, v.Field(i), path+"."+v.Type().Field(i).Name, n)
			}
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 3, 3))
			for i := range 3 {
				fill(t, v.Index(i), fmt.Sprintf("%s[%d]", path, i), n)
			}
		default:
			t.Fatalf("storetest does not know the type of %s: %T", path, p)
		}
	}
}
