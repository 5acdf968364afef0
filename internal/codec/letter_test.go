package codec

import (
	"encoding/hex"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

func sampleLetter() resilience.Letter {
	at := time.Date(2026, 11, 23, 14, 0, 0, 5, time.UTC)
	return resilience.Letter{
		ID: "id", Operation: "op", Key: "k", Named: true,
		Call: resilience.Call{
			Operation: "co", Effect: resilience.EffectOnce, Priority: resilience.PriorityBulk, Class: resilience.ClassLongPoll,
			Limit: -1, Budget: time.Second, Resource: "res",
		},
		Method: "POST", URL: "u\xff", Host: "h", Header: http.Header{"A": {"\xff", ""}, "B": {}}, Body: []byte{0, 255}, NeedsAuth: true,
		Cause: "c", Detail: "d", StatusCode: 503, Attempts: 2, Redrives: 3, First: at, Last: at, Next: at, Expires: at, NotAfter: at,
		InDoubt: true, DoubtSince: at, Parked: true, ParkedReason: "p", Superseded: true, Redacted: true,
		History: []resilience.LetterAttempt{{Time: at, Cause: "c", Detail: "d", StatusCode: 503}, {}},
	}
}

// Every field is stored: one that is added to Letter must get a number here.
func TestLetter_EveryField(t *testing.T) {
	v := reflect.ValueOf(sampleLetter())
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		require.Equal(t, name == "Leased", v.Field(i).IsZero(), "sampleLetter leaves Letter.%s out", name)
	}
	got, err := DecodeLetter("id", EncodeLetter(sampleLetter()))
	require.NoError(t, err)
	require.Equal(t, sampleLetter(), got)
}

// What was written once can be read for ever.
func TestLetter_Version1(t *testing.T) {
	b, err := hex.DecodeString(goldenLetter)
	require.NoError(t, err)
	got, err := DecodeLetter("id", b)
	require.NoError(t, err)
	first := sampleLetter()
	first.DoubtSince = time.Time{}
	require.Equal(t, first, got)
	require.Equal(t, goldenLetter, hex.EncodeToString(EncodeLetter(first)))

	b, err = hex.DecodeString(goldenDoubtSince)
	require.NoError(t, err)
	got, err = DecodeLetter("id", b)
	require.NoError(t, err)
	require.Equal(t, sampleLetter(), got)
	require.Equal(t, goldenDoubtSince, hex.EncodeToString(EncodeLetter(sampleLetter())))
}

// goldenDoubtSince has every field, goldenLetter those that there were at first.
const goldenDoubtSince = "0101026f7002016b03000402636f050103060103070103080101090580a8d6b9070a037265730b04504f53540c0275ff0d01680e0a0201410201ff000142000f0200ff10001101631201641302ee071401041501061606c09ba2b00d051706c09ba2b00d051806c09ba2b00d051906c09ba2b00d051a06c09ba2b00d051b001c001d01701e001f00201502120106c09ba2b00d050201630301640402ee07002106c09ba2b00d05d3dd6af8"

const goldenLetter = "0101026f7002016b03000402636f050103060103070103080101090580a8d6b9070a037265730b04504f53540c0275ff0d01680e0a0201410201ff000142000f0200ff10001101631201641302ee071401041501061606c09ba2b00d051706c09ba2b00d051806c09ba2b00d051906c09ba2b00d051a06c09ba2b00d051b001c001d01701e001f00201502120106c09ba2b00d050201630301640402ee07002a88f1a5"

func TestLetter_NothingIsDroppedSilently(t *testing.T) {
	whole := EncodeLetter(sampleLetter())
	content := whole[:len(whole)-4]
	newer := append([]byte(nil), content...)
	newer[0] = 2
	for _, b := range [][]byte{
		newer,
		append(append([]byte(nil), content...), 200, 1, 7),
		{letterEncoding, letterEffect, 1, 99},
		{letterEncoding, letterPriority, 1, 99},
		{letterEncoding, letterClass, 1, 99},
		{letterEncoding, letterEffect, 2, 0x81, 2}, // 257, which must not be read as 1
		{letterEncoding, letterPriority, 2, 0x81, 2},
		{letterEncoding, letterClass, 2, 0x81, 2},
		{letterEncoding, letterHistory, 5, 1, 3, 99, 1, 0},
	} {
		_, err := DecodeLetter("id", sealed("id", b))
		require.ErrorIs(t, err, ErrNewer)
	}
	_, err := DecodeLetter("other", whole)
	require.ErrorIs(t, err, ErrDamaged)
	for i := range whole {
		for bit := range 8 {
			bad := append([]byte(nil), whole...)
			bad[i] ^= 1 << bit
			_, err := DecodeLetter("id", bad)
			require.Error(t, err, "byte %d", i)
		}
		_, err := DecodeLetter("id", whole[:i])
		require.Error(t, err)
	}
}

// Behind a checksum that fits, what makes no sense is damage all the same.
func TestLetter_NoSense(t *testing.T) {
	for name, b := range map[string][]byte{
		"a number that does not end":             {letterEncoding, letterStatus, 1, 0x80},
		"more than a number":                     {letterEncoding, letterStatus, 2, 2, 2},
		"a value where none belongs":             {letterEncoding, letterInDoubt, 1, 0},
		"a field twice":                          {letterEncoding, letterCause, 1, 'a', letterCause, 1, 'b'},
		"a field out of order":                   {letterEncoding, letterCause, 1, 'a', letterKey, 1, 'k'},
		"a field longer than the letter":         {letterEncoding, letterCause, 9, 'a'},
		"an attempt whose number does not end":   {letterEncoding, letterHistory, 5, 1, 3, attemptStatus, 1, 0x80},
		"an attempt with more than a number":     {letterEncoding, letterHistory, 6, 1, 4, attemptStatus, 2, 2, 2},
		"an attempt longer than the history":     {letterEncoding, letterHistory, 2, 1, 9},
		"fewer attempts than there should be":    {letterEncoding, letterHistory, 4, 2, 0},
		"more attempts than there should be":     {letterEncoding, letterHistory, 3, 1, 0, 0},
		"a field of an attempt that comes twice": {letterEncoding, letterHistory, 8, 1, 6, attemptStatus, 1, 2, attemptStatus, 1, 4},
	} {
		l, err := DecodeLetter("id", sealed("id", b))
		require.ErrorIs(t, err, ErrDamaged, name)
		require.Equal(t, resilience.Letter{}, l, name)
	}
}

func FuzzDecodeLetter(f *testing.F) {
	whole := EncodeLetter(sampleLetter())
	f.Add(whole[:len(whole)-4])
	f.Add([]byte{letterEncoding, letterHistory, 5, 1, 3, attemptStatus, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := DecodeLetter("id", sealed("id", b))
		if err != nil {
			return
		}
		again, err := DecodeLetter("id", EncodeLetter(l))
		require.NoError(t, err)
		require.Equal(t, l, again)
	})
}
