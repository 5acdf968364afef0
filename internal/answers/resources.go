package answers

import (
	"container/list"
	"strings"
)

// node is a resource that answers, or calls on their way, are about. "call/abc" lies below "call", everything below the
// root. A node lives as long as something is about it or lies below it, so there are never more than there is to know.
type node struct {
	parent   *node
	name     string
	resource string // its name, from the root
	children map[string]*node
	entries  list.List // of the *entry about exactly this resource
	calls    int       // on their way for exactly this resource

	// When it was last invalidated, as a number of the store: by itself, or with everything below it.
	alone, below uint64
}

// at returns the node of a resource, making it if it is not there.
func (n *node) at(resource string) *node {
	resource = strings.Trim(resource, "/")
	for rest := resource; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		child := n.children[name]
		if child == nil {
			if n.children == nil {
				n.children = make(map[string]*node)
			}
			path := strings.TrimSuffix(resource[:len(resource)-len(rest)], "/")
			child = &node{parent: n, name: name, resource: path}
			n.children[name] = child
		}
		n = child
	}
	return n
}

// prune removes n and those above it that nothing is about any more.
func (n *node) prune() {
	for n.parent != nil && n.calls == 0 && n.entries.Len() == 0 && len(n.children) == 0 {
		delete(n.parent.children, n.name)
		n = n.parent
	}
}

// overtaken reports whether n was invalidated after the moment since.
func (n *node) overtaken(since uint64) bool {
	if n.alone > since {
		return true
	}
	for ; n != nil; n = n.parent {
		if n.below > since {
			return true
		}
	}
	return false
}
