package retelltest

import "strings"

// agent returns the voice or chat agent that the path names.
func (s *Server) agent(r *request) (*item, *failure) {
	if it, ok := s.shelf(chatAgents).items[r.params[0]]; ok {
		return it, nil
	}
	return agents.find(s, r)
}

func (s *Server) listAgents(r *request) (any, *failure) {
	p, bad := pagingOf(nil, r.query)
	if bad != nil {
		return nil, bad
	}
	wanted := child(r.body, "filter_criteria")
	query := strings.ToLower(text(wanted, "query"))
	channel := func(any) bool { return true }
	if c := wanted["channel"]; c != nil {
		if channel, bad = compile(c, texts, nil); bad != nil {
			return nil, fail(400, "filter_criteria.channel: %s", bad.message)
		}
	}
	both := newShelf()
	for name, k := range map[string]kind{"voice": agents, "chat": chatAgents} {
		if !channel(name) {
			continue
		}
		for _, it := range s.shelf(k).items {
			if !strings.Contains(strings.ToLower(text(it.obj, "agent_name")), query) && !strings.Contains(it.id, query) {
				continue
			}
			seq := 2 * it.seq // no two have one place
			if name == "chat" {
				seq++
			}
			both.items[it.id] = &item{id: it.id, seq: seq, made: it.made, obj: summary(it.obj, name)}
		}
	}
	return p.page(both.sorted(nil), func(o object) object { return o }), nil
}

func summary(agent object, channel string) object {
	return object{
		"agent_id": agent["agent_id"], "agent_name": text(agent, "agent_name"), "channel": channel,
		"tags": object{}, "user_modified_timestamp": agent["last_modification_timestamp"],
	}
}

func (s *Server) createAgentVersion(r *request) (any, *failure) {
	it, bad := s.agent(r)
	if bad != nil {
		return nil, bad
	}
	version, _ := number(it.obj["version"])
	it.obj["version"], it.obj["base_version"], it.obj["is_published"] = int(version)+1, int(version), false
	return it.obj, nil
}

// anyAgent is success if there is such an agent.
func (s *Server) anyAgent(r *request) (any, *failure) {
	_, bad := s.agent(r)
	return nil, bad
}

func (s *Server) agentVersions(r *request) (any, *failure) {
	it, bad := s.agent(r)
	if bad != nil {
		return nil, bad
	}
	return []any{it.obj}, nil
}

func (s *Server) agentVersionPage(r *request) (any, *failure) {
	it, bad := s.agent(r)
	if bad != nil {
		return nil, bad
	}
	return object{"items": []any{it.obj}, "has_more": false}, nil
}

func (s *Server) repairAgent(r *request) (any, *failure) {
	it, bad := s.agent(r)
	if bad != nil {
		return nil, bad
	}
	return it.obj, nil
}
