package retell

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/retell-resilience/resilience"
)

// Describe tells the layers what a request to Retell's API is: its operation by Retell's own name ("create-phone-call",
// "get-call", "list-calls"), whether a repeat does harm, how urgent it is, and how long it may take. It knows every
// endpoint of the catalogue under its path below the root of the host; for a base URL with a path of its own, [New] takes
// that path off first. Give it to resilience.Config.Describe, or start from [Config], which has it.
//
// A request that the catalogue does not know is described by its method, and its operation is the method: an operation
// never holds an id, so it can label metrics.
//
// Resource is a path: "call/abc" for one call, "call/abc/live" for a part of it, "call" for the collection, where lists read
// and creates write. A write concerns what is at, below and above its resource. An id stands there in one spelling,
// percent-encoded where it has to be. Phone calls, texts and batches name no resource, so that no later one can supersede
// an earlier one that waits in the dead-letter queue.
//
// It is safe for concurrent use and does not change the request.
func Describe(req *http.Request) resilience.Call {
	if req == nil || req.URL == nil {
		return describeMethod("")
	}
	return describePath(req.Method, req.URL.EscapedPath())
}

func describePath(method, escaped string) resilience.Call {
	if method == "" {
		method = http.MethodGet
	}
	r, id := routeOf(method, escaped)
	if r == nil {
		return describeMethod(method)
	}
	c := r.call
	if r.byID {
		c.Resource += "/" + canonicalID(id) + r.part
	}
	return c
}

// route is an endpoint prepared for matching.
type route struct {
	endpoint
	call resilience.Call // Resource up to the id
	byID bool            // the resource has the first id of the path
	part string          // what the resource has behind the id
	rest []string        // the segments behind the name; "" for an id
}

type routeKey struct{ method, name string }

// routes finds an endpoint by its method and its path up to the name of the operation, "v2/get-call".
var routes = buildRoutes()

func buildRoutes() map[routeKey]*route {
	m := make(map[routeKey]*route, len(endpoints))
	for _, e := range endpoints {
		name, rest := splitName(e.path[1:])
		r := &route{endpoint: e, call: e.describe()}
		r.call.Resource, r.part, r.byID = strings.Cut(e.resource, "/")
		r.part = r.part[strings.IndexByte(r.part, '}')+1:]
		for rest != "" {
			var segment string
			segment, rest, _ = strings.Cut(rest, "/")
			if strings.HasPrefix(segment, "{") {
				segment = ""
			}
			r.rest = append(r.rest, segment)
		}
		m[routeKey{e.method, name}] = r
	}
	return m
}

// operation is the name of the endpoint in Retell's reference, without the version.
func (e endpoint) operation() string {
	name, _ := splitName(e.path[1:])
	return name[strings.IndexByte(name, '/')+1:]
}

func (e endpoint) describe() resilience.Call {
	c := resilience.Call{Operation: e.operation(), Effect: e.effect, Class: e.class, Priority: e.priority}
	if e.traits&rings != 0 {
		c.Limit, c.Budget = phoneCallLimit, phoneCallBudget
	}
	return c
}

// splitName cuts a path without its first slash behind the name of the operation.
func splitName(path string) (name, rest string) {
	end := strings.IndexByte(path, '/')
	if end == 2 && path[0] == 'v' { // "v2/get-call/…": the version belongs to the name
		if next := strings.IndexByte(path[3:], '/'); next >= 0 {
			end = 3 + next
		} else {
			end = -1
		}
	}
	if end < 0 {
		return path, ""
	}
	return path[:end], path[end+1:]
}

// routeOf finds the endpoint of an escaped path, and the first id in it.
func routeOf(method, escaped string) (r *route, id string) {
	if !strings.HasPrefix(escaped, "/") {
		return nil, ""
	}
	name, rest := splitName(escaped[1:])
	r = routes[routeKey{method, name}]
	if r == nil || len(escaped) > 1+len(name) != (len(r.rest) > 0) {
		return nil, ""
	}
	for i, want := range r.rest {
		segment, tail, more := strings.Cut(rest, "/")
		switch {
		case segment == "" || (want != "" && segment != want) || more == (i == len(r.rest)-1):
			return nil, ""
		case want == "" && id == "":
			id = segment
		}
		rest = tail
	}
	return r, id
}

// canonicalID gives an id one spelling: "+1" and "%2B1" are the same phone number.
func canonicalID(segment string) string {
	raw, err := url.PathUnescape(segment)
	if err != nil {
		return segment
	}
	return url.PathEscape(raw)
}

// describeMethod is for requests that the catalogue does not know.
func describeMethod(method string) resilience.Call {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return resilience.Call{Operation: method, Effect: resilience.EffectRead}
	case http.MethodPut, http.MethodDelete:
		return resilience.Call{Operation: method, Effect: resilience.EffectIdempotent}
	case http.MethodPost, http.MethodPatch, http.MethodConnect:
		return resilience.Call{Operation: method, Effect: resilience.EffectOnce}
	default:
		return resilience.Call{Operation: "other", Effect: resilience.EffectOnce} // any word may be a method: keep the set closed
	}
}
