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

// wrongLetters are the ways in which stores of letters go wrong, and the checks that each must be caught by.
var wrongLetters = map[string][]string{
	"":                              nil,
	"forgets":                       {"Durable", "DurableUnderWrites"},
	"forgets the last one":          {"Durable", "DurableUnderWrites"},
	"forgets removals":              {"Durable"},
	"forgets replacements":          {"Durable"},
	"does not replace":              {"Fields", "Replace"},
	"merges":                        {"Fields"},
	"does not remove":               {"Remove"},
	"fails for what is not there":   {"Empty", "Remove"},
	"removes by prefix":             {"Remove", "IDs"},
	"goes by key":                   {"Replace"},
	"keeps what it is given":        {"CopiesIn"},
	"changes what it is given":      {"CopiesIn"},
	"gives away what it keeps":      {"CopiesOut"},
	"loses a field":                 {"Fields"},
	"loses a field of the call":     {"Fields"},
	"loses the history":             {"Fields"},
	"confuses two numbers":          {"Fields"},
	"rounds times":                  {"Fields"},
	"rounds numbers":                {"Fields"},
	"changes odd strings":           {"OddBytes"},
	"changes header names":          {"Fields", "OddBytes"},
	"cuts bodies":                   {"LargeBodies"},
	"ignores case":                  {"IDs"},
	"loads twice":                   {"LoadOnce", "Fields"},
	"loads a page":                  {"LoadOnce"},
	"loads on after an error":       {"LoadStops"},
	"swallows an error":             {"LoadStops"},
	"stops without a word":          {"LoadStops"},
	"writes all the same":           {"Context"},
	"loads all the same":            {"Context"},
	"replaces by removing first":    {"Atomic"},
	"replaces bit by bit":           {"Atomic"},
	"writes all letters from a map": {"Concurrent"},
}

func TestWrongLetterStores(t *testing.T) {
	failed := regexp.MustCompile(`(?m)^\s*--- FAIL: TestOneLetterStore/(\S+)`)
	for _, wrong := range slices.Sorted(maps.Keys(wrongLetters)) {
		t.Run(cmp.Or(wrong, "none"), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOneLetterStore$", "-test.timeout=1m") //nolint:gosec // this binary
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
			for _, name := range wrongLetters[wrong] {
				require.Contains(t, names, name, "a store that %s was not caught by this check:\n%.4000s", wrong, out)
			}
		})
	}
}

// TestOneLetterStore is the other side of TestWrongLetterStores.
func TestOneLetterStore(t *testing.T) {
	wrong := strings.TrimPrefix(os.Getenv(wrongEnv), "none")
	if os.Getenv(wrongEnv) == "" {
		t.Skip("run by TestWrongLetterStores")
	}
	RunLetters(t, func(*testing.T) resilience.LetterStore {
		return &simpleLetters{wrong: wrong, letters: map[string]resilience.Letter{}, first: map[string]resilience.Letter{}, gone: map[string]resilience.Letter{}}
	}, ReopenLetters(func(_ *testing.T, old resilience.LetterStore) resilience.LetterStore {
		return old.(*simpleLetters).reopened() //nolint:forcetypeassert // it is what open made
	}))
}

// simpleLetters is a store that is plainly right but for one fault.
type simpleLetters struct {
	wrong   string
	mu      sync.Mutex
	letters map[string]resilience.Letter
	first   map[string]resilience.Letter // as it was put first
	gone    map[string]resilience.Letter
	last    string
}

func (s *simpleLetters) reopened() *simpleLetters {
	next := &simpleLetters{wrong: s.wrong, letters: maps.Clone(s.letters), first: s.first, gone: s.gone}
	switch s.wrong {
	case "forgets":
		clear(next.letters)
	case "forgets the last one":
		delete(next.letters, s.last)
	case "forgets removals":
		maps.Copy(next.letters, s.gone)
	case "forgets replacements":
		for id := range next.letters {
			next.letters[id] = s.first[id]
		}
	}
	return next
}

func cloneLetter(l resilience.Letter) resilience.Letter {
	l.Body, l.Header, l.History = slices.Clone(l.Body), l.Header.Clone(), slices.Clone(l.History)
	return l
}

