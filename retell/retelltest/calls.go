package retelltest

import (
	"cmp"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"time"
)

// maxMetadata is how many bytes of JSON metadata may be where Retell states a maximum.
const maxMetadata = 50_000

// keyLife is how long create-phone-call remembers an idempotency_key.
const keyLife = time.Hour

var (
	e164       = regexp.MustCompile(`^\+[1-9]\d{1,14}$`)
	keyPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{5,255}$`)
)

// keyed is what an idempotency_key stands for.
type keyed struct {
	object []byte // the answer's body
	until  time.Time
}

func (s *Server) createPhoneCall(r *request) (any, *failure) {
	key, bad := s.checkPhoneCall(r)
	if bad != nil {
		return nil, bad
	}
	if k := s.keys[key]; r.now.Before(k.until) {
		r.repeated = true
		return rawJSON(k.object), nil
	}
	if s.full() {
		return nil, fail(http.StatusTooManyRequests, "concurrency limit reached")
	}
	call := s.dial(r.body, text(r.body, "from_number"), r.now)
	if key != "" {
		s.keys[key] = keyed{object: encode(call), until: r.now.Add(keyLife)}
	}
	return call, nil
}

// checkPhoneCall says what is wrong with a request to dial, and returns the key it bears.
func (s *Server) checkPhoneCall(r *request) (key string, bad *failure) {
	if bad := checkCall(r.body, "from_number", "to_number"); bad != nil {
		return "", bad
	}
	if r.body["ignore_e164_validation"] != true && !e164.MatchString(text(r.body, "from_number")) {
		return "", fail(400, "from_number must be in E.164 format")
	}
	if !e164.MatchString(text(r.body, "to_number")) {
		return "", fail(400, "to_number must be in E.164 format")
	}
	if r.body["honor_internal_dnc"] == true && s.doNotCall(text(r.body, "to_number")) {
		return "", fail(400, "the contact is marked do_not_call")
	}
	if given, ok := r.body["idempotency_key"]; ok && s.serverKeys {
		key, _ = given.(string)
		if !keyPattern.MatchString(key) {
			return "", fail(400, "idempotency_key must be 5 to 255 letters, digits, - or _")
		}
	}
	return key, nil
}

func checkCall(body object, required ...string) *failure {
	for _, name := range required {
		if text(body, name) == "" {
			return fail(400, "%s is required", name)
		}
	}
	if m := body["metadata"]; m != nil {
		if _, ok := m.(object); !ok {
			return fail(400, "metadata must be an object")
		}
	}
	if v := body["retell_llm_dynamic_variables"]; v != nil {
		variables, _ := v.(object)
		if variables == nil {
			return fail(400, "retell_llm_dynamic_variables must be an object")
		}
		for _, value := range variables {
			if _, ok := value.(string); !ok {
				return fail(400, "dynamic variables must be strings")
			}
		}
	}
	return nil
}

// full reports whether no call more may begin.
func (s *Server) full() bool { return s.limit >= 0 && len(s.active) >= s.limit }

// dial places a phone call: it rings.
func (s *Server) dial(body object, from string, now time.Time) object {
	call := s.newCall(body, "phone_call", text(body, "override_agent_id"), now) // an agent_id is ignored, as by Retell
	call["from_number"], call["to_number"], call["direction"] = from, text(body, "to_number"), "outbound"
	call["telephony_identifier"] = object{"twilio_call_sid": "CA" + s.newID("")}
	id := text(call, "call_id")
	s.rings[text(body, "to_number")]++
	s.active[id] = true
	s.animate(id)
	return call
}

// newCall makes a registered call of what the request says about it. An empty agent is that of the number.
func (s *Server) newCall(body object, kind, agent string, now time.Time) object {
	call := object{
		"call_id": s.newID("call_"), "call_type": kind, "call_status": "registered",
		"agent_id": cmp.Or(agent, testAgent), "agent_version": 0, "data_storage_setting": "everything", "opt_in_signed_url": false,
	}
	for _, name := range []string{"metadata", "retell_llm_dynamic_variables", "custom_sip_headers"} {
		if v := body[name]; v != nil {
			call[name] = v
		}
	}
	s.calls.put(text(call, "call_id"), call, now)
	return call
}

func (s *Server) createWebCall(r *request) (any, *failure) {
	call, bad := s.webCall(r)
	if bad != nil {
		return nil, bad
	}
	return object{
		"call_id": call["call_id"], "access_token": call["access_token"], "transport": "gateway",
		"expires_at":  millis(r.now.Add(10 * time.Minute)),
		"ice_servers": []any{object{"urls": []any{"stun:stun.example.test:3478"}}},
	}, nil
}

func (s *Server) createWebCallV2(r *request) (any, *failure) {
	call, bad := s.webCall(r)
	if bad != nil {
		return nil, bad
	}
	return call, nil
}

func (s *Server) webCall(r *request) (object, *failure) {
	if bad := checkCall(r.body, "agent_id"); bad != nil {
		return nil, bad
	}
	if s.full() {
		return nil, fail(http.StatusTooManyRequests, "concurrency limit reached")
	}
	call := s.newCall(r.body, "web_call", text(r.body, "agent_id"), r.now)
	call["access_token"] = s.newID("token_")
	return call, nil
}

func (s *Server) registerPhoneCall(r *request) (any, *failure) {
	if bad := checkCall(r.body, "agent_id"); bad != nil {
		return nil, bad
	}
	call := s.newCall(r.body, "phone_call", text(r.body, "agent_id"), r.now)
	for _, name := range []string{"from_number", "to_number", "direction"} {
		call[name] = text(r.body, name)
	}
	if call["direction"] == "" {
		call["direction"] = "inbound"
	}
	return call, nil
}

func (s *Server) createBatchCall(r *request) (any, *failure) {
	from := text(r.body, "from_number")
	list, _ := r.body["tasks"].([]any)
	if from == "" || len(list) == 0 {
		return nil, fail(400, "from_number and tasks are required")
	}
	var tasks []object
	for _, e := range list {
		task, _ := e.(object)
		if bad := checkCall(task, "to_number"); bad != nil {
			return nil, bad
		}
		tasks = append(tasks, task)
	}
	batch, at := s.newID("batch_call_"), millis(r.now)
	if t, ok := number(r.body["trigger_timestamp"]); ok {
		at = int64(t)
	}
	start := func() {
		for _, task := range tasks {
			s.dial(task, from, time.Now())["batch_call_id"] = batch
		}
	}
	if wait := time.UnixMilli(at).Sub(r.now); wait > 0 {
		s.after(wait, start)
	} else {
		start()
	}
	out := object{
		"batch_call_id": batch, "name": text(r.body, "name"), "from_number": from,
		"scheduled_timestamp": at, "total_task_count": len(tasks),
	}
	if w := r.body["call_time_window"]; w != nil {
		out["call_time_window"] = w
	}
	return out, nil
}

// theCall returns the call that the path names.
func (s *Server) theCall(r *request, missing int) (*item, *failure) {
	it, ok := s.calls.items[r.params[0]]
	if !ok {
		return nil, fail(missing, "cannot find the call under this API key")
	}
	return it, nil
}

func (s *Server) getCall(r *request) (any, *failure) {
	it, bad := s.theCall(r, 422)
	if bad != nil {
		return nil, bad
	}
	return it.obj, nil
}

func (s *Server) listCalls(r *request) (any, *failure) {
	return s.list(s.calls, r, func(c object) ([]test, *failure) { return criteria(c, callFields, callMaps, true) }, withoutTranscript)
}

// list answers the two lists that have filters.
func (s *Server) list(h *shelf, r *request, compile func(object) ([]test, *failure), show func(object) object) (any, *failure) {
	p, bad := pagingOf(r.body, nil)
	if bad != nil {
		return nil, bad
	}
	filters := r.body["filter_criteria"]
	c, ok := filters.(object)
	if filters != nil && !ok {
		return nil, fail(400, "filter_criteria must be an object")
	}
	var tests []test
	if !s.ignoreFilters {
		if tests, bad = compile(c); bad != nil {
			return nil, bad
		}
	}
	return p.page(h.sorted(func(it *item) bool {
		if s.lag > 0 && r.now.Sub(it.made) < s.lag {
			return false
		}
		if s.hideRegistered && it.obj["call_status"] == "registered" {
			return false
		}
		return passes(it.obj, tests)
	}), show), nil
}

// withoutTranscript is how a list shows a call.
func withoutTranscript(call object) object {
	out := maps.Clone(call)
	for _, name := range []string{
		"transcript", "transcript_object", "transcript_with_tool_calls", "scrubbed_transcript_with_tool_calls",
	} {
		delete(out, name)
	}
	return out
}

func (s *Server) updateCall(r *request) (any, *failure) {
	it, bad := s.theCall(r, 422)
	if bad != nil {
		return nil, bad
	}
	if bad := applyUpdate(it.obj, r.body, "metadata", "data_storage_setting", "custom_attributes"); bad != nil {
		return nil, bad
	}
	return it.obj, nil
}

// applyUpdate puts the fields of an update into an object: all, or none and a failure.
func applyUpdate(o, update object, allowed ...string) *failure {
	for name := range update {
		if !slices.Contains(allowed, name) {
			return fail(400, "%s cannot be updated", name)
		}
	}
	if bad := checkCall(update); bad != nil {
		return bad
	}
	if len(encode(update["metadata"])) > maxMetadata {
		return fail(400, "metadata is larger than 50 kB")
	}
	if v, ok := update["data_storage_setting"]; ok {
		order := []string{"everything", "everything_except_pii", "basic_attributes_only"}
		setting, _ := v.(string)
		was, is := slices.Index(order, text(o, "data_storage_setting")), slices.Index(order, setting)
		if is < 0 || is < was {
			return fail(400, "data_storage_setting can only become stricter")
		}
	}
	for name, v := range update {
		if v != nil {
			o[name] = v
		}
	}
	return nil
}

func (s *Server) deleteCall(r *request) (any, *failure) {
	it, bad := s.theCall(r, 422)
	if bad != nil {
		return nil, bad
	}
	delete(s.calls.items, it.id)
	delete(s.active, it.id)
	return nil, nil
}

func (s *Server) doNotCall(number string) bool { return s.contactOf(number)["do_not_call"] == true }
