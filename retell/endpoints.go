package retell

import (
	"time"

	"github.com/retell-resilience/resilience"
)

// endpoint is one row of the catalogue: what the layers have to know about one method and path of Retell's API.
type endpoint struct {
	method   string
	path     string // a segment in braces stands for an id
	effect   resilience.Effect
	class    resilience.Class
	priority resilience.Priority
	resource string // see [Describe]; may name an id of the path
	traits   traits
}

// traits are the yes-or-no questions about an endpoint.
type traits uint8

const (
	// keep: a failed write goes to the dead-letter queue. Only where a success some minutes later still helps and
	// nobody needs the answer at once: phone calls, texts, batches, updates, deletes. Web calls, chats, completions and
	// the control of live calls are worthless by then. A create whose caller needs the new id is not kept either, nor a
	// delete whose target is only partly named by its resource, because letters for one resource supersede each other.
	keep traits = 1 << iota
	// cached: a read whose last good answer helps while Retell is down. Only the owner's own configuration. Calls,
	// chats and contacts hold transcripts, recordings and the numbers of other people: not without being asked. The
	// status of a job is polled because it changes: an old one would mislead.
	cached
	// rings: a person's phone rings. Retell's own SDK waits 120 s for the answer, so slow ones occur; a caller is not
	// made to wait that long.
	rings
	// absent422: the endpoint says 422, not 404, when there is nothing under the id.
	absent422
)

const (
	phoneCallLimit  = 120 * time.Second
	phoneCallBudget = 60 * time.Second
)

const (
	read       = resilience.EffectRead
	idempotent = resilience.EffectIdempotent
	once       = resilience.EffectOnce

	request  = resilience.ClassRequest
	upload   = resilience.ClassUpload
	longPoll = resilience.ClassLongPoll

	normal   = resilience.PriorityNormal
	critical = resilience.PriorityCritical
	bulk     = resilience.PriorityBulk
)

