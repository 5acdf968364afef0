package resilience

import (
	"context"
	"log/slog"
	"slices"
)

// LogEvents returns a listener for OnEvent that writes each event to logger: the kind as the message, and what is set of the
// rest as attributes. nil: to [slog.Default], as it is when the event comes.
//
// Level is how much an event matters: Error where somebody has to look (a letter given up or dropped, a disputed key, a store
// that fails, a panic, a health that is unhealthy), Warn where callers notice something (a circuit opens, a call gets no slot
// or reaches a limit, a 429, a substitute is served), Debug for what ordinary traffic consists of (retries, keys that change
// state, replays, look-ups, refreshes), Info for the rest.
//
// The listener is safe for concurrent use. A handler that blocks holds up no call, but the events behind it; see Config.OnEvent.
func LogEvents(logger *slog.Logger) func(Event) {
	return func(e Event) {
		l := logger
		if l == nil {
			l = slog.Default()
		}
		l.LogAttrs(context.Background(), e.Level(), string(e.Kind), e.attributes()...)
	}
}

// Level is how much the event matters; see [LogEvents].
func (e Event) Level() slog.Level {
	switch e.Kind {
	case EventLetterParked, EventLetterDropped, EventLetterUnwritten, EventKeyDisputed, EventStoreFailed, EventPanic, EventEventsDropped:
		return slog.LevelError
	case EventHealthChanged:
		return healthLevel(e.To)
	case EventCircuitOpen, EventCircuitExceeded, EventSlotRejected, EventSlotAbandoned, EventTimeout, EventRetryRefused,
		EventThrottled, EventFallbackServed, EventFallbackFailed, EventKeyReused, EventLetterAdded, EventLetterRefused,
		EventRedrivePaused:
		return slog.LevelWarn
	case EventRetry, EventAttemptLate, EventRefresh, EventKeyChanged, EventKeyReplayed, EventKeyJoined, EventLookup:
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func healthLevel(to string) slog.Level {
	switch to {
	case Unhealthy.String():
		return slog.LevelError
	case Healthy.String():
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// LogValue is for log/slog: the fields that are set, as a group.
func (e Event) LogValue() slog.Value {
	return slog.GroupValue(append([]slog.Attr{slog.String("kind", string(e.Kind))}, e.attributes()...)...)
}

// attributes are what is set, but for the kind and the time, which a log has of its own.
func (e Event) attributes() []slog.Attr {
	return slices.DeleteFunc([]slog.Attr{
		slog.String("layer", e.Layer), slog.String("operation", e.Operation),
		slog.String("key_hash", e.KeyHash), slog.String("letter_id", e.LetterID),
		slog.String("from", e.From), slog.String("to", e.To),
		slog.Int("status", e.StatusCode), slog.Int("attempt", e.Attempt),
		slog.Duration("duration", e.Duration), slog.String("cause", e.Cause), slog.Int("count", e.Count),
	}, unset)
}

func unset(a slog.Attr) bool {
	switch a.Value.Kind() {
	case slog.KindString:
		return a.Value.String() == ""
	case slog.KindInt64:
		return a.Value.Int64() == 0
	case slog.KindDuration:
		return a.Value.Duration() == 0
	}
	return false
}
