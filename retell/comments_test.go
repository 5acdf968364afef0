package retell

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A search from the API's reference lands in the code: the comment of each method ends with its endpoint, which is one of the
// catalogue and the one that the method, or the page of it, asks.
func TestTheCommentOfEachMethodEndsWithItsEndpoint(t *testing.T) {
	catalogue := map[string]bool{}
	for _, e := range endpoints {
		catalogue[e.method+" "+e.path] = true
	}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	parts, methods := services(), 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || !f.Name.IsExported() || f.Recv == nil {
				continue
			}
			if of, ok := f.Recv.List[0].Type.(*ast.Ident); !ok || !parts[of.Name] {
				continue
			}
			methods++
			lines := strings.Split(strings.TrimSpace(f.Doc.Text()), "\n")
			last := lines[len(lines)-1]
			require.True(t, catalogue[last], "%s of %s ends with %q", f.Name.Name, name, last)
			if method, path := asks(f); path != "" {
				said, to, _ := strings.Cut(last, " ")
				require.Equal(t, method, said, f.Name.Name)
				require.Equal(t, path, strings.TrimSuffix(strings.Split(to, "{")[0], "/"), f.Name.Name)
			}
		}
	}
	require.Greater(t, methods, 30)
}

// services are the names of the client's parts, as Calls in client.Calls.
func services() map[string]bool {
	names := map[string]bool{}
	client := reflect.TypeFor[Client]()
	for i := range client.NumField() {
		if f := client.Field(i); f.IsExported() {
			names[f.Type.Name()] = true
		}
	}
	return names
}

// asks finds the method and the path, up to the id, in the texts of a function. One that goes on to another has no path.
func asks(f *ast.FuncDecl) (method, path string) {
	ast.Inspect(f.Body, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			switch text := strings.Trim(lit.Value, `"`); {
			case strings.HasPrefix(text, "/"):
				path = text
			case text == "GET", text == "POST", text == "PATCH", text == "PUT", text == "DELETE":
				method = text
			}
		}
		return true
	})
	return method, path
}
