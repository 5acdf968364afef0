package retelltest

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Any stands for every operation wherever a method of [Server] takes the name of one.
const Any = "*"

// unknownOperation is what a request to a path that Retell does not have is logged as.
const unknownOperation = "unknown"

// operation is one row of the catalogue.
type operation struct {
	name   string
	method string
	path   []string // segments; "{…}" is a parameter
	status int      // of success
	do     handler
}

// handler carries an operation out, with the server's lock held, and returns what is to be answered as JSON (nil: no
// body).
type handler func(s *Server, r *request) (any, *failure)

func op(method, path string, status int, do handler) *operation {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	return &operation{name: nameOf(segments), method: method, path: segments, status: status, do: do}
}

func nameOf(segments []string) string {
	if len(segments) > 1 && (segments[0] == "v2" || segments[0] == "v3") {
		return segments[1]
	}
	return segments[0]
}

// find returns the operation that a request is for, and the values of its path parameters. A slash that is escaped is part
// of a value.
func find(method, escapedPath string) (*operation, []string) {
	segments := strings.Split(strings.TrimPrefix(escapedPath, "/"), "/")
	for i, escaped := range segments {
		if raw, err := url.PathUnescape(escaped); err == nil {
			segments[i] = raw
		}
	}
	for _, o := range byName[nameOf(segments)] {
		if params, ok := o.match(method, segments); ok {
			return o, params
		}
	}
	return nil, nil
}

func (o *operation) match(method string, segments []string) (params []string, ok bool) {
	if o.method != method || len(o.path) != len(segments) {
		return nil, false
	}
	for i, want := range o.path {
		switch {
		case strings.HasPrefix(want, "{"):
			if segments[i] == "" {
				return nil, false
			}
			params = append(params, segments[i])
		case want != segments[i]:
			return nil, false
		}
	}
	return params, true
}

var byName = func() map[string][]*operation {
	m := make(map[string][]*operation)
	for _, o := range catalogue {
		m[o.name] = append(m[o.name], o)
	}
	return m
}()

