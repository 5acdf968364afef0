package retelltest

import (
	"slices"
	"strings"
)

// A test says whether an object passes one filter.
type test func(object) bool

// field is one name that filter_criteria may hold.
type field struct {
	types string // of leaf that it takes: the first letters of string, number, boolean, range, enum, present
	enum  []string
	of    func(object) any // the value compared; nil: none
}

// The leaf types that go together.
const (
	texts   = "s"
	amounts = "nr"
	flags   = "b"
	oneOf   = "e"
	anyLeaf = "snbrep"
)

func top(name string) func(object) any { return func(o object) any { return o[name] } }

func under(path ...string) func(object) any {
	return func(o object) any {
		for _, name := range path[:len(path)-1] {
			o = child(o, name)
		}
		return o[path[len(path)-1]]
	}
}

var sentiments = []string{"Negative", "Positive", "Neutral", "Unknown"}

var callFields = map[string]field{
	"agent_tag":            {types: oneOf, of: top("agent_tag")},
	"call_id":              {types: "se", of: top("call_id")},
	"batch_call_id":        {types: texts, of: top("batch_call_id")},
	"call_status":          {types: oneOf, enum: []string{"not_connected", "ongoing", "ended", "error"}, of: top("call_status")},
	"call_type":            {types: oneOf, enum: []string{"web_call", "phone_call"}, of: top("call_type")},
	"direction":            {types: oneOf, enum: []string{"inbound", "outbound"}, of: top("direction")},
	"disconnection_reason": {types: oneOf, of: top("disconnection_reason")},
	"data_storage_setting": {types: oneOf, of: top("data_storage_setting")},
	"user_sentiment":       {types: oneOf, enum: sentiments, of: under("call_analysis", "user_sentiment")},
	"call_successful":      {types: flags, of: under("call_analysis", "call_successful")},
	"in_voicemail":         {types: flags, of: under("call_analysis", "in_voicemail")},
	"from_number":          {types: texts, of: top("from_number")},
	"to_number":            {types: texts, of: top("to_number")},
	"start_timestamp":      {types: amounts, of: top("start_timestamp")},
	"end_timestamp":        {types: amounts, of: top("end_timestamp")},
	"duration_ms":          {types: amounts, of: top("duration_ms")},
	"combined_cost":        {types: amounts, of: under("call_cost", "combined_cost")},
	"e2e_latency_p50":      {types: amounts, of: under("latency", "e2e", "p50")},
}

var chatFields = map[string]field{
	"agent_tag":            {types: oneOf, of: top("agent_tag")},
	"chat_id":              {types: "se", of: top("chat_id")},
	"chat_status":          {types: oneOf, enum: []string{"ongoing", "ended", "error"}, of: top("chat_status")},
	"chat_type":            {types: oneOf, enum: []string{"api_chat", "sms_chat"}, of: top("chat_type")},
	"direction":            {types: oneOf, enum: []string{"inbound", "outbound"}, of: top("direction")},
	"agent_number":         {types: texts, of: top("agent_number")},
	"user_number":          {types: texts, of: top("user_number")},
	"disconnection_reason": {types: oneOf, of: top("disconnection_reason")},
	"data_storage_setting": {types: oneOf, of: top("data_storage_setting")},
	"user_sentiment":       {types: oneOf, enum: sentiments, of: under("chat_analysis", "user_sentiment")},
	"chat_successful":      {types: flags, of: under("chat_analysis", "chat_successful")},
	"start_timestamp":      {types: amounts, of: top("start_timestamp")},
	"end_timestamp":        {types: amounts, of: top("end_timestamp")},
	"duration_ms":          {types: amounts, of: top("duration_ms")},
	"combined_cost":        {types: amounts, of: under("chat_cost", "combined_cost")},
}

// callMaps and chatMaps are the filters that come as an array of leaves with a key each, and the maps the keys are
// looked up in.
var callMaps = map[string][]func(object) any{
	"metadata":             {top("metadata")},
	"dynamic_variables":    {top("retell_llm_dynamic_variables"), top("collected_dynamic_variables")},
	"custom_attributes":    {top("custom_attributes")},
	"custom_analysis_data": {under("call_analysis", "custom_analysis_data")},
}

