package retelltest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// rawJSON is an answer that is JSON already.
type rawJSON = json.RawMessage

// life is how calls move by themselves.
type life struct{ ring, talk time.Duration }

// ErrNoCall is returned when there is no such call.
var ErrNoCall = errors.New("retelltest: no such call")

// ErrCallState is returned when a call is in no state for what was asked, for example to be answered when it is over.
var ErrCallState = errors.New("retelltest: call is in another state")

// notConnected are the reasons that end a call before it connects.
var notConnected = []string{
	"dial_busy", "dial_failed", "dial_no_answer", "invalid_destination", "telephony_provider_permission_denied",
	"telephony_provider_unavailable", "sip_routing_error", "marked_as_spam", "user_declined",
}

// Answer lets somebody pick up: a registered call is ongoing from now on (webhook call_started).
func (s *Server) Answer(callID string) error { return s.move(callID, s.answerCall) }

// Hangup ends a call for a reason, one of Retell's disconnection reasons; empty: "user_hangup" for an ongoing call,
// "dial_no_answer" for a registered one. The call's status follows from the reason: not_connected for reasons of dialing,
// error for those that start with "error_", else ended (webhook call_ended). The call gives its place under the
// concurrency limit back.
func (s *Server) Hangup(callID, reason string) error {
	return s.move(callID, func(it *item) error { return s.endCall(it, reason) })
}

// Analyze ends the analysis of a call that is over (webhook call_analyzed). The fields are those of call_analysis, like
// "call_summary" and "call_successful".
func (s *Server) Analyze(callID string, analysis map[string]any) error {
	decoded := plain(analysis)
	return s.move(callID, func(it *item) error {
		if live(it.obj) {
			return ErrCallState
		}
		it.obj["call_analysis"] = decoded
		s.emit("call_analyzed", it.obj)
		return nil
	})
}

// AddCall puts a call into the server that nobody made through the API: a stranger in a list, an inbound call, one with
// a transcript. The fields are those of Retell's call object; what is missing is filled in: a new call_id, an ended
// outbound phone call of now. It rings nowhere. AddCall returns the call's id.
func (s *Server) AddCall(fields map[string]any) string {
	given := plain(fields)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	id := text(given, "call_id")
	if id == "" {
		id = s.newID("call_")
	}
	call := object{
		"call_id": id, "call_type": "phone_call", "call_status": "ended", "direction": "outbound",
		"from_number": testNumber, "to_number": "+15550009999", "agent_id": testAgent, "agent_version": 0,
		"start_timestamp": millis(now),
	}
	maps.Copy(call, given)
	s.calls.put(id, call, now)
	delete(s.active, id) // one of that id may have been there
	if live(call) {
		s.active[id] = true
	}
	return id
}

// move changes a call and delivers what that causes.
func (s *Server) move(callID string, change func(*item) error) (err error) {
	s.locked(func() {
		it, ok := s.calls.items[callID]
		if !ok {
			err = ErrNoCall
			return
		}
		if err = change(it); err != nil {
			err = fmt.Errorf("%w: %v", err, it.obj["call_status"])
		}
	})
	return err
}

func live(call object) bool {
	return call["call_status"] == "registered" || call["call_status"] == "ongoing"
}

func (s *Server) answerCall(it *item) error {
	if it.obj["call_status"] != "registered" {
		return ErrCallState
	}
	it.obj["call_status"] = "ongoing"
	it.obj["start_timestamp"] = millis(time.Now())
	s.active[it.id] = true
	s.emit("call_started", it.obj)
	return nil
}

func (s *Server) endCall(it *item, reason string) error {
	if !live(it.obj) {
		return ErrCallState
	}
	now := millis(time.Now())
	started, connected := number(it.obj["start_timestamp"])
	if reason == "" {
		reason = "dial_no_answer"
		if connected {
			reason = "user_hangup"
		}
	}
	status := "ended"
	switch {
	case slices.Contains(notConnected, reason):
		status = "not_connected"
	case strings.HasPrefix(reason, "error_"):
		status = "error"
	}
	it.obj["call_status"], it.obj["disconnection_reason"], it.obj["end_timestamp"] = status, reason, now
	if connected {
		duration := now - int64(started)
		it.obj["duration_ms"] = duration
		it.obj["transcript"], it.obj["transcript_object"], it.obj["transcript_with_tool_calls"] = "", []any{}, []any{}
		it.obj["call_cost"] = object{
			"combined_cost": 0, "product_costs": []any{},
			"total_duration_seconds": duration / 1000, "total_duration_unit_price": 0,
		}
	}
	delete(s.active, it.id)
	s.emit("call_ended", it.obj)
	return nil
}

