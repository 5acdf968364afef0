package storetest

import (
	"cmp"
	"context"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// wrongs are the ways in which stores go wrong, and the checks that each must be caught by.
var wrongs = map[string][]string{
	"":                          nil, // the store without a fault passes
	"gets, then sets":           {"RaceForAbsentKey", "RaceForExpiredClaim", "Linearizable"},
	"reads what was":            {"Linearizable", "Swap"},
	"ignores the version":       {"Swap", "Fencing", "Versions"},
	"reuses versions":           {"Versions", "Fencing"},
	"versions start again":      {"ReopenVersions"},
	"forgets the last write":    {"ReopenRecords"},
	"forgets removals":          {"ReopenRecords"},
	"forgets what is unsettled": {"ReopenUnsettled"},
	"replaces bit by bit":       {"Atomic"},
	"reuses its buffers":        {"CopiesOut"},
	"keeps what it is given":    {"CopiesIn"},
	"gives away what it keeps":  {"CopiesOut"},
	"loses a field":             {"Fields"},
	"rounds numbers":            {"Fields"},
	"rounds times":              {"Fields"},
	"makes nil bodies empty":    {"Absence"},
	"makes empty bodies nil":    {"Absence"},
	"cuts bodies":               {"LargeBodies"},
	"ignores case":              {"IDs"},
	"writes all the same":       {"Context"},
	"lists nothing at the end":  {"Context"},
	"tells another's version":   {"Swap"},
	"sweeps what is in doubt":   {"Sweep"},
	"sweeps claims":             {"Sweep"},
	"sweeps too early":          {"Sweep"},
	"sweeps the front only":     {"SweepOrder"},
	"sweeps without limit":      {"SweepLimit"},
	"counts wrong":              {"SweepLimit"},
	"asks nobody for pins":      {"SweepLimit"},
	"ignores pins":              {"SweepPinned"},
	"stops at a pin":            {"SweepPinned"},
	"sweeps by an old expiry":   {"SweepExtended"},
	"sweeps what moved on":      {"SweepAgainstClaim"},
	"sweeps what is new":        {"SweepAgainstClaim"},
	"sweeps successors":         {"Sweep"},
	"hides disputes":            {"UnsettledStates", "UnsettledPages"},
	"lists what is finished":    {"UnsettledStates", "UnsettledPages"},
	"ends pages early":          {"UnsettledPages"},
	"counts pages":              {"UnsettledPages"}, // UnsettledUnderWrites finds it only when the writes fall right
	"exceeds the limit":         {"UnsettledPages"},
	"takes no limit for none":   {"UnsettledPages"},
	"evicts":                    {"Full"},
	"refuses updates when full": {"Full"},
	"is never full":             {"Full", "FullRace"},
}

const wrongEnv = "STORETEST_WRONG"

// TestWrongStores runs the suite over each wrong store in a process of its own, and passes if it failed there.
func TestWrongStores(t *testing.T) {
	failed := regexp.MustCompile(`(?m)^\s*--- FAIL: TestOneStore/(\S+)`)
	for _, wrong := range slices.Sorted(maps.Keys(wrongs)) {
		t.Run(cmp.Or(wrong, "none"), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOneStore$", "-test.timeout=2m") //nolint:gosec // this binary
			cmd.Env = append(os.Environ(), wrongEnv+"="+cmp.Or(wrong, "none"))
			out, err := cmd.CombinedOutput()
			if wrong == "" {
				require.NoError(t, err, "%s", out)
				return
			}
			require.Error(t, err, "the suite passed a store that %s", wrong)
			var names []string
			for _, m := range failed.FindAllStringSubmatch(string(out), -1) {
				names = append(names, m[1])
			}
			for _, name := range wrongs[wrong] {
				require.Contains(t, names, name, "a store that %s was not caught by this check:\n%s", wrong, out)
			}
		})
	}
}

// TestOneStore is the other side of TestWrongStores.
func TestOneStore(t *testing.T) {
	wrong := strings.TrimPrefix(os.Getenv(wrongEnv), "none")
	if os.Getenv(wrongEnv) == "" {
		t.Skip("run by TestWrongStores")
	}
	open := func(max int) func(*testing.T) resilience.KeyStore {
		return func(*testing.T) resilience.KeyStore {
			return &simple{wrong: wrong, max: max, records: map[string]resilience.Record{}, first: map[string]time.Time{}}
		}
	}
	Run(t, open(0), Bounded(20, open(20)), Reopen(func(_ *testing.T, old resilience.KeyStore) resilience.KeyStore {
		return old.(*simple).reopened() //nolint:forcetypeassert // it is what open made
	}))
}

