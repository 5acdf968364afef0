package resilience

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Every field of an event finds its way into a log, and what is not set does not.
func TestLogEvents_WritesWhatIsSet(t *testing.T) {
	full := Event{Kind: EventCircuitOpen, Time: time.Now()}
	v := reflect.ValueOf(&full).Elem()
	fields := 0
	for i := range v.NumField() {
		switch f := v.Field(i); {
		case !f.IsZero():
			continue
		case f.Kind() == reflect.String:
			f.SetString("x")
		default:
			f.SetInt(7)
		}
		fields++
	}
	for name, e := range map[string]Event{"full": full, "empty": {Kind: EventCircuitOpen}} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			LogEvents(slog.New(slog.NewJSONHandler(&out, nil)))(e)
			var line map[string]any
			require.NoError(t, json.Unmarshal(out.Bytes(), &line))
			require.Equal(t, "circuit.open", line["msg"])
			require.Equal(t, "WARN", line["level"])
			if want := 3 + fields; name == "full" {
				require.Len(t, line, want, "time, level, msg, and each field")
			} else {
				require.Len(t, line, 3)
			}
			require.Len(t, e.LogValue().Group(), len(line)-2, "the kind in place of time, level and msg")
		})
	}
}

func TestLogEvents_Levels(t *testing.T) {
	for kind, level := range map[EventKind]slog.Level{
		EventLetterParked: slog.LevelError, EventStoreFailed: slog.LevelError, EventPanic: slog.LevelError,
		EventCircuitOpen: slog.LevelWarn, EventThrottled: slog.LevelWarn, EventLetterAdded: slog.LevelWarn,
		EventCircuitClose: slog.LevelInfo, EventLetterDone: slog.LevelInfo,
		EventRetry: slog.LevelDebug, EventKeyChanged: slog.LevelDebug,
	} {
		require.Equal(t, level, Event{Kind: kind}.Level(), kind)
	}
	for to, level := range map[Status]slog.Level{
		Healthy: slog.LevelInfo, Degraded: slog.LevelWarn, Unhealthy: slog.LevelError, Unknown: slog.LevelWarn,
	} {
		require.Equal(t, level, Event{Kind: EventHealthChanged, To: to.String()}.Level(), to)
	}
}

// Whoever sets another default later hears from then on.
func TestLogEvents_NilIsTheDefaultOfTheMoment(t *testing.T) {
	listen := LogEvents(nil)
	before := slog.Default()
	defer slog.SetDefault(before)
	var out bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, nil)))
	listen(Event{Kind: EventCircuitClose})
	require.Contains(t, out.String(), "msg=circuit.close")
}

// A store that fails is an error, whichever store it is.
func TestLogEvents_AStoreOfLettersThatFailsIsAnErrorToo(t *testing.T) {
	require.Equal(t, slog.LevelError, Event{Kind: EventLetterUnwritten}.Level())
}

func TestLettersAndRecords_InLogs(t *testing.T) {
	letter := Letter{
		ID: "letter-1", Operation: "create-phone-call", Key: "+15555550123", URL: secretURL, Body: []byte("SECRET"),
		Header: http.Header{"X-Token": {"SECRET"}}, Cause: "status", StatusCode: 500, Attempts: 3, Parked: true, ParkedReason: "attempts",
	}
	record := Record{ID: "key-1", Operation: "create-phone-call", State: KeyInDoubt, Sends: 2, Doubts: 1, Body: []byte("SECRET"), Reason: "+15555550123"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "letter", letter, "pointer", &letter, "record", record)
	text := log.String() + fmt.Sprint(letter, &letter, record, &record) + fmt.Sprintf("%v %+v %s", letter, record, record)
	require.NotContains(t, text, "SECRET")
	require.NotContains(t, text, "5555550123")
	require.Contains(t, log.String(), "letter.state=parked")
	require.Contains(t, log.String(), "record.state=in_doubt")
	require.Contains(t, letter.String(), "letter-1 of create-phone-call: parked, 3 attempts, attempts")
	require.Contains(t, record.String(), "key-1 of create-phone-call: in_doubt, 2 sends, 1 in doubt")
}
