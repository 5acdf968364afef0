// Package coverage checks that each scenario the layers are held to has a test.
package coverage

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

type scenario struct{ id, section, status, reason string }

func TestScenariosHaveTests(t *testing.T) {
	scenarios := readScenarios(t)
	tests := findTests(t)
	pending := 0
	for _, s := range scenarios {
		found := tests[s.id]
		switch s.status {
		case "covered":
			if len(found) == 0 {
				t.Errorf("%s (%s) is said to be covered, but no test is named Test%s_...", s.id, s.section, s.id)
			}
		case "not-offered":
			if s.reason == "" {
				t.Errorf("%s (%s) is not offered: say why", s.id, s.section)
			}
			if len(found) > 0 {
				t.Errorf("%s (%s) is said not to be offered, but is tested by %s", s.id, s.section, found)
			}
		case "pending":
			pending++
			if len(found) > 0 {
				t.Logf("PENDING %s (%s): has a test now, call it covered: %s", s.id, s.section, found[0])
				continue
			}
			t.Logf("PENDING %s (%s): no test yet", s.id, s.section)
		default:
			t.Errorf("%s: unknown status %q", s.id, s.status)
		}
	}
	if pending > 0 {
		t.Logf("PENDING: %d of %d scenarios", pending, len(scenarios))
	}
}

func TestTestsNameKnownScenarios(t *testing.T) {
	known := map[string]bool{}
	for _, s := range readScenarios(t) {
		known[s.id] = true
	}
	for id, names := range findTests(t) {
		if !known[id] {
			t.Errorf("%s: no scenario %s in testdata/conformance.tsv", names, id)
		}
	}
}

func readScenarios(t *testing.T) []scenario {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "testdata", "conformance.tsv"))
	require.NoError(t, err)
	var list []scenario
	seen := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimRight(line, "\n"); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := append(strings.Split(line, "\t"), "")
		require.GreaterOrEqual(t, len(fields), 4, "id, section, status and reason, with tabs between: %q", line)
		s := scenario{fields[0], fields[1], fields[2], fields[3]}
		require.Regexp(t, `^[A-Z][0-9]{2}$`, s.id)
		require.False(t, seen[s.id], "%s is listed twice", s.id)
		seen[s.id] = true
		list = append(list, s)
	}
	require.NotEmpty(t, list)
	return list
}

var (
	testFunc = regexp.MustCompile(`(?m)^func (Test(?:[A-Z][0-9]{2}_)+\w*)\(\w+ \*testing\.T\)`)
	testID   = regexp.MustCompile(`^(?:Test|_)([A-Z][0-9]{2})_`)
)

// findTests returns the names of the tests for each id. A test may serve several: TestB12_B38_Name.
func findTests(t *testing.T) map[string][]string {
	t.Helper()
	tests := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, match := range testFunc.FindAllSubmatch(source, -1) {
			name := string(match[1])
			for rest := name; ; {
				id := testID.FindStringSubmatch(rest)
				if id == nil {
					break
				}
				tests[id[1]] = append(tests[id[1]], name)
				rest = strings.TrimPrefix(rest, "Test")[3:]
				if !strings.HasPrefix(rest, "_") {
					break
				}
			}
		}
		return nil
	})
	require.NoError(t, err)
	return tests
}
