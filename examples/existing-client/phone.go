package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
)

// phone is a client as people write it by hand. It knows nothing of layers, and nothing in this file changes.
type phone struct {
	http    *http.Client
	baseURL string
	apiKey  string
}

// call is the part of Retell's call object that this program needs.
type call struct {
	CallID     string `json:"call_id"`
	CallStatus string `json:"call_status"`
}

// dial calls somebody. id is the program's own id of the reminder; it goes into a header that Retell does not know.
func (p *phone) dial(ctx context.Context, id, from, to string) (*call, error) {
	body, err := json.Marshal(map[string]string{"from_number": from, "to_number": to})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.baseURL+"/v2/create-phone-call", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", id)
	return p.do(req)
}

// get reads a call.
func (p *phone) get(ctx context.Context, callID string) (*call, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.baseURL+"/v2/get-call/"+url.PathEscape(callID), nil)
	if err != nil {
		return nil, err
	}
	return p.do(req)
}

func (p *phone) do(req *http.Request) (*call, error) {
	req.Header.Set("Authorization", "Bearer "+p.apiKey)
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("retell answers %s", resp.Status)
	}
	var c call
	return &c, json.NewDecoder(resp.Body).Decode(&c)
}
