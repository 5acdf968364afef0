package retelltest

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"time"
)

// kind is a sort of object with a plain life: it is created, read, listed, changed and deleted.
type kind struct {
	id      string // the field that holds its id
	prefix  string // of new ids; also its name
	missing int    // status when there is none of that id
}

var (
	agents         = kind{"agent_id", "agent_", 422}
	chatAgents     = kind{"agent_id", "chat_agent_", 422}
	numbers        = kind{"phone_number", "+1555", 422}
	voices         = kind{"voice_id", "voice_", 422}
	llms           = kind{"llm_id", "llm_", 422}
	flows          = kind{"conversation_flow_id", "conversation_flow_", 404}
	components     = kind{"conversation_flow_component_id", "conversation_flow_component_", 404}
	knowledgeBases = kind{"knowledge_base_id", "knowledge_base_", 422}
	assets         = kind{"asset_id", "asset_", 404}
	contacts       = kind{"contact_id", "contact_", 404}
	uploads        = kind{"upload_id", "upload_", 404}
	imports        = kind{"contact_import_id", "contact_import_", 404}
	apps           = kind{"app_id", "app_", 404}
	batchTests     = kind{"test_case_batch_job_id", "test_case_batch_", 404}
	testRuns       = kind{"test_case_job_id", "test_case_job_", 404}
	testCases      = kind{"test_case_definition_id", "test_case_definition_", 404}
)

// What is there from the beginning.
const (
	testAgent  = "agent_test"
	testNumber = "+15550001000"
)

func (s *Server) furnish(now time.Time) {
	s.shelf(agents).put(testAgent, object{
		"agent_id": testAgent, "version": 0, "last_modification_timestamp": millis(now), "agent_name": "Test",
		"voice_id": "11labs-Adrian", "is_published": true,
		"response_engine": object{"type": "retell-llm", "llm_id": "llm_test"},
	}, now)
	s.shelf(numbers).put(testNumber, phoneNumber(testNumber, now), now)
	for _, v := range []object{
		{"voice_id": "11labs-Adrian", "voice_name": "Adrian", "provider": "elevenlabs", "gender": "male"},
		{"voice_id": "openai-Nova", "voice_name": "Nova", "provider": "openai", "gender": "female"},
	} {
		s.shelf(voices).put(text(v, "voice_id"), v, now)
	}
}

// shelf returns where a kind is kept.
func (s *Server) shelf(k kind) *shelf {
	h, ok := s.stock[k.prefix]
	if !ok {
		h = newShelf()
		s.stock[k.prefix] = h
	}
	return h
}

func (k kind) create(s *Server, r *request) (any, *failure) {
	if number := text(r.body, "phone_number"); k == contacts && number != "" && s.contactOf(number) != nil {
		return nil, fail(400, "there is a contact of that phone number")
	}
	id := s.newID(k.prefix)
	obj := maps.Clone(r.body)
	obj[k.id] = id
	obj["last_modification_timestamp"] = millis(r.now)
	switch k {
	case agents, chatAgents, llms, flows:
		obj["version"], obj["is_published"] = 0, false
	case knowledgeBases:
		obj["status"] = "complete"
	}
	s.shelf(k).put(id, obj, r.now)
	return obj, nil
}

func (k kind) find(s *Server, r *request) (*item, *failure) {
	it, ok := s.shelf(k).items[r.params[0]]
	if !ok {
		return nil, fail(k.missing, "cannot find the asset under this API key")
	}
	return it, nil
}

func (k kind) get(s *Server, r *request) (any, *failure) {
	it, bad := k.find(s, r)
	if bad != nil {
		return nil, bad
	}
	return it.obj, nil
}

func (k kind) update(s *Server, r *request) (any, *failure) {
	it, bad := k.find(s, r)
	if bad != nil {
		return nil, bad
	}
	maps.Copy(it.obj, r.body)
	it.obj[k.id], it.obj["last_modification_timestamp"] = it.id, millis(r.now)
	return it.obj, nil
}

// updateFlow is update for conversation flows, which has another status than the rest for one that is not there.
func (s *Server) updateFlow(r *request) (any, *failure) {
	if _, bad := flows.find(s, r); bad != nil {
		return nil, fail(http.StatusUnprocessableEntity, "%s", bad.message)
	}
	return flows.update(s, r)
}

func (k kind) remove(s *Server, r *request) (any, *failure) {
	it, bad := k.find(s, r)
	if bad != nil {
		return nil, bad
	}
	delete(s.shelf(k).items, it.id)
	return nil, nil
}

// page lists with paging in the query, or in the body.
func (k kind) page(s *Server, r *request) (any, *failure) {
	p, bad := pagingOf(r.body, r.query)
	if bad != nil {
		return nil, bad
	}
	return p.page(s.shelf(k).sorted(nil), func(o object) object { return o }), nil
}

// all lists without paging.
func (k kind) all(s *Server, _ *request) (any, *failure) {
	out := []any{}
	for _, it := range s.shelf(k).sorted(nil) {
		out = append(out, it.obj)
	}
	return out, nil
}

// answering makes a handler that always says the same.
func answering(v any) handler {
	return func(*Server, *request) (any, *failure) { return v, nil }
}

func (s *Server) echo(r *request) (any, *failure) { return r.body, nil }

func phoneNumber(number string, now time.Time) object {
	return object{
		"phone_number": number, "phone_number_type": "retell-twilio", "phone_number_pretty": number,
		"last_modification_timestamp": millis(now),
	}
}

func (s *Server) createPhoneNumber(r *request) (any, *failure) {
	wanted := text(r.body, "phone_number")
	if wanted == "" {
		area := 555
		if n, ok := number(r.body["area_code"]); ok {
			area = int(n)
		}
		s.ids[numbers.prefix]++
		wanted = fmt.Sprintf("+1%03d%07d", area, 1000+s.ids[numbers.prefix])
	}
	return s.putNumber(wanted, "retell-twilio", r)
}

func (s *Server) importPhoneNumber(r *request) (any, *failure) {
	return s.putNumber(text(r.body, "phone_number"), "custom", r)
}

func (s *Server) putNumber(number, sort string, r *request) (any, *failure) {
	if !e164.MatchString(number) {
		return nil, fail(400, "phone_number must be in E.164 format")
	}
	if _, taken := s.shelf(numbers).items[number]; taken {
		return nil, fail(400, "the phone number is in this workspace already")
	}
	obj := phoneNumber(number, r.now)
	maps.Copy(obj, r.body)
	obj["phone_number"], obj["phone_number_type"] = number, cmp.Or(text(r.body, "phone_number_type"), sort)
	s.shelf(numbers).put(number, obj, r.now)
	return obj, nil
}

func (s *Server) contactOf(number string) object {
	for _, it := range s.shelf(contacts).items {
		if it.obj["phone_number"] == number {
			return it.obj
		}
	}
	return nil
}

func (s *Server) getContactByPhone(r *request) (any, *failure) {
	if c := s.contactOf(r.params[0]); c != nil {
		return c, nil
	}
	return nil, fail(http.StatusNotFound, "there is no contact of that phone number")
}