var chatMaps = map[string][]func(object) any{
	"custom_attributes":    {top("custom_attributes")},
	"custom_analysis_data": {under("chat_analysis", "custom_analysis_data")},
}

// criteria compiles filter_criteria into tests that all must pass.
func criteria(c object, fields map[string]field, maps map[string][]func(object) any, calls bool) ([]test, *failure) {
	var all []test
	for name, value := range c {
		var t test
		var bad *failure
		f, known := fields[name]
		sources, keyed := maps[name]
		switch {
		case value == nil:
			continue
		case known:
			t, bad = fieldTest(f, value)
		case keyed:
			t, bad = everyOf(value, func(leaf object) (test, *failure) { return keyedTest(sources, leaf) })
		case name == "agent":
			t, bad = agentTest(value)
		case name == "tool_calls" && calls:
			t, bad = everyOf(value, toolTest)
		default:
			bad = fail(400, "there is no such filter")
		}
		if bad != nil {
			return nil, fail(bad.status, "filter_criteria.%s: %s", name, bad.message)
		}
		all = append(all, t)
	}
	return all, nil
}

func fieldTest(f field, v any) (test, *failure) {
	leaf, bad := compile(v, f.types, f.enum)
	if bad != nil {
		return nil, bad
	}
	return func(o object) bool { return leaf(f.of(o)) }, nil
}

// everyOf compiles an array of filters that all must pass.
func everyOf(v any, one func(object) (test, *failure)) (test, *failure) {
	list, ok := v.([]any)
	if !ok {
		return nil, fail(400, "must be an array")
	}
	var tests []test
	for _, e := range list {
		leaf, ok := e.(object)
		if !ok {
			return nil, fail(400, "must be an array of objects")
		}
		t, bad := one(leaf)
		if bad != nil {
			return nil, bad
		}
		tests = append(tests, t)
	}
	return func(o object) bool { return passes(o, tests) }, nil
}

func passes(o object, tests []test) bool {
	for _, t := range tests {
		if !t(o) {
			return false
		}
	}
	return true
}

func keyedTest(sources []func(object) any, v object) (test, *failure) {
	key := text(v, "key")
	if key == "" {
		return nil, fail(400, "key is required")
	}
	leaf, bad := compile(v, anyLeaf, nil)
	if bad != nil {
		return nil, bad
	}
	return func(o object) bool {
		for _, source := range sources {
			if m, _ := source(o).(object); m[key] != nil {
				return leaf(m[key])
			}
		}
		return leaf(nil)
	}, nil
}

func agentTest(v any) (test, *failure) {
	list, ok := v.([]any)
	if !ok {
		return nil, fail(400, "must be an array")
	}
	for _, e := range list {
		if a, _ := e.(object); text(a, "agent_id") == "" {
			return nil, fail(400, "agent_id is required")
		}
	}
	return func(o object) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(e any) bool {
			a, _ := e.(object)
			return o["agent_id"] == a["agent_id"] && versionIn(o["agent_version"], a["version"])
		})
	}, nil
}

func versionIn(have, wanted any) bool {
	list, _ := wanted.([]any)
	h, _ := number(have)
	return len(list) == 0 || slices.ContainsFunc(list, func(w any) bool {
		n, ok := number(w)
		return ok && n == h
	})
}