// Operations returns the names of all operations, sorted.
func Operations() []string {
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// mustKnow panics when there is no such operation.
func mustKnow(name string) {
	if _, ok := byName[name]; !ok && name != Any && name != unknownOperation {
		panic(fmt.Sprintf("retelltest: no operation %q; it is named by the words of its path, like \"create-phone-call\"", name))
	}
}

const (
	get    = http.MethodGet
	post   = http.MethodPost
	patch  = http.MethodPatch
	put    = http.MethodPut
	remove = http.MethodDelete
)

// catalogue holds every endpoint of the API.
var catalogue = []*operation{
	// Calls.
	op(post, "/v2/create-phone-call", 201, (*Server).createPhoneCall),
	op(post, "/v3/create-web-call", 201, (*Server).createWebCall),
	op(post, "/v2/create-web-call", 201, (*Server).createWebCallV2),
	op(post, "/v2/register-phone-call", 201, (*Server).registerPhoneCall),
	op(get, "/v2/get-call/{call_id}", 200, (*Server).getCall),
	op(post, "/v3/list-calls", 200, (*Server).listCalls),
	op(patch, "/v2/update-call/{call_id}", 200, (*Server).updateCall),
	op(remove, "/v2/delete-call/{call_id}", 204, (*Server).deleteCall),
	op(post, "/v2/stop-call/{call_id}", 204, (*Server).stopCall),
	op(patch, "/v2/update-live-call/{call_id}", 200, (*Server).updateLiveCall),
	op(post, "/v2/listen-live-call/{call_id}", 200, (*Server).listenLiveCall),
	op(post, "/v2/take-over-live-call/{call_id}", 200, (*Server).takeOverLiveCall),
	op(put, "/rerun-call-analysis/{call_id}", 201, (*Server).rerunCallAnalysis),
	op(post, "/create-batch-call", 201, (*Server).createBatchCall),

	// Chats.
	op(post, "/create-chat", 201, (*Server).createChat),
	op(post, "/create-sms-chat", 200, (*Server).createSMSChat),
	op(get, "/get-chat/{chat_id}", 200, (*Server).getChat),
	op(post, "/v3/list-chats", 200, (*Server).listChats),
	op(post, "/create-chat-completion", 201, (*Server).createChatCompletion),
	op(patch, "/update-chat/{chat_id}", 200, (*Server).updateChat),
	op(patch, "/end-chat/{chat_id}", 204, (*Server).endChat),
	op(remove, "/delete-chat/{chat_id}", 204, (*Server).deleteChat),
	op(put, "/rerun-chat-analysis/{chat_id}", 201, (*Server).getChat),

	// The workspace.
	op(get, "/get-concurrency", 200, (*Server).getConcurrency),
	op(get, "/get-api-key-info", 200, answering(object{"api_key_name": "test", "org_name": "Test", "org_id": "org_test"})),

	// Phone numbers.
	op(post, "/create-phone-number", 201, (*Server).createPhoneNumber),
	op(post, "/import-phone-number", 201, (*Server).importPhoneNumber),
	op(get, "/get-phone-number/{phone_number}", 200, numbers.get),
	op(patch, "/update-phone-number/{phone_number}", 200, numbers.update),
	op(get, "/v2/list-phone-numbers", 200, numbers.page),
	op(remove, "/delete-phone-number/{phone_number}", 204, numbers.remove),

	// Voices.
	op(get, "/get-voice/{voice_id}", 200, voices.get),
	op(get, "/list-voices", 200, voices.all),
	op(post, "/add-community-voice", 200, voices.create),
	op(post, "/clone-voice", 201, voices.create),
	op(post, "/search-community-voice", 200, answering(object{"voices": []any{}})),

	// Agents.
	op(post, "/create-agent", 201, agents.create),
	op(get, "/get-agent/{agent_id}", 200, agents.get),
	op(patch, "/update-agent/{agent_id}", 200, agents.update),
	op(post, "/v2/list-agents", 200, (*Server).listAgents),
	op(remove, "/delete-agent/{agent_id}", 204, agents.remove),
	op(post, "/create-agent-version/{agent_id}", 201, (*Server).createAgentVersion),
	op(remove, "/delete-agent-version/{agent_id}", 204, (*Server).anyAgent),
	op(get, "/get-agent-versions/{agent_id}", 200, (*Server).agentVersions),
	op(get, "/list-agent-versions/{agent_id}", 200, (*Server).agentVersionPage),
	op(post, "/publish-agent-version/{agent_id}", 200, (*Server).anyAgent),
	op(post, "/repair-agent/{agent_id}", 200, (*Server).repairAgent),
	op(post, "/create-chat-agent", 201, chatAgents.create),
	op(get, "/get-chat-agent/{agent_id}", 200, chatAgents.get),
	op(patch, "/update-chat-agent/{agent_id}", 200, chatAgents.update),
	op(remove, "/delete-chat-agent/{agent_id}", 204, chatAgents.remove),
	op(get, "/get-chat-agent-versions/{agent_id}", 200, (*Server).agentVersions),
	op(get, "/get-mcp-tools/{agent_id}", 200, answering([]any{})),
	op(post, "/agent-playground-completion/{agent_id}", 200, answering(object{"messages": []any{}})),

	// Language models and conversation flows.
	op(post, "/create-retell-llm", 201, llms.create),
	op(get, "/get-retell-llm/{llm_id}", 200, llms.get),
	op(patch, "/update-retell-llm/{llm_id}", 200, llms.update),
	op(get, "/v2/list-retell-llms", 200, llms.page),
	op(remove, "/delete-retell-llm/{llm_id}", 204, llms.remove),
	op(post, "/create-conversation-flow", 201, flows.create),
	op(get, "/get-conversation-flow/{conversation_flow_id}", 200, flows.get),
	op(patch, "/update-conversation-flow/{conversation_flow_id}", 200, (*Server).updateFlow),
	op(get, "/v2/list-conversation-flows", 200, flows.page),
	op(remove, "/delete-conversation-flow/{conversation_flow_id}", 204, flows.remove),
	op(post, "/create-conversation-flow-component", 201, components.create),
	op(get, "/get-conversation-flow-component/{conversation_flow_component_id}", 200, components.get),
	op(patch, "/update-conversation-flow-component/{conversation_flow_component_id}", 200, components.update),
	op(get, "/v2/list-conversation-flow-components", 200, components.page),
	op(remove, "/delete-conversation-flow-component/{conversation_flow_component_id}", 204, components.remove),

	// Knowledge bases and assets.
	op(post, "/create-knowledge-base", 201, knowledgeBases.create),
	op(get, "/get-knowledge-base/{knowledge_base_id}", 200, knowledgeBases.get),
	op(get, "/list-knowledge-bases", 200, knowledgeBases.all),
	op(remove, "/delete-knowledge-base/{knowledge_base_id}", 204, knowledgeBases.remove),
	op(post, "/add-knowledge-base-sources/{knowledge_base_id}", 201, knowledgeBases.get),
	op(remove, "/delete-knowledge-base-source/{knowledge_base_id}/source/{source_id}", 200, knowledgeBases.get),
	op(post, "/create-asset", 201, assets.create),

	// Contacts.
	op(post, "/create-contact", 201, contacts.create),
	op(get, "/get-contact/{contact_id}", 200, contacts.get),
	op(get, "/get-contact-by-phone/{phone_number}", 200, (*Server).getContactByPhone),
	op(patch, "/update-contact/{contact_id}", 200, contacts.update),
	op(post, "/list-contacts", 200, contacts.page),
	op(remove, "/delete-contact/{contact_id}", 204, contacts.remove),
	op(get, "/list-contact-conversations/{contact_id}", 200, answering(object{"items": []any{}, "has_more": false})),
	op(post, "/backfill-contact-analysis-data", 201, answering(object{"status": "in_progress"})),
	op(get, "/get-backfill-contact-job-status", 200, answering(object{"status": "complete"})),
	op(post, "/upload-contact-import-file", 201, uploads.create),
	op(post, "/create-contact-import", 202, imports.create),
	op(get, "/get-contact-import", 200, answering(object{"status": "complete"})),

	// Apps, CRM, exports.
	op(post, "/create-app", 201, apps.create),
	op(get, "/get-app/{app_id}", 200, apps.get),
	op(patch, "/update-app/{app_id}", 200, apps.update),
	op(get, "/list-apps", 200, apps.page),
	op(remove, "/delete-app/{app_id}", 204, apps.remove),
	op(get, "/list-app-usages/{app_id}", 200, answering(object{"items": []any{}, "has_more": false})),
	op(post, "/test-app-auth/{app_id}", 200, answering(object{"success": true})),
	op(get, "/get-crm-config", 200, answering(object{})),
	op(post, "/update-crm-config", 200, (*Server).echo),
	op(get, "/get-crm-schema", 200, answering(object{"fields": []any{}})),
	op(get, "/get-sync-job-status", 200, answering(object{"status": "complete"})),
	op(post, "/run-sync-job", 201, answering(object{"status": "in_progress"})),
	op(get, "/v2/list-export-requests", 200, answering(object{"items": []any{}, "has_more": false})),

	// Tests of agents.
	op(post, "/create-batch-test", 201, batchTests.create),
	op(get, "/get-batch-test/{test_case_batch_job_id}", 200, batchTests.get),
	op(get, "/v2/list-batch-tests", 200, batchTests.page),
	op(get, "/get-test-run/{test_case_job_id}", 200, testRuns.get),
	op(get, "/v2/list-test-runs/{test_case_batch_job_id}", 200, testRuns.page),
	op(post, "/create-test-case-definition", 201, testCases.create),
	op(get, "/get-test-case-definition/{test_case_definition_id}", 200, testCases.get),
	op(put, "/update-test-case-definition/{test_case_definition_id}", 200, testCases.update),
	op(get, "/v2/list-test-case-definitions", 200, testCases.page),
	op(remove, "/delete-test-case-definition/{test_case_definition_id}", 204, testCases.remove),
}
