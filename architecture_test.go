package resilience_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/retell-resilience/resilience"

// source is one file of this module.
type source struct {
	*ast.File
	path string // from the root, with slashes
	dir  string
	test bool
}

// sources parses the files of this module, those of nested modules left out.
func sources(t *testing.T) ([]source, *token.FileSet) {
	t.Helper()
	var list []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != ".":
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go"):
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		path = filepath.ToSlash(path)
		list = append(list, source{file, path, filepath.ToSlash(filepath.Dir(path)), strings.HasSuffix(path, "_test.go")})
		return nil
	})
	require.NoError(t, err)
	return list, fset
}

// layerFiles says whose a file of the root package is, by how its name begins: dlq.go and dlq_queue.go are the queue's.
var layerFiles = []struct{ prefix, layer string }{
	{"breaker", "Breaker"},
	{"bulkhead", "Bulkhead"},
	{"timeout", "Timeout"},
	{"retry", "Retry"},
	{"fallback", "Fallback"},
	{"idempotency", "Idempotency"},
	{"keystate", "Idempotency"},
	{"keystore", "Idempotency"},
	{"claim", "Idempotency"},
	{"deduplicate", "Idempotency"},
	{"flight", "Idempotency"},
	{"intent", "Idempotency"},
	{"reconcile", "Idempotency"},
	{"tend", "Idempotency"},
	{"dlq", "DLQ"},
	{"letter", "DLQ"},
	{"health", "Health"},
}

// known are names of each layer that must not be mentioned by another, though they may not be declared yet.
var known = map[string][]string{
	"Breaker":     {"Breaker", "BreakerConfig", "NewBreaker", "BreakerState", "BreakerStats"},
	"Bulkhead":    {"Bulkhead", "BulkheadConfig", "NewBulkhead", "BulkheadStats"},
	"Timeout":     {"Timeout", "TimeoutConfig", "NewTimeout", "TimeoutStats"},
	"Retry":       {"Retry", "RetryConfig", "NewRetry", "RetryStats"},
	"Fallback":    {"Fallback", "FallbackConfig", "NewFallback", "FallbackStats"},
	"Idempotency": {"Idempotency", "IdempotencyConfig", "NewIdempotency", "IdempotencyStats", "KeyStore", "Reconciler", "Resolution"},
	"DLQ":         {"DLQ", "DLQConfig", "NewDLQ", "DLQStats", "Letter"},
	"Health":      {"Health", "HealthConfig", "NewHealth"},
}

func layerOf(s source) string {
	if s.dir != "." || s.test {
		return ""
	}
	for _, f := range layerFiles {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(s.path, ".go"), f.prefix); ok && (rest == "" || rest[0] == '_') {
			return f.layer
		}
	}
	return ""
}

// A layer knows the shared vocabulary and itself. What it needs of another is a func field, set in stack.go.
func TestArchitecture_LayersDoNotNameEachOther(t *testing.T) {
	files, fset := sources(t)
	owner := map[string]string{}
	for layer, names := range known {
		for _, name := range names {
			owner[name] = layer
		}
	}
	for _, s := range files {
		layer := layerOf(s)
		if layer == "" {
			continue
		}
		for name, node := range declared(s.File) {
			_, value := node.(*ast.ValueSpec) // a number or a sentinel ties nobody to a layer
			if !value || ast.IsExported(name) && !strings.HasPrefix(name, "Err") {
				owner[name] = layer
			}
		}
	}
	for _, s := range files {
		layer := layerOf(s)
		if layer == "" {
			continue
		}
		for _, id := range s.Unresolved { // in this file, that is
			if whose := owner[id.Name]; whose != "" && whose != layer {
				t.Errorf("%s: the %s layer names %s, which is the %s layer's", fset.Position(id.Pos()), layer, id.Name, whose)
			}
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			// Timeout and Health are methods and fields of other things as well.
			if ok && known[sel.Sel.Name] != nil && sel.Sel.Name != layer && sel.Sel.Name != "Timeout" && sel.Sel.Name != "Health" {
				t.Errorf("%s: the %s layer reaches for the %s layer", fset.Position(sel.Pos()), layer, sel.Sel.Name)
			}
			return true
		})
	}
}

// declared returns the names that a file declares for its package, with the node that does.
func declared(file *ast.File) map[string]ast.Node {
	names := map[string]ast.Node{}
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				names[d.Name.Name] = d
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					names[s.Name.Name] = s
				case *ast.ValueSpec:
					for _, name := range s.Names {
						names[name.Name] = s
					}
				}
			}
		}
	}
	delete(names, "_")
	return names
}

// allowed are the modules that users of this one get with it; testify is for tests.
var allowed = []string{"github.com/google/uuid", "github.com/sony/gobreaker/v2", "golang.org/x/sync"}

const testModule = "github.com/stretchr/testify"

func TestArchitecture_FourModules(t *testing.T) {
	data, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	inBlock := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "require (":
			inBlock = true
			continue
		case line == ")":
			inBlock = false
		case strings.HasPrefix(line, "replace "):
			t.Errorf("a replace in go.mod does not reach users: %s", line)
		}
		line, single := strings.CutPrefix(line, "require ")
		if !inBlock && !single || line == "" || strings.Contains(line, "// indirect") {
			continue
		}
		path := strings.Fields(line)[0]
		require.Contains(t, append([]string{testModule}, allowed...), path, "go.mod requires it directly; heavier things live in modules of their own")
	}
}

