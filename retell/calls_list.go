package retell

import (
	"context"
	"iter"
)

// ListCallsParams select calls and the order they come in. The zero value lists all, the newest first.
type ListCallsParams struct {
	FilterCriteria *CallFilter `json:"filter_criteria,omitempty"`
	SortOrder      SortOrder   `json:"sort_order,omitempty"` // by start_timestamp
	// Limit is how many calls a page has. 0: the API's default, 50; at most 1000.
	Limit         int    `json:"limit,omitempty"`
	PaginationKey string `json:"pagination_key,omitempty"`
	// Skip leaves out that many calls. Not together with PaginationKey.
	Skip int `json:"skip,omitempty"`
	// IncludeTotal counts all calls that match, which costs the API another query.
	IncludeTotal bool `json:"include_total,omitempty"`
}

func (p ListCallsParams) check(operation string) error {
	if p.Skip != 0 && p.PaginationKey != "" {
		return invalid(operation, "skip", "and pagination_key exclude each other")
	}
	return nil
}

// ListPage returns one page of calls, without their transcripts.
//
// POST /v3/list-calls
func (s Calls) ListPage(ctx context.Context, p ListCallsParams, opts ...CallOption) (*Page[Call], error) {
	if err := p.check("list-calls"); err != nil {
		return nil, err
	}
	return Do[Page[Call]](ctx, s.c, "POST", "/v3/list-calls", p, opts...)
}

// List returns all calls that match, page by page as the loop over it goes on, without their transcripts. It ends at the
// first error.
//
// POST /v3/list-calls
func (s Calls) List(ctx context.Context, p ListCallsParams, opts ...CallOption) iter.Seq2[*Call, error] {
	return all("list-calls", p.PaginationKey, func(key string) (*Page[Call], error) {
		next := p
		if next.PaginationKey = key; key != p.PaginationKey {
			next.Skip = 0 // it was done on the first page
		}
		return s.ListPage(ctx, next, opts...)
	})
}
