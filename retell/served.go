package retell

import "github.com/retell-resilience/resilience"

// fill says where an answer came from.
func (a *answer) fill(m *Meta) {
	m.StatusCode, m.Raw = a.resp.StatusCode, a.body
	m.Age, m.Staleness, m.FromFallback = resilience.Served(a.resp)
	m.FallbackReason = resilience.ServedReason(a.resp)
	m.Replayed = resilience.Replayed(a.resp)
}
