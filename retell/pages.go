package retell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/url"
	"strconv"
)

// SortOrder of a list.
type SortOrder string

// The orders; the zero value leaves it to the API, which lists the newest first.
const (
	SortAscending  SortOrder = "ascending"
	SortDescending SortOrder = "descending"
)

// Page is one page of a list.
type Page[T any] struct {
	Meta `json:"-"`
	// Items of the page. Each has its own Raw.
	Items []*T `json:"items"`
	// HasMore: ask for the next page with PaginationKey.
	HasMore       bool   `json:"has_more"`
	PaginationKey string `json:"pagination_key,omitempty"`
	// Total of all pages; nil unless it was asked for.
	Total *int `json:"total,omitempty"`
}

// UnmarshalJSON takes the page object, and the bare array of the endpoints that have no pages. An item is decoded as
// leniently as any answer.
func (p *Page[T]) UnmarshalJSON(data []byte) error {
	var shape struct {
		Items         []json.RawMessage `json:"items"`
		HasMore       json.RawMessage   `json:"has_more"`
		PaginationKey string            `json:"pagination_key"`
		Total         optional[int]     `json:"total"`
	}
	var err error
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("[")) {
		err = json.Unmarshal(data, &shape.Items)
	} else {
		err = decodeLenient(data, &shape)
	}
	if err != nil || shape.Items == nil {
		return errors.New("a page without items")
	}
	if p.HasMore, err = hasMore(shape.HasMore, shape.PaginationKey); err != nil {
		return err
	}
	p.Items = make([]*T, 0, len(shape.Items))
	for _, raw := range shape.Items {
		item := new(T)
		if isNull(raw) || decodeLenient(raw, item) != nil {
			return errors.New("an item of the page is not of its kind")
		}
		p.Items = append(p.Items, item)
	}
	p.PaginationKey, p.Total = shape.PaginationKey, shape.Total.value
	return nil
}

// hasMore is not lenient: a list that is taken for complete too early lacks things, and a look-up the call it is for. A page
// that only names the next one has a next one.
func hasMore(said json.RawMessage, next string) (bool, error) {
	var more *bool
	if len(said) > 0 && json.Unmarshal(said, &more) != nil {
		return false, errors.New("a page that does not say whether there is more")
	}
	if more == nil {
		return next != "", nil
	}
	return *more, nil
}

// List is the answer of an endpoint that returns everything at once, as a bare array.
type List[T any] = Page[T]

// PageParams are common to the lists whose paging travels in the query.
type PageParams struct {
	// Limit is how many items a page has. 0: the API's default, 50; at most 1000.
	Limit         int
	PaginationKey string
	SortOrder     SortOrder
}

// query returns the parameters with a question mark before them, "" if there are none.
func (p PageParams) query() string {
	q := url.Values{}
	if p.Limit != 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	if p.PaginationKey != "" {
		q.Set("pagination_key", p.PaginationKey)
	}
	if p.SortOrder != "" {
		q.Set("sort_order", string(p.SortOrder))
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// all walks a list page by page. It ends at the last item, at the first error, or when the loop over it ends. A list that
// says that there is more and does not say where, or sends back to where it was, is an error, not an end: the caller must
// not take it for complete.
func all[T any](operation string, first string, get func(key string) (*Page[T], error)) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		been := map[string]bool{}
		for key := first; ; {
			been[key] = true
			page, err := get(key)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			switch {
			case !page.HasMore:
				return
			case page.PaginationKey == "" || been[page.PaginationKey]:
				yield(nil, &Error{
					Operation: operation, StatusCode: page.StatusCode,
					text: "there is more, but no new key for the next page", kinds: []error{ErrBadAnswer},
				})
				return
			}
			key = page.PaginationKey
		}
	}
}

// getPage is one page of a list whose paging travels in the query.
func getPage[T any](ctx context.Context, c *Client, method, path string, p PageParams, in any, opts []CallOption) (*Page[T], error) {
	return Do[Page[T]](ctx, c, method, path+p.query(), in, opts...)
}