// animate lets a new call move by itself, if the server was told so.
func (s *Server) animate(id string) {
	if s.life == nil {
		return
	}
	s.after(s.life.ring, func() {
		it, ok := s.calls.items[id]
		if !ok || s.answerCall(it) != nil {
			return
		}
		s.after(s.life.talk, func() {
			if it, ok := s.calls.items[id]; ok {
				_ = s.endCall(it, "user_hangup") // refused only if it is over already
			}
		})
	})
}

func (s *Server) stopCall(r *request) (any, *failure) {
	it, bad := s.theCall(r, 422)
	if bad != nil {
		return nil, bad
	}
	if s.endCall(it, "manual_stopped") != nil {
		return nil, fail(422, "the call is over")
	}
	return nil, nil
}

func (s *Server) updateLiveCall(r *request) (any, *failure) {
	it, bad := s.theLiveCall(r)
	if bad != nil {
		return nil, bad
	}
	control := child(r.body, "call_control")
	if control["additional_context"] == "" {
		return nil, fail(400, "additional_context must not be empty")
	}
	fields := maps.Clone(child(r.body, "fields_to_override"))
	variables := child(fields, "override_dynamic_variables")
	delete(fields, "override_dynamic_variables")
	if bad := applyUpdate(it.obj, fields, "metadata", "data_storage_setting"); bad != nil {
		return nil, bad
	}
	if variables != nil {
		merged := maps.Clone(child(it.obj, "retell_llm_dynamic_variables"))
		if merged == nil {
			merged = object{}
		}
		maps.Copy(merged, variables)
		it.obj["retell_llm_dynamic_variables"] = merged
	}
	if control != nil {
		it.controls = append(it.controls, text(control, "additional_context"))
	}
	return object{"success": true}, nil
}

// theLiveCall returns the call that the path names if it is under way.
func (s *Server) theLiveCall(r *request) (*item, *failure) {
	it, bad := s.theCall(r, 404)
	if bad != nil {
		return nil, bad
	}
	if !live(it.obj) {
		return nil, fail(422, "the call is over")
	}
	return it, nil
}

func (s *Server) listenLiveCall(r *request) (any, *failure) {
	if _, bad := s.theLiveCall(r); bad != nil {
		return nil, fail(404, "%s", bad.message)
	}
	return object{
		"access_token": s.newID("token_"), "expires_at": millis(r.now.Add(10 * time.Minute)),
		"participant_id": s.newID("participant_"), "room_name": "room_" + r.params[0], "transport": "livekit",
		"url": "wss://livekit.example.test",
	}, nil
}

func (s *Server) takeOverLiveCall(r *request) (any, *failure) {
	if _, bad := s.theLiveCall(r); bad != nil {
		return nil, fail(404, "%s", bad.message)
	}
	if text(r.body, "participant_id") == "" {
		return nil, fail(400, "participant_id is required")
	}
	return object{"success": true}, nil
}

func (s *Server) rerunCallAnalysis(r *request) (any, *failure) {
	it, bad := s.theCall(r, 422)
	if bad != nil {
		return nil, bad
	}
	if live(it.obj) {
		return nil, fail(400, "the call is not over")
	}
	if it.obj["call_analysis"] == nil {
		it.obj["call_analysis"] = object{"call_successful": true, "user_sentiment": "Neutral"}
	}
	s.emit("call_analyzed", it.obj)
	return it.obj, nil
}

func (s *Server) getConcurrency(*request) (any, *failure) {
	limit := s.limit
	if limit < 0 {
		limit = 1_000_000
	}
	return object{
		"current_concurrency": len(s.active), "concurrency_limit": limit, "base_concurrency": limit,
		"purchased_concurrency": 0, "concurrency_purchase_limit": 0, "remaining_purchase_limit": 0,
		"reserved_inbound_concurrency": 0, "concurrency_burst_enabled": false, "concurrency_burst_limit": 0,
	}, nil
}