func (s *simpleLetters) key(l resilience.Letter) string {
	switch s.wrong {
	case "ignores case":
		return strings.ToLower(l.ID)
	case "goes by key":
		return cmp.Or(l.Key, l.ID)
	}
	return l.ID
}

func (s *simpleLetters) Put(ctx context.Context, l resilience.Letter) error {
	if ctx.Err() != nil && s.wrong != "writes all the same" {
		return ctx.Err()
	}
	if s.wrong == "changes what it is given" && l.Header != nil {
		l.Header.Del("x-raw")
		delete(l.Header, "x-raw")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.key(l)
	old, there := s.letters[id]
	switch {
	case s.wrong == "does not replace" && there:
		return nil
	case s.wrong == "merges" && there && l.Key == "":
		l.Key = old.Key
	case s.wrong == "replaces by removing first":
		delete(s.letters, id)
		s.pause()
	case s.wrong == "replaces bit by bit" && there:
		half := s.stored(l)
		half.Body = old.Body
		s.letters[id] = half
		s.pause()
	case s.wrong == "writes all letters from a map":
		all := maps.Clone(s.letters)
		s.pause()
		s.letters = all
	}
	if !there {
		s.first[id] = cloneLetter(l)
	}
	s.letters[id] = s.stored(l)
	s.last = id
	delete(s.gone, id)
	return ctx.Err()
}

func (s *simpleLetters) pause() {
	s.mu.Unlock()
	runtime.Gosched()
	time.Sleep(100 * time.Microsecond)
	s.mu.Lock()
}

func (s *simpleLetters) stored(l resilience.Letter) resilience.Letter {
	if s.wrong != "keeps what it is given" {
		l = cloneLetter(l)
	}
	switch s.wrong {
	case "loses a field":
		l.NotAfter = time.Time{}
	case "loses a field of the call":
		l.Call.Resource = ""
	case "loses the history":
		l.History = l.History[:min(len(l.History), 1)]
	case "confuses two numbers":
		l.Attempts, l.Redrives = l.Redrives, l.Attempts
	case "rounds times":
		l.Next = l.Next.Truncate(time.Microsecond)
	case "rounds numbers":
		l.Call.Limit = time.Duration(float64(l.Call.Limit))
	case "changes odd strings":
		l.URL = strings.ToValidUTF8(l.URL, "\ufffd")
	case "changes header names":
		h := map[string][]string{}
		for name, values := range l.Header {
			h[strings.ToUpper(name[:min(1, len(name))])+name[min(1, len(name)):]] = values
		}
		l.Header = h
	case "cuts bodies":
		l.Body = l.Body[:min(len(l.Body), 64<<10)]
	}
	return l
}

func (s *simpleLetters) Remove(ctx context.Context, id string) error {
	if ctx.Err() != nil && s.wrong != "writes all the same" {
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wrong == "ignores case" {
		id = strings.ToLower(id)
	}
	old, there := s.letters[id]
	switch {
	case s.wrong == "fails for what is not there" && !there:
		return os.ErrNotExist
	case s.wrong == "does not remove":
		return nil
	case s.wrong == "removes by prefix":
		maps.DeleteFunc(s.letters, func(other string, _ resilience.Letter) bool {
			return strings.HasPrefix(other, strings.TrimRight(id, "123456789"))
		})
	}
	if there {
		s.gone[id] = old
	}
	delete(s.letters, id)
	return ctx.Err()
}

func (s *simpleLetters) Load(ctx context.Context, each func(resilience.Letter) error) error {
	if ctx.Err() != nil && s.wrong != "loads all the same" {
		return ctx.Err()
	}
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.letters))
	s.mu.Unlock()
	if s.wrong == "loads a page" {
		all = all[:min(len(all), 100)]
	}
	var failed error
	for _, l := range all {
		if s.wrong != "gives away what it keeps" {
			l = cloneLetter(l)
		}
		err := each(l)
		if err == nil && s.wrong == "loads twice" {
			err = each(cloneLetter(l))
		}
		switch {
		case err == nil && ctx.Err() != nil && s.wrong == "stops without a word":
			return nil
		case err == nil:
		case s.wrong == "loads on after an error":
			failed = err
		case s.wrong == "swallows an error":
			return nil
		default:
			return err
		}
	}
	return failed
}