// toolTest passes a call in which one tool call has all the wanted properties.
func toolTest(v object) (test, *failure) {
	var latency, success func(any) bool
	var bad *failure
	if v["latency_ms"] != nil {
		if latency, bad = compile(v["latency_ms"], amounts, nil); bad != nil {
			return nil, bad
		}
	}
	if v["success"] != nil {
		if success, bad = compile(v["success"], flags, nil); bad != nil {
			return nil, bad
		}
	}
	return func(o object) bool {
		turns, _ := o["transcript_with_tool_calls"].([]any)
		results := make(map[any]object)
		for _, e := range turns {
			if turn, _ := e.(object); turn["role"] == "tool_call_result" {
				results[turn["tool_call_id"]] = turn
			}
		}
		return slices.ContainsFunc(turns, func(e any) bool {
			turn, _ := e.(object)
			return turn["role"] == "tool_call_invocation" &&
				(v["name"] == nil || v["name"] == turn["name"]) &&
				(v["type"] == nil || v["type"] == turn["type"]) &&
				(latency == nil || latency(turn["latency_ms"])) &&
				(success == nil || success(results[turn["tool_call_id"]]["successful"]))
		})
	}, nil
}

// compile turns one leaf into a test of a value. An absent value, nil, passes "np" only.
func compile(v any, allowed string, enum []string) (func(any) bool, *failure) {
	leaf, ok := v.(object)
	if !ok {
		return nil, fail(400, "must be an object with type, op and value")
	}
	kind := text(leaf, "type")
	if kind == "" || !strings.Contains(allowed, kind[:1]) {
		return nil, fail(400, "type %q is not possible here", kind)
	}
	operator, value := text(leaf, "op"), leaf["value"]
	var compiled func(any) bool
	switch kind {
	case "string":
		compiled = stringLeaf(operator, value)
	case "number":
		compiled = numberLeaf(operator, value)
	case "boolean":
		if want, ok := value.(bool); ok && operator == "eq" {
			compiled = func(got any) bool { return got == want }
		}
	case "range":
		compiled = rangeLeaf(operator, value)
	case "enum":
		compiled = enumLeaf(operator, value, enum)
	case "present":
		switch operator {
		case "pr":
			compiled = func(got any) bool { return got != nil }
		case "np":
			compiled = func(got any) bool { return got == nil }
		}
	}
	if compiled == nil {
		return nil, fail(400, "op or value does not fit type %q", kind)
	}
	return compiled, nil
}

func stringLeaf(operator string, value any) func(any) bool {
	compare := map[string]func(got, want string) bool{
		"eq": func(got, want string) bool { return got == want },
		"ne": func(got, want string) bool { return got != want },
		"sw": strings.HasPrefix, "ew": strings.HasSuffix, "co": strings.Contains,
	}[operator]
	want, ok := value.(string)
	if !ok || compare == nil {
		return nil
	}
	return func(v any) bool {
		got, ok := v.(string)
		return ok && compare(got, want)
	}
}

func numberLeaf(operator string, value any) func(any) bool {
	compare := map[string]func(got, want float64) bool{
		"eq": func(got, want float64) bool { return got == want },
		"ne": func(got, want float64) bool { return got != want },
		"gt": func(got, want float64) bool { return got > want },
		"ge": func(got, want float64) bool { return got >= want },
		"lt": func(got, want float64) bool { return got < want },
		"le": func(got, want float64) bool { return got <= want },
	}[operator]
	want, ok := number(value)
	if !ok || compare == nil {
		return nil
	}
	return func(v any) bool {
		got, ok := number(v)
		return ok && compare(got, want)
	}
}

func rangeLeaf(operator string, value any) func(any) bool {
	ends, _ := value.([]any)
	if operator != "bt" || len(ends) != 2 {
		return nil
	}
	low, ok1 := number(ends[0])
	high, ok2 := number(ends[1])
	if !ok1 || !ok2 {
		return nil
	}
	return func(v any) bool {
		got, ok := number(v)
		return ok && low <= got && got <= high
	}
}

func enumLeaf(operator string, value any, enum []string) func(any) bool {
	list, ok := value.([]any)
	if operator != "in" || !ok {
		return nil
	}
	for _, e := range list {
		s, ok := e.(string)
		if !ok || enum != nil && !slices.Contains(enum, s) {
			return nil
		}
	}
	return func(got any) bool {
		s, ok := got.(string)
		return ok && slices.Contains(list, any(s))
	}
}