// endpoints is the catalogue. A test compares it with testdata/endpoints.tsv, row by row. Things to know:
//   - A PUT that is billed each time (rerun-call-analysis) happens once; a POST that only searches (list-calls) is a read.
//   - A write that leaves the settings of a thing alone names a part of it ("call/{call_id}/live"): it concerns what is
//     cached of the call, and does not supersede an update of the call that waits in the dead-letter queue.
//   - The writes that reach a person (create-phone-call, create-sms-chat, create-batch-call) and those that only hand out a
//     token name no resource: a later success must never supersede a waiting letter to somebody else.
var endpoints = [...]endpoint{
	{"POST", "/create-agent", once, request, normal, "agent", 0},
	{"GET", "/get-agent/{agent_id}", read, request, normal, "agent/{agent_id}", cached | absent422},
	{"PATCH", "/update-agent/{agent_id}", idempotent, request, normal, "agent/{agent_id}", keep},
	{"POST", "/v2/list-agents", read, request, normal, "agent", cached},
	{"DELETE", "/delete-agent/{agent_id}", idempotent, request, normal, "agent/{agent_id}", keep | absent422},
	{"POST", "/create-agent-version/{agent_id}", once, request, normal, "agent/{agent_id}/version", 0},
	{"DELETE", "/delete-agent-version/{agent_id}", idempotent, request, normal, "agent/{agent_id}/version", 0},
	{"GET", "/get-agent-versions/{agent_id}", read, request, normal, "agent/{agent_id}/version", cached},
	{"GET", "/list-agent-versions/{agent_id}", read, request, normal, "agent/{agent_id}/version", cached},
	{"POST", "/publish-agent-version/{agent_id}", idempotent, request, normal, "agent/{agent_id}/version/published", keep},
	{"POST", "/repair-agent/{agent_id}", idempotent, request, normal, "agent/{agent_id}/repair", 0},

	{"POST", "/create-app", once, request, normal, "app", 0},
	{"PATCH", "/update-app/{app_id}", idempotent, request, normal, "app/{app_id}", keep},
	{"GET", "/list-apps", read, request, normal, "app", cached},
	{"DELETE", "/delete-app/{app_id}", idempotent, request, normal, "app/{app_id}", keep},
	{"GET", "/get-app/{app_id}", read, request, normal, "app/{app_id}", cached},
	{"GET", "/list-app-usages/{app_id}", read, request, normal, "app/{app_id}", cached},
	{"POST", "/test-app-auth/{app_id}", idempotent, request, normal, "", 0},

	{"POST", "/create-asset", once, upload, bulk, "", 0},

	{"POST", "/create-batch-call", once, longPoll, bulk, "", keep},

	{"GET", "/v2/get-call/{call_id}", read, request, normal, "call/{call_id}", absent422},
	{"PATCH", "/v2/update-call/{call_id}", idempotent, request, normal, "call/{call_id}", keep},
	{"POST", "/v3/list-calls", read, longPoll, bulk, "call", 0},
	{"DELETE", "/v2/delete-call/{call_id}", idempotent, request, normal, "call/{call_id}", keep | absent422},
	{"POST", "/v2/create-phone-call", once, request, critical, "", keep | rings},
	{"POST", "/v3/create-web-call", once, request, critical, "call", 0},
	{"POST", "/v2/listen-live-call/{call_id}", once, request, critical, "", 0},
	{"POST", "/v2/register-phone-call", once, request, critical, "call", 0},
	{"PUT", "/rerun-call-analysis/{call_id}", once, request, bulk, "call/{call_id}/analysis", 0},
	{"POST", "/v2/stop-call/{call_id}", idempotent, request, critical, "call/{call_id}/live", absent422},
	{"POST", "/v2/take-over-live-call/{call_id}", once, request, critical, "call/{call_id}/live", 0},
	{"PATCH", "/v2/update-live-call/{call_id}", once, request, critical, "call/{call_id}/live", 0},

	{"POST", "/create-chat-agent", once, request, normal, "agent", 0},
	{"GET", "/get-chat-agent/{agent_id}", read, request, normal, "agent/{agent_id}", cached | absent422},
	{"PATCH", "/update-chat-agent/{agent_id}", idempotent, request, normal, "agent/{agent_id}", keep},
	{"DELETE", "/delete-chat-agent/{agent_id}", idempotent, request, normal, "agent/{agent_id}", keep | absent422},
	{"GET", "/get-chat-agent-versions/{agent_id}", read, request, normal, "agent/{agent_id}/version", cached},

	{"POST", "/create-chat", once, request, critical, "chat", 0},
	{"GET", "/get-chat/{chat_id}", read, request, normal, "chat/{chat_id}", absent422},
	{"PATCH", "/update-chat/{chat_id}", idempotent, request, normal, "chat/{chat_id}", keep},
	{"POST", "/v3/list-chats", read, longPoll, bulk, "chat", 0},
	{"DELETE", "/delete-chat/{chat_id}", idempotent, request, normal, "chat/{chat_id}", keep | absent422},
	{"POST", "/create-chat-completion", once, longPoll, critical, "chat", 0},
	{"POST", "/create-sms-chat", once, request, normal, "", keep},
	{"PATCH", "/end-chat/{chat_id}", idempotent, request, normal, "chat/{chat_id}/live", keep | absent422},
	{"PUT", "/rerun-chat-analysis/{chat_id}", once, request, bulk, "chat/{chat_id}/analysis", 0},

	{"GET", "/get-concurrency", read, request, normal, "concurrency", cached},

	{"POST", "/create-contact", once, request, normal, "contact", 0},
	{"PATCH", "/update-contact/{contact_id}", idempotent, request, normal, "contact/{contact_id}", keep},
	{"POST", "/list-contacts", read, request, bulk, "contact", 0},
	{"DELETE", "/delete-contact/{contact_id}", idempotent, request, normal, "contact/{contact_id}", keep},
	{"POST", "/backfill-contact-analysis-data", once, request, bulk, "contact", 0},
	{"POST", "/create-contact-import", once, request, bulk, "contact", 0},
	{"GET", "/get-contact/{contact_id}", read, request, normal, "contact/{contact_id}", 0},
	{"GET", "/get-backfill-contact-job-status", read, request, bulk, "", 0},
	{"GET", "/get-contact-by-phone/{phone_number}", read, request, normal, "contact", 0},
	{"GET", "/get-contact-import", read, request, bulk, "", 0},
	{"GET", "/list-contact-conversations/{contact_id}", read, request, bulk, "contact/{contact_id}", 0},
	{"POST", "/upload-contact-import-file", once, upload, bulk, "", 0},

	{"POST", "/create-conversation-flow-component", once, request, normal, "conversation-flow-component", 0},
	{"GET", "/get-conversation-flow-component/{conversation_flow_component_id}", read, request, normal, "conversation-flow-component/{conversation_flow_component_id}", cached},
	{"PATCH", "/update-conversation-flow-component/{conversation_flow_component_id}", idempotent, request, normal, "conversation-flow-component/{conversation_flow_component_id}", keep},
	{"GET", "/v2/list-conversation-flow-components", read, request, normal, "conversation-flow-component", cached},
	{"DELETE", "/delete-conversation-flow-component/{conversation_flow_component_id}", idempotent, request, normal, "conversation-flow-component/{conversation_flow_component_id}", keep},

	{"POST", "/create-conversation-flow", once, request, normal, "conversation-flow", 0},
	{"GET", "/get-conversation-flow/{conversation_flow_id}", read, request, normal, "conversation-flow/{conversation_flow_id}", cached},
	{"PATCH", "/update-conversation-flow/{conversation_flow_id}", idempotent, request, normal, "conversation-flow/{conversation_flow_id}", keep},
	{"GET", "/v2/list-conversation-flows", read, request, normal, "conversation-flow", cached},
	{"DELETE", "/delete-conversation-flow/{conversation_flow_id}", idempotent, request, normal, "conversation-flow/{conversation_flow_id}", keep},

	{"GET", "/get-crm-config", read, request, normal, "crm", cached},
	{"GET", "/get-crm-schema", read, request, normal, "crm", cached},
	{"GET", "/get-sync-job-status", read, request, bulk, "", 0},
	{"POST", "/run-sync-job", once, request, bulk, "", 0},
	{"POST", "/update-crm-config", idempotent, request, normal, "crm", keep},

	{"GET", "/v2/list-export-requests", read, request, bulk, "export-request", 0},

	{"GET", "/get-api-key-info", read, request, normal, "api-key", cached},

	{"POST", "/create-knowledge-base", once, upload, bulk, "knowledge-base", 0},
	{"GET", "/get-knowledge-base/{knowledge_base_id}", read, request, normal, "knowledge-base/{knowledge_base_id}", cached | absent422},
	{"GET", "/list-knowledge-bases", read, request, normal, "knowledge-base", cached},
	{"DELETE", "/delete-knowledge-base/{knowledge_base_id}", idempotent, request, normal, "knowledge-base/{knowledge_base_id}", keep | absent422},
	{"POST", "/add-knowledge-base-sources/{knowledge_base_id}", once, upload, bulk, "knowledge-base/{knowledge_base_id}/source", 0},
	{"DELETE", "/delete-knowledge-base-source/{knowledge_base_id}/source/{source_id}", idempotent, request, normal, "knowledge-base/{knowledge_base_id}/source", absent422},

	{"POST", "/create-retell-llm", once, request, normal, "retell-llm", 0},
	{"GET", "/get-retell-llm/{llm_id}", read, request, normal, "retell-llm/{llm_id}", cached | absent422},
	{"PATCH", "/update-retell-llm/{llm_id}", idempotent, request, normal, "retell-llm/{llm_id}", keep},
	{"GET", "/v2/list-retell-llms", read, request, normal, "retell-llm", cached},
	{"DELETE", "/delete-retell-llm/{llm_id}", idempotent, request, normal, "retell-llm/{llm_id}", keep | absent422},

	{"GET", "/get-mcp-tools/{agent_id}", read, request, normal, "agent/{agent_id}", absent422},

	{"POST", "/create-phone-number", once, request, normal, "phone-number", 0},
	{"GET", "/get-phone-number/{phone_number}", read, request, normal, "phone-number/{phone_number}", cached | absent422},
	{"PATCH", "/update-phone-number/{phone_number}", idempotent, request, normal, "phone-number/{phone_number}", keep},
	{"GET", "/v2/list-phone-numbers", read, request, normal, "phone-number", cached},
	{"DELETE", "/delete-phone-number/{phone_number}", idempotent, request, normal, "phone-number/{phone_number}", keep | absent422},
	{"POST", "/import-phone-number", once, request, normal, "phone-number", 0},

	{"POST", "/agent-playground-completion/{agent_id}", once, longPoll, bulk, "", 0},

	{"POST", "/create-batch-test", once, request, bulk, "", 0},
	{"POST", "/create-test-case-definition", once, request, bulk, "test-case-definition", 0},
	{"DELETE", "/delete-test-case-definition/{test_case_definition_id}", idempotent, request, bulk, "test-case-definition/{test_case_definition_id}", keep},
	{"GET", "/get-batch-test/{test_case_batch_job_id}", read, request, bulk, "", 0},
	{"GET", "/get-test-case-definition/{test_case_definition_id}", read, request, bulk, "test-case-definition/{test_case_definition_id}", cached},
	{"GET", "/get-test-run/{test_case_job_id}", read, request, bulk, "", 0},
	{"GET", "/v2/list-batch-tests", read, request, bulk, "", 0},
	{"GET", "/v2/list-test-case-definitions", read, request, bulk, "test-case-definition", cached},
	{"GET", "/v2/list-test-runs/{test_case_batch_job_id}", read, request, bulk, "", 0},
	{"PUT", "/update-test-case-definition/{test_case_definition_id}", idempotent, request, bulk, "test-case-definition/{test_case_definition_id}", keep},

	{"GET", "/get-voice/{voice_id}", read, request, normal, "voice/{voice_id}", cached | absent422},
	{"GET", "/list-voices", read, request, normal, "voice", cached},
	{"POST", "/add-community-voice", once, request, normal, "voice", 0},
	{"POST", "/clone-voice", once, upload, bulk, "voice", 0},
	{"POST", "/search-community-voice", read, request, bulk, "", 0},

	// Older forms of endpoints above, which hand-written code still uses.
	{"POST", "/v2/create-web-call", once, request, critical, "call", 0},
	{"POST", "/v2/list-calls", read, longPoll, bulk, "call", 0},
}
