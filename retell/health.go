package retell

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/retell-resilience/resilience"
)

// concurrencyCheck is the name of the component in the report of health.
const concurrencyCheck = "concurrency"

// withConcurrency adds the check "concurrency" unless the user has one of that name: how many calls the workspace has, how
// many it may have, and how many more outbound ones fit. It is degraded when none does, or less than a twentieth of what
// may be used. Whatever keeps Retell from saying that is the probe's to judge: here it is unknown.
func (c *Client) withConcurrency(cfg resilience.HealthConfig, base http.RoundTripper) resilience.HealthConfig {
	for _, check := range cfg.Checks {
		if check.Name == concurrencyCheck {
			return cfg
		}
	}
	check := resilience.HealthCheck{
		Name: concurrencyCheck, Optional: true, Every: cfg.ProbeEvery, Timeout: cfg.ProbeTimeout,
		Run: func(ctx context.Context) []resilience.CheckResult {
			info, err := c.askConcurrency(ctx, base)
			if err != nil {
				return []resilience.CheckResult{{Measure: "headroom", State: "not known", Message: "Retell did not say how many calls fit"}}
			}
			return concurrencyReadings(info)
		},
	}
	cfg.Checks = append(slices.Clip(cfg.Checks), check) // the user's slice stays as it is
	return cfg
}

// concurrencyAnswer tells a number that is missing from zero.
type concurrencyAnswer struct {
	Current *int `json:"current_concurrency"`
	Limit   *int `json:"concurrency_limit"`
}

// askConcurrency asks past all layers, as the probe does: it takes nobody's slot, and no cached answer counts.
func (c *Client) askConcurrency(ctx context.Context, base http.RoundTripper) (*ConcurrencyInfo, error) {
	body, err := c.read(ctx, base, "/get-concurrency")
	if err != nil {
		return nil, err
	}
	var said concurrencyAnswer
	info := new(ConcurrencyInfo)
	if err = decodeLenient(body, info); err == nil {
		err = json.Unmarshal(body, &said)
	}
	switch {
	case err != nil:
		return nil, err
	case said.Current == nil || said.Limit == nil:
		return nil, badAnswer(resilience.Call{Operation: "get-concurrency"}, http.StatusOK, nil)
	}
	return info, nil
}

// read is a plain GET past all layers.
func (c *Client) read(ctx context.Context, base http.RoundTripper, path string) ([]byte, error) {
	req, err := c.newRequest(ctx, http.MethodGet, path, nil, "application/json")
	if err != nil {
		return nil, err
	}
	call := describePath(http.MethodGet, path)
	resp, err := base.RoundTrip(req)
	if err != nil {
		return nil, named(call.Operation, err)
	}
	defer func() { _ = resp.Body.Close() }() // it is read, or not wanted
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return nil, errorOf(call, nil, resp.StatusCode, resp.Header, body)
	}
	return body, err
}

// concurrencyReadings judges the headroom; the rest is there to be read, and for rules.
func concurrencyReadings(i *ConcurrencyInfo) []resilience.CheckResult {
	limit := i.ConcurrencyLimit
	if i.ConcurrencyBurstEnabled {
		limit = i.ConcurrencyBurstLimit
	}
	usable, room, now := max(0, limit-i.ReservedInboundConcurrency), i.OutboundHeadroom(), time.Now()
	of := func(measure string, value float64, unit string, limit int) resilience.CheckResult {
		return resilience.CheckResult{
			Measure: measure, Status: resilience.Healthy, State: "ok", Value: value, Unit: unit, Limit: float64(limit), Time: now,
		}
	}
	headroom := of("headroom", float64(room), "calls", usable)
	switch {
	case room == 0:
		headroom.Status, headroom.Message = resilience.Degraded, "no more outbound call fits"
	case 20*room < usable:
		headroom.Status, headroom.Message = resilience.Degraded, fmt.Sprintf("only %d more outbound calls fit", room)
	}
	used := 100.0
	if usable > 0 {
		used = 100 * float64(usable-room) / float64(usable)
	}
	return []resilience.CheckResult{
		headroom, of("current", float64(i.CurrentConcurrency), "calls", limit), of("limit", float64(limit), "calls", 0),
		of("used", math.Round(10*used)/10, "%", 0),
	}
}