// A store that says how exactly it keeps times passes, also if it lets them come later.
func TestPrecision(t *testing.T) {
	open := func(max int) func(*testing.T) resilience.KeyStore {
		return func(*testing.T) resilience.KeyStore {
			return &simple{wrong: roundsUp, max: max, records: map[string]resilience.Record{}, first: map[string]time.Time{}}
		}
	}
	Run(t, open(0), Precision(time.Second), Bounded(20, open(20)), Reopen(func(_ *testing.T, old resilience.KeyStore) resilience.KeyStore {
		return old.(*simple).reopened() //nolint:forcetypeassert // it is what open made
	}))
}

const roundsUp = "rounds times up to the second"

// simple is a store that is plainly right but for one fault.
type simple struct {
	wrong   string
	max     int
	mu      sync.Mutex
	version uint64
	records map[string]resilience.Record
	first   map[string]time.Time // expiry as it was written first
	before  map[string]resilience.Record
	left    map[string]bool // swept, and still listed
	buffer  [1000]byte
	writing sync.Mutex // where readers see what is half done, writers exclude each other still
	hidden  bool
}

func (s *simple) reopened() *simple {
	next := &simple{wrong: s.wrong, max: s.max, version: s.version, records: maps.Clone(s.records), first: s.first}
	switch s.wrong {
	case "versions start again":
		next.version = 0
	case "forgets the last write":
		last := ""
		for id, rec := range s.records {
			if last == "" || rec.Version > s.records[last].Version {
				last = id
			}
		}
		delete(next.records, last)
	case "forgets removals":
		maps.Copy(next.records, s.before)
	case "forgets what is unsettled":
		next.hidden = true
	}
	return next
}

func (s *simple) clone(rec resilience.Record) resilience.Record {
	rec.Body, rec.CallIDs, rec.Header = slices.Clone(rec.Body), slices.Clone(rec.CallIDs), rec.Header.Clone()
	return rec
}

func (s *simple) id(id string) string {
	if s.wrong == "ignores case" {
		return strings.ToLower(id)
	}
	return id
}

