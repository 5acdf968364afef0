package retelltest

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// shelf keeps objects of one kind by id.
type shelf struct {
	items map[string]*item
	seq   int
}

type item struct {
	id   string
	seq  int
	made time.Time
	obj  object

	controls []string // what update-live-call told a call
}

func newShelf() *shelf { return &shelf{items: make(map[string]*item)} }

func (h *shelf) put(id string, obj object, now time.Time) *item {
	h.seq++
	it := &item{id: id, seq: h.seq, made: now, obj: obj}
	h.items[id] = it
	return it
}

// sorted returns the items that keep accepts, oldest start first.
func (h *shelf) sorted(keep func(*item) bool) []*item {
	var out []*item
	for _, it := range h.items {
		if keep == nil || keep(it) {
			out = append(out, it)
		}
	}
	slices.SortFunc(out, func(a, b *item) int { return a.place().compare(b.place()) })
	return out
}

// place is where an item stands in a list: by its start, or by its making before it has started, then by its number.
type place struct {
	at  int64
	seq int
}

func (it *item) place() place {
	if at, ok := number(it.obj["start_timestamp"]); ok {
		return place{int64(at), it.seq}
	}
	return place{millis(it.made), it.seq}
}

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.at, q.at), cmp.Compare(p.seq, q.seq))
}

func (p place) key() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%d", p.at, p.seq))
}

func placeOf(key string) (place, bool) {
	var p place
	b, err := base64.RawURLEncoding.DecodeString(key)
	if err != nil {
		return p, false
	}
	_, err = fmt.Sscanf(string(b), "%d.%d", &p.at, &p.seq)
	return p, err == nil
}

// paging is what a list request says about the page that it wants.
type paging struct {
	limit     int
	skip      int
	after     *place
	ascending bool
	total     bool
}

const (
	defaultLimit = 50
	maxLimit     = 1000
)

// pagingOf reads paging from a body or, for lists that have it there, from the query.
func pagingOf(body object, query url.Values) (paging, *failure) {
	p := paging{limit: defaultLimit}
	get := func(name string) any {
		if v := body[name]; v != nil {
			return v
		}
		if v := query.Get(name); v != "" {
			return v
		}
		return nil
	}
	if bad := whole(get("limit"), &p.limit); bad || p.limit < 1 || p.limit > maxLimit {
		return p, fail(400, "limit must be a whole number from 1 to %d", maxLimit)
	}
	if bad := whole(get("skip"), &p.skip); bad || p.skip < 0 {
		return p, fail(400, "skip must be a whole number from 0")
	}
	if key := get("pagination_key"); key != nil {
		if get("skip") != nil {
			return p, fail(400, "skip and pagination_key exclude each other")
		}
		s, _ := key.(string)
		at, ok := placeOf(s)
		if !ok {
			return p, fail(400, "pagination_key is not one of ours")
		}
		p.after = &at
	}
	switch get("sort_order") {
	case nil, "descending", "desc":
	case "ascending", "asc":
		p.ascending = true
	default:
		return p, fail(400, "sort_order must be ascending or descending")
	}
	p.total = get("include_total") == true
	return p, nil
}

// whole puts a whole number, if there is one, into out.
func whole(v any, out *int) (bad bool) {
	switch v := v.(type) {
	case nil:
		return false
	case string:
		n, err := strconv.Atoi(v)
		*out = n
		return err != nil
	}
	f, ok := number(v)
	*out = int(f)
	return !ok || f != float64(int(f))
}

// page cuts the wanted page out of all items, which come in ascending order, and shows each by show.
func (p paging) page(all []*item, show func(object) object) object {
	if !p.ascending {
		slices.Reverse(all)
	}
	rest := all
	switch {
	case p.after != nil:
		rest = slices.DeleteFunc(slices.Clone(all), func(it *item) bool {
			c := it.place().compare(*p.after)
			return p.ascending && c <= 0 || !p.ascending && c >= 0
		})
	case p.skip > 0:
		rest = all[min(p.skip, len(all)):]
	}
	more := len(rest) > p.limit
	rest = rest[:min(p.limit, len(rest))]
	items := make([]any, 0, len(rest))
	for _, it := range rest {
		items = append(items, show(it.obj))
	}
	out := object{"items": items, "has_more": more}
	if more {
		out["pagination_key"] = rest[len(rest)-1].place().key()
	}
	if p.total {
		out["total"] = len(all)
	}
	return out
}
