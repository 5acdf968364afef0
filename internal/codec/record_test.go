package codec

import (
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

func sample() resilience.Record {
	at := time.Date(2026, 11, 23, 14, 0, 0, 5, time.UTC)
	return resilience.Record{
		ID: "id", Version: 300, State: resilience.KeyDisputed, Operation: "op", Resource: "res", Fingerprint: "f1:0", Owner: "me", Token: "t",
		Epoch: 2, Lease: at, Doubts: 1, Sends: 2, Claimed: at, Sent: at, Settled: at, Expires: at, CallID: "c",
		CallIDs: []string{"c", ""}, Accepted: true, Status: 201, Header: http.Header{"A": {"\xff", ""}, "B": {}},
		Body: []byte{0, 255}, Evidence: "e", Cause: "ca", Reason: "re", Lookups: -1, NextLookup: at,
	}
}

// Every field is stored: one that is added to Record must get a number here.
func TestRecord_EveryField(t *testing.T) {
	v := reflect.ValueOf(sample())
	for i := range v.NumField() {
		require.False(t, v.Field(i).IsZero(), "sample leaves Record.%s out", v.Type().Field(i).Name)
	}
	got, err := DecodeRecord("id", EncodeRecord(sample()))
	require.NoError(t, err)
	require.Equal(t, sample(), got)
	small := resilience.Record{ID: "id", Version: 1, State: resilience.KeyClaimed}
	got, err = DecodeRecord("id", EncodeRecord(small))
	require.NoError(t, err)
	require.Equal(t, small, got)
}

// What was written once can be read for ever.
func TestRecord_Version1(t *testing.T) {
	b, err := hex.DecodeString(golden)
	require.NoError(t, err)
	got, err := DecodeRecord("id", b)
	require.NoError(t, err)
	require.Equal(t, sample(), got)
	require.Equal(t, golden, hex.EncodeToString(EncodeRecord(sample())))
}

const golden = "010102ac0202010603026f70040466313a3005026d650601740701020806c09ba2b00d050901020a01040b06c09ba2b00d050c06c09ba2b00d050d06c09ba2b00d050e06c09ba2b00d050f0163100402016300110012029203130a0201410201ff00014200140200ff15016516026361170272651801011906c09ba2b00d051a03726573c5632cb2"

// sealed gives bytes the checksum that makes them a record, whatever they say.
func sealed(id string, b []byte) []byte {
	return binary.BigEndian.AppendUint32(append([]byte(nil), b...), checksum(id, b))
}

func TestRecord_NothingIsDroppedSilently(t *testing.T) {
	whole := EncodeRecord(sample())
	content := whole[:len(whole)-4]
	newer := append([]byte(nil), content...)
	newer[0] = 2
	_, err := DecodeRecord("id", sealed("id", newer))
	require.ErrorIs(t, err, ErrNewer)
	_, err = DecodeRecord("id", sealed("id", append(append([]byte(nil), content...), 200, 1, 7)))
	require.ErrorIs(t, err, ErrNewer)
	_, err = DecodeRecord("id", sealed("id", []byte{1, 1, 1, 1, 2, 1, 99}))
	require.ErrorIs(t, err, ErrNewer)
	_, err = DecodeRecord("other", whole)
	require.ErrorIs(t, err, ErrDamaged)
	for i := range whole {
		for bit := range 8 {
			bad := append([]byte(nil), whole...)
			bad[i] ^= 1 << bit
			_, err := DecodeRecord("id", bad)
			require.Error(t, err, "byte %d", i)
		}
		_, err := DecodeRecord("id", whole[:i])
		require.Error(t, err)
	}
}

// Behind a checksum that fits, what makes no sense is damage all the same: nothing of it may be read as something else.
func TestRecord_NoSense(t *testing.T) {
	for name, b := range map[string][]byte{
		"a number that does not end":     {encoding, fieldVersion, 1, 1, fieldState, 1, 1, fieldSends, 1, 0x80},
		"more than a number":             {encoding, fieldVersion, 1, 1, fieldState, 1, 1, fieldSends, 2, 2, 2},
		"a value where none belongs":     {encoding, fieldVersion, 1, 1, fieldState, 1, 1, fieldAccepted, 1, 0},
		"a field twice":                  {encoding, fieldVersion, 1, 1, fieldState, 1, 1, fieldState, 1, 3},
		"a field out of order":           {encoding, fieldState, 1, 1, fieldVersion, 1, 1},
		"a field without a number":       {encoding, fieldVersion, 1, 1, fieldState, 1, 1, fieldSends},
		"a field longer than the record": {encoding, fieldVersion, 1, 1, fieldState, 1, 1, fieldOwner, 9, 'x'},
		"a time with a second too many":  {encoding, fieldVersion, 1, 1, fieldState, 1, 1, fieldLease, 6, 2, 0x80, 0x94, 0xeb, 0xdc, 3},
		"more texts than bytes":          {encoding, fieldVersion, 1, 1, fieldState, 1, 1, fieldCallIDs, 2, 9, 0},
		"no version":                     {encoding, fieldState, 1, 1},
		"no state":                       {encoding, fieldVersion, 1, 1},
	} {
		rec, err := DecodeRecord("id", sealed("id", b))
		require.ErrorIs(t, err, ErrDamaged, name)
		require.Equal(t, resilience.Record{}, rec, name)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	whole := EncodeRecord(sample())
	f.Add(whole[:len(whole)-4])
	f.Add([]byte{1, 1, 1, 1, 2, 1, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := DecodeRecord("id", sealed("id", b)) // past the checksum
		if err != nil {
			require.Equal(t, resilience.Record{}, rec)
			return
		}
		again, err := DecodeRecord("id", EncodeRecord(rec))
		require.NoError(t, err)
		require.Equal(t, rec, again)
	})
}