func (s *simple) Load(ctx context.Context, id string) (resilience.Record, error) {
	if ctx.Err() != nil {
		return resilience.Record{}, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id = s.id(id)
	if old, ok := s.before[id]; ok && s.wrong == "reads what was" {
		return s.clone(old), nil
	}
	rec := s.records[id]
	if s.wrong == "gives away what it keeps" {
		return rec, nil
	}
	rec = s.clone(rec)
	if s.wrong == "reuses its buffers" && rec.Body != nil && len(rec.Body) < len(s.buffer) {
		rec.Body = s.buffer[:copy(s.buffer[:], rec.Body)]
	}
	return rec, nil
}

func (s *simple) CompareAndSwap(ctx context.Context, old uint64, rec resilience.Record) (uint64, bool, error) {
	if ctx.Err() != nil && s.wrong != "writes all the same" {
		return 0, false, ctx.Err()
	}
	if s.wrong == "replaces bit by bit" {
		s.writing.Lock()
		defer s.writing.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.id(rec.ID)
	current := s.records[id]
	if current.Version != old && (s.wrong != "ignores the version" || old == 0) {
		if s.wrong == "tells another's version" {
			return current.Version, false, nil
		}
		return 0, false, nil
	}
	if s.wrong == "gets, then sets" {
		s.mu.Unlock()
		runtime.Gosched()
		s.mu.Lock()
	}
	if s.before == nil {
		s.before = map[string]resilience.Record{}
	}
	if current.Version != 0 {
		s.before[id] = current
	}
	if rec.State == resilience.KeyFree {
		delete(s.records, id)
		return 0, true, ctx.Err()
	}
	if err := s.room(current); err != nil {
		return 0, false, err
	}
	s.version++
	rec.Version = s.version
	if s.wrong == "reuses versions" {
		rec.Version = current.Version + 1
	}
	if current.Version == 0 || s.first[id].IsZero() {
		s.first[id] = rec.Expires
	}
	s.replace(id, current, s.stored(rec))
	return rec.Version, true, ctx.Err()
}

func (s *simple) replace(id string, current, rec resilience.Record) {
	if s.wrong == "replaces bit by bit" && current.Version != 0 {
		half := current
		half.Body = rec.Body
		s.records[id] = half
		s.mu.Unlock()
		time.Sleep(100 * time.Microsecond)
		s.mu.Lock()
	}
	s.records[id] = rec
}

func (s *simple) room(current resilience.Record) error {
	if s.max == 0 || len(s.records) < s.max || s.wrong == "is never full" {
		return nil
	}
	if s.wrong == "evicts" {
		for id, rec := range s.records {
			if slices.Contains(finished, rec.State) {
				delete(s.records, id)
				return nil
			}
		}
	}
	if current.Version == 0 || s.wrong == "refuses updates when full" {
		return resilience.ErrStoreFull
	}
	return nil
}

func (s *simple) stored(rec resilience.Record) resilience.Record {
	if s.wrong != "keeps what it is given" {
		rec = s.clone(rec)
	}
	switch s.wrong {
	case "loses a field":
		rec.Reason = ""
	case "rounds numbers":
		rec.Epoch = uint64(float64(rec.Epoch))
	case "rounds times":
		rec.Sent = rec.Sent.Truncate(time.Microsecond)
	case "makes nil bodies empty":
		rec.Body = append([]byte{}, rec.Body...)
	case "makes empty bodies nil":
		rec.Body = append([]byte(nil), rec.Body...)
	case "cuts bodies":
		rec.Body = rec.Body[:min(len(rec.Body), 64<<10):min(len(rec.Body), 64<<10)]
	case "reuses its buffers":
		copy(s.buffer[:], rec.Body)
	case roundsUp:
		for _, at := range []*time.Time{&rec.Lease, &rec.Claimed, &rec.Sent, &rec.Settled, &rec.Expires, &rec.NextLookup} {
			if !at.IsZero() {
				*at = at.Add(time.Second - 1).Truncate(time.Second)
			}
		}
	}
	return rec
}

func (s *simple) open(rec resilience.Record) bool {
	if rec.State == resilience.KeyDisputed && s.wrong == "hides disputes" {
		return false
	}
	return slices.Contains(unsettled, rec.State) || s.wrong == "lists what is finished"
}

func (s *simple) Unsettled(ctx context.Context, cursor string, limit int) ([]resilience.Record, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var page []resilience.Record
	seen := 0
	switch {
	case s.wrong == "lists nothing at the end" && ctx.Err() != nil, s.wrong == "takes no limit for none" && limit <= 0:
		return nil, "", nil
	case s.hidden:
		return nil, "", ctx.Err()
	}
	for _, id := range slices.Sorted(maps.Keys(s.records)) {
		if s.wrong != "counts pages" && id <= cursor {
			continue
		}
		if seen++; s.wrong == "ends pages early" && seen > 2*limit {
			break
		}
		if rec := s.records[id]; s.open(rec) {
			page = append(page, s.clone(rec))
		}
	}
	if s.wrong == "counts pages" {
		return s.counted(page, cursor, limit)
	}
	if s.wrong == "exceeds the limit" {
		limit++
	}
	if limit > 0 && len(page) > limit {
		return page[:limit], page[limit-1].ID, ctx.Err()
	}
	return page, "", ctx.Err()
}

// counted has a cursor that says how many were seen.
func (s *simple) counted(all []resilience.Record, cursor string, limit int) ([]resilience.Record, string, error) {
	from := min(len(cursor), len(all))
	to := min(from+limit, len(all))
	if to == len(all) {
		return all[from:], "", nil
	}
	return all[from:to], strings.Repeat("!", to), nil
}

func (s *simple) due(rec resilience.Record) bool {
	at, now := rec.Expires, s.Now()
	switch s.wrong {
	case "sweeps what is in doubt":
		if rec.State == resilience.KeyInDoubt && now.After(at) && !at.IsZero() {
			return true
		}
	case "sweeps claims":
		if rec.State == resilience.KeyClaimed && now.After(rec.Lease) {
			return true
		}
	case "sweeps too early":
		at = rec.Settled
	case "sweeps by an old expiry":
		at = s.first[rec.ID]
	}
	return slices.Contains(finished, rec.State) && !now.Before(at)
}

func (s *simple) Sweep(ctx context.Context, limit int, pinned func(string) bool) (int, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	s.mu.Lock()
	maps.DeleteFunc(s.records, func(id string, _ resilience.Record) bool { return s.left[id] })
	all := slices.SortedFunc(maps.Values(s.records), func(a, b resilience.Record) int { return cmp.Compare(a.Version, b.Version) })
	s.mu.Unlock()
	removed := 0
	for _, rec := range all {
		if removed >= limit && s.wrong != "sweeps without limit" {
			break
		}
		s.mu.Lock()
		due := s.due(rec)
		s.mu.Unlock()
		if !due {
			if s.wrong == "sweeps the front only" {
				break
			}
			continue
		}
		if (pinned != nil || s.wrong == "asks nobody for pins") && pinned(rec.ID) && s.wrong != "ignores pins" {
			if s.wrong == "stops at a pin" {
				break
			}
			continue
		}
		s.mu.Lock()
		now := s.records[rec.ID]
		if now.Version == rec.Version || s.wrong == "sweeps what moved on" ||
			s.wrong == "sweeps what is new" && slices.Contains(finished, now.State) {
			delete(s.records, rec.ID)
			removed++
			if s.wrong == "sweeps successors" {
				s.left = map[string]bool{rec.ID: true}
			}
		}
		s.mu.Unlock()
	}
	if s.wrong == "counts wrong" && removed > 0 {
		removed = limit
	}
	return removed, nil
}

func (s *simple) Now() time.Time { return time.Now() }

func (s *simple) Capabilities() resilience.Capabilities {
	return resilience.Capabilities{Durable: true, Linearizable: true}
}
