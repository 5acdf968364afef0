package boltstore

import (
	"encoding/binary"
	"hash/crc32"
	"net/http"
	"time"

	"github.com/retell-resilience/resilience"
)

// sealed gives bytes the checksum that makes them a record or a letter, whatever they say.
func sealed(id string, b []byte) []byte {
	sum := crc32.Checksum(append([]byte(id), b...), crc32.MakeTable(crc32.Castagnoli))
	return binary.BigEndian.AppendUint32(append([]byte(nil), b...), sum)
}

func sampleLetter() resilience.Letter {
	at := time.Date(2026, 11, 23, 14, 0, 0, 5, time.UTC)
	return resilience.Letter{
		ID: "id", Operation: "op", Key: "k", Named: true, Call: resilience.Call{Effect: resilience.EffectOnce, Resource: "res"},
		Method: "POST", URL: "https://api.test/v2/op", Header: http.Header{"A": {"b"}}, Body: []byte(`{"a":1}`), NeedsAuth: true,
		Cause: "status", Detail: "status 503", StatusCode: 503, Attempts: 2, First: at, Last: at, Next: at, Expires: at,
		History: []resilience.LetterAttempt{{Time: at, Cause: "status", Detail: "status 503", StatusCode: 503}},
	}
}
