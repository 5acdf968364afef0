package retell

import "github.com/retell-resilience/resilience"

// byOperation finds an endpoint by the name of its operation.
var byOperation = func() map[string]endpoint {
	m := make(map[string]endpoint, len(endpoints))
	for _, e := range endpoints {
		m[e.operation()] = e
	}
	return m
}()

// keepLetter says which failed writes the dead-letter queue takes: see the trait keep. One that the catalogue does not know
// stays with its caller.
func keepLetter(c resilience.Call) bool { return byOperation[c.Operation].traits&keep != 0 }

// cacheable says of which reads the last good answer is kept: see the trait cached.
func cacheable(c resilience.Call) bool { return byOperation[c.Operation].traits&cached != 0 }
