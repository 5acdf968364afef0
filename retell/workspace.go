package retell

import "context"

// Concurrency is about how many calls the workspace may have at a time.
type Concurrency struct{ c *Client }

// ConcurrencyInfo counts calls: phone calls in and out, web calls and batches share the limit.
type ConcurrencyInfo struct {
	Meta `json:"-"`

	CurrentConcurrency         int  `json:"current_concurrency"`
	ConcurrencyLimit           int  `json:"concurrency_limit"` // base and purchased
	BaseConcurrency            int  `json:"base_concurrency"`
	PurchasedConcurrency       int  `json:"purchased_concurrency"`
	ConcurrencyPurchaseLimit   int  `json:"concurrency_purchase_limit"`
	RemainingPurchaseLimit     int  `json:"remaining_purchase_limit"`
	ReservedInboundConcurrency int  `json:"reserved_inbound_concurrency"`
	ConcurrencyBurstEnabled    bool `json:"concurrency_burst_enabled"`
	ConcurrencyBurstLimit      int  `json:"concurrency_burst_limit"` // 0 when off
}

// OutboundHeadroom is how many more outbound calls fit now, never below 0. How burst and reserve go together is not
// documented; with burst off this is what Retell's own example computes.
func (i *ConcurrencyInfo) OutboundHeadroom() int {
	limit := i.ConcurrencyLimit
	if i.ConcurrencyBurstEnabled {
		limit = i.ConcurrencyBurstLimit
	}
	return max(0, limit-i.ReservedInboundConcurrency-i.CurrentConcurrency)
}

// Get returns the limits and how much of them is used now.
//
// GET /get-concurrency
func (s Concurrency) Get(ctx context.Context, opts ...CallOption) (*ConcurrencyInfo, error) {
	return Do[ConcurrencyInfo](ctx, s.c, "GET", "/get-concurrency", nil, opts...)
}

// APIKey is about the key that the client uses.
type APIKey struct{ c *Client }

// APIKeyInfo says what the key belongs to.
type APIKeyInfo struct {
	Meta `json:"-"`

	APIKeyName string `json:"api_key_name"` // may be empty
	OrgName    string `json:"org_name"`
	OrgID      string `json:"org_id"`
}

// Get returns what the key belongs to. It is the cheapest way to ask whether the API is there and the key is good.
//
// GET /get-api-key-info
func (s APIKey) Get(ctx context.Context, opts ...CallOption) (*APIKeyInfo, error) {
	return Do[APIKeyInfo](ctx, s.c, "GET", "/get-api-key-info", nil, opts...)
}
