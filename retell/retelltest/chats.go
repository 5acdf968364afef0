package retelltest

import "time"

func (s *Server) createChat(r *request) (any, *failure) {
	if bad := checkCall(r.body, "agent_id"); bad != nil {
		return nil, bad
	}
	return s.newChat(r.body, text(r.body, "agent_id"), "api_chat", r.now), nil
}

func (s *Server) createSMSChat(r *request) (any, *failure) {
	if bad := checkCall(r.body, "from_number", "to_number"); bad != nil {
		return nil, bad
	}
	to := text(r.body, "to_number")
	if !e164.MatchString(to) {
		return nil, fail(400, "to_number must be in E.164 format")
	}
	if r.body["honor_internal_dnc"] == true && s.doNotCall(to) {
		return nil, fail(400, "the contact is marked do_not_call")
	}
	agent := text(r.body, "override_agent_id")
	if agent == "" {
		agent = testAgent
	}
	chat := s.newChat(r.body, agent, "sms_chat", r.now)
	chat["agent_number"], chat["user_number"], chat["direction"] = text(r.body, "from_number"), to, "outbound"
	s.texts[to]++
	return chat, nil
}

func (s *Server) newChat(body object, agent, kind string, now time.Time) object {
	chat := object{
		"chat_id": s.newID("chat_"), "agent_id": agent, "version": 0, "chat_status": "ongoing", "chat_type": kind,
		"start_timestamp": millis(now), "message_with_tool_calls": []any{}, "data_storage_setting": "everything",
	}
	for _, name := range []string{"metadata", "retell_llm_dynamic_variables"} {
		if v := body[name]; v != nil {
			chat[name] = v
		}
	}
	s.chats.put(text(chat, "chat_id"), chat, now)
	s.emitChat("chat_started", chat)
	return chat
}

func (s *Server) theChat(id string) (*item, *failure) {
	it, ok := s.chats.items[id]
	if !ok {
		return nil, fail(422, "cannot find the chat under this API key")
	}
	return it, nil
}

func (s *Server) getChat(r *request) (any, *failure) {
	it, bad := s.theChat(r.params[0])
	if bad != nil {
		return nil, bad
	}
	return it.obj, nil
}

func (s *Server) listChats(r *request) (any, *failure) {
	return s.list(s.chats, r, func(c object) ([]test, *failure) { return criteria(c, chatFields, chatMaps, false) },
		func(chat object) object { return chat })
}

func (s *Server) createChatCompletion(r *request) (any, *failure) {
	it, bad := s.theChat(text(r.body, "chat_id"))
	if bad != nil {
		return nil, bad
	}
	said := text(r.body, "content")
	if said == "" {
		return nil, fail(400, "content is required")
	}
	if it.obj["chat_status"] != "ongoing" {
		return nil, fail(422, "the chat is over")
	}
	turn := func(role, content string) object {
		return object{
			"role": role, "content": content, "message_id": s.newID("message_"), "created_timestamp": millis(r.now),
		}
	}
	user, agent := turn("user", said), turn("agent", "You said: "+said)
	before, _ := it.obj["message_with_tool_calls"].([]any)
	it.obj["message_with_tool_calls"] = append(before[:len(before):len(before)], user, agent)
	return object{"messages": []any{agent}}, nil
}

func (s *Server) updateChat(r *request) (any, *failure) {
	it, bad := s.theChat(r.params[0])
	if bad != nil {
		return nil, bad
	}
	if bad := applyUpdate(it.obj, r.body,
		"metadata", "data_storage_setting", "custom_attributes", "override_dynamic_variables"); bad != nil {
		return nil, bad
	}
	return it.obj, nil
}

func (s *Server) endChat(r *request) (any, *failure) {
	it, bad := s.theChat(r.params[0])
	if bad != nil {
		return nil, bad
	}
	if it.obj["chat_status"] != "ongoing" {
		return nil, fail(422, "the chat is over")
	}
	it.obj["chat_status"], it.obj["end_timestamp"] = "ended", millis(r.now)
	s.emitChat("chat_ended", it.obj)
	return nil, nil
}

func (s *Server) deleteChat(r *request) (any, *failure) {
	it, bad := s.theChat(r.params[0])
	if bad != nil {
		return nil, bad
	}
	delete(s.chats.items, it.id)
	return nil, nil
}