func TestArchitecture_Imports(t *testing.T) {
	files, fset := sources(t)
	for _, s := range files {
		for _, spec := range s.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			at := fset.Position(spec.Pos())
			if path == module+"/retell" || strings.HasPrefix(path, module+"/retell/") {
				core := s.dir == "." || strings.HasPrefix(s.dir, "internal/")
				require.False(t, core && !s.test, "%s: retell builds on resilience, never the other way round", at)
			}
			if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") || under(path, module) {
				continue
			}
			ok := slices.ContainsFunc(allowed, func(m string) bool { return under(path, m) }) || s.test && under(path, testModule)
			require.True(t, ok, "%s: imports %s", at, path)
		}
	}
}

func under(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

// Package variables are set where they are declared and never again: what two tests, two stacks or two goroutines share
// lives in a value that somebody holds.
func TestArchitecture_NoHiddenState(t *testing.T) {
	files, fset := sources(t)
	vars := map[string]map[string]bool{} // directory and package, name
	pkgOf := func(s source) string { return s.dir + " " + s.Name.Name }
	for _, s := range files {
		for name, node := range declared(s.File) {
			if _, ok := node.(*ast.FuncDecl); ok && name == "init" {
				t.Errorf("%s: an init function", fset.Position(node.Pos()))
			}
		}
		for _, spec := range packageVars(s.File) {
			if vars[pkgOf(s)] == nil {
				vars[pkgOf(s)] = map[string]bool{}
			}
			for _, name := range spec.Names {
				vars[pkgOf(s)][name.Name] = true
			}
			if !s.test && !constant(spec) {
				t.Errorf("%s: the package variable %s may hold state", fset.Position(spec.Pos()), spec.Names[0].Name)
			}
		}
	}
	for _, s := range files {
		if s.test {
			continue
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			for _, target := range assigned(n) {
				id := base(target)
				if id == nil || !vars[pkgOf(s)][id.Name] {
					continue
				}
				if id.Obj == nil || slices.ContainsFunc(packageVars(s.File), func(v *ast.ValueSpec) bool { return v == id.Obj.Decl }) {
					t.Errorf("%s: the package variable %s is changed", fset.Position(n.Pos()), id.Name)
				}
			}
			return true
		})
	}
}

func packageVars(file *ast.File) []*ast.ValueSpec {
	var list []*ast.ValueSpec
	for _, decl := range file.Decls {
		d, ok := decl.(*ast.GenDecl)
		if !ok || d.Tok != token.VAR {
			continue
		}
		embed := d.Doc != nil && slices.ContainsFunc(d.Doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
		for _, spec := range d.Specs {
			v, ok := spec.(*ast.ValueSpec)
			if ok && v.Names[0].Name != "_" && !embed && !embedded(v) {
				list = append(list, v)
			}
		}
	}
	return list
}

func embedded(v *ast.ValueSpec) bool {
	return v.Doc != nil && slices.ContainsFunc(v.Doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// makers are functions whose result nobody changes.
var makers = []string{
	"errors.New", "errors.Join", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer", "template.Must",
	"netip.MustParsePrefix", "netip.MustParseAddr", "WithPadding", "sync.OnceValue", "sync.OnceValues",
}

// constant reports, as well as can be told without types, whether nothing but an assignment could change a variable.
func constant(v *ast.ValueSpec) bool {
	if len(v.Values) == 0 {
		return false
	}
	return !slices.ContainsFunc(v.Values, func(e ast.Expr) bool { return !constantExpr(e) })
}

func constantExpr(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit, *ast.Ident, *ast.SelectorExpr, *ast.BinaryExpr, *ast.FuncLit:
		return true
	case *ast.CompositeLit:
		name := nameOf(e.Type)
		return !strings.HasPrefix(name, "sync.") && !strings.HasPrefix(name, "atomic.")
	case *ast.UnaryExpr:
		return constantExpr(e.X)
	case *ast.CallExpr:
		return constantCall(e)
	default:
		return false
	}
}

// constantCall knows makers, conversions of literals, and tables that are built from what the package declares.
func constantCall(call *ast.CallExpr) bool {
	switch call.Fun.(type) {
	case *ast.FuncLit, *ast.Ident:
		if len(call.Args) == 0 {
			return true
		}
	}
	name := nameOf(call.Fun)
	if slices.ContainsFunc(makers, func(m string) bool { return name == m || strings.HasSuffix(name, "."+m) }) {
		return true
	}
	return len(call.Args) == 1 && slices.ContainsFunc(call.Args, func(e ast.Expr) bool { _, ok := e.(*ast.BasicLit); return ok })
}

// nameOf returns a.b.c for a selector, a for a name, nothing for anything else.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return nameOf(e.X) + "." + e.Sel.Name
	default:
		return ""
	}
}

// assigned returns what a statement changes, or hands out for changing.
func assigned(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			return n.Lhs
		}
	case *ast.IncDecStmt:
		return []ast.Expr{n.X}
	case *ast.RangeStmt:
		if n.Tok == token.ASSIGN {
			return []ast.Expr{n.Key, n.Value}
		}
	case *ast.CallExpr:
		if name := nameOf(n.Fun); (name == "delete" || name == "clear") && len(n.Args) > 0 {
			return n.Args[:1]
		}
	}
	return nil
}

// base returns m for m.a[i].b.
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

func TestArchitecture_ExportedNamesHaveComments(t *testing.T) {
	files, fset := sources(t)
	missing := func(n ast.Node, name string) {
		t.Errorf("%s: %s has no comment that says what it promises", fset.Position(n.Pos()), name)
	}
	for _, s := range files {
		if s.dir != "." || s.test {
			continue
		}
		for _, decl := range s.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedReceiver(d.Recv)) {
					missing(d, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
							missing(s, s.Name.Name)
						}
					case *ast.ValueSpec:
						for _, name := range s.Names {
							if name.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
								missing(s, name.Name)
							}
						}
					}
				}
			}
		}
	}
}

func exportedReceiver(recv *ast.FieldList) bool {
	t := recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}
