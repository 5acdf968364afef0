package retell

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// fields are the members of each JSON object, as the description of the API has them.
var fields = []struct {
	of    any
	names string
}{
	{CreatePhoneCallParams{}, `from_number to_number idempotency_key honor_internal_dnc override_agent_id override_agent_version
		agent_override metadata retell_llm_dynamic_variables custom_sip_headers ignore_e164_validation`},
	{CreateWebCallParams{}, `agent_id agent_version agent_override metadata retell_llm_dynamic_variables current_node_id current_state`},
	{WebCall{}, `call_id access_token expires_at transport ice_servers`},
	{RegisterPhoneCallParams{}, `agent_id agent_version agent_override from_number to_number direction metadata
		retell_llm_dynamic_variables`},
	{AgentOverride{}, `agent retell_llm conversation_flow`},
	{Call{}, `call_id agent_id agent_version call_status call_type from_number to_number direction access_token telephony_identifier
		agent_name agent_tag metadata retell_llm_dynamic_variables collected_dynamic_variables custom_sip_headers data_storage_setting
		opt_in_signed_url start_timestamp end_timestamp transfer_end_timestamp duration_ms disconnection_reason transfer_destination
		transcript transcript_object transcript_with_tool_calls scrubbed_transcript_with_tool_calls recording_url
		recording_multi_channel_url scrubbed_recording_url scrubbed_recording_multi_channel_url public_log_url
		knowledge_base_retrieved_contents_url latency call_cost call_analysis llm_token_usage`},
	{TelephonyIdentifier{}, `twilio_call_sid`},
	{Utterance{}, `role content words`},
	{Word{}, `word start end`},
	{CallLatency{}, `e2e asr llm llm_websocket_network_rtt tts knowledge_base s2s`},
	{Percentiles{}, `p50 p90 p95 p99 max min num values`},
	{CallCost{}, `combined_cost product_costs total_duration_seconds total_duration_unit_price`},
	{ProductCost{}, `product cost unit_price is_transfer_leg_cost`},
	{CallAnalysis{}, `call_summary call_successful in_voicemail user_sentiment custom_analysis_data`},
	{LLMTokenUsage{}, `average num_requests values`},
	{ListCallsParams{}, `filter_criteria sort_order limit pagination_key skip include_total`},
	{ListChatsParams{}, `filter_criteria sort_order limit pagination_key skip include_total`},
	{Page[Call]{}, `items has_more pagination_key total`},
	{Filter{}, `key type op value`},
	{AgentFilter{}, `agent_id version`},
	{ToolCallFilter{}, `name type latency_ms success`},
	{CallFilter{}, `agent agent_tag call_id batch_call_id call_status call_type direction disconnection_reason data_storage_setting
		user_sentiment call_successful in_voicemail from_number to_number start_timestamp end_timestamp duration_ms combined_cost
		e2e_latency_p50 metadata dynamic_variables custom_attributes custom_analysis_data tool_calls`},
	{ChatFilter{}, `agent agent_tag chat_id chat_status chat_successful combined_cost custom_analysis_data custom_attributes
		disconnection_reason duration_ms start_timestamp end_timestamp user_sentiment chat_type direction agent_number user_number
		data_storage_setting`},
	{UpdateCallParams{}, `metadata data_storage_setting custom_attributes`},
	{UpdateLiveParams{}, `fields_to_override call_control`},
	{LiveFields{}, `override_dynamic_variables metadata data_storage_setting`},
	{CallControl{}, `additional_context trigger_response`},
	{Success{}, `success`},
	{LiveAccess{}, `access_token expires_at participant_id room_name transport url ice_servers gateway_ip`},
	{ICEServer{}, `urls username credential`},
	{TakeOverLiveParams{}, `participant_id`},
	{ConcurrencyInfo{}, `current_concurrency concurrency_limit base_concurrency purchased_concurrency concurrency_purchase_limit
		remaining_purchase_limit reserved_inbound_concurrency concurrency_burst_enabled concurrency_burst_limit`},
	{APIKeyInfo{}, `api_key_name org_name org_id`},
	{CreateBatchCallParams{}, `from_number tasks name trigger_timestamp reserved_concurrency call_time_window`},
	{BatchCallTask{}, `to_number override_agent_id override_agent_version agent_override metadata retell_llm_dynamic_variables
		custom_sip_headers ignore_e164_validation`},
	{CallTimeWindow{}, `windows day timezone`},
	{TimeWindow{}, `start end`},
	{BatchCall{}, `batch_call_id name from_number scheduled_timestamp total_task_count call_time_window`},
	{AgentSummary{}, `agent_id agent_name channel tags user_modified_timestamp`},
	{AgentTag{}, `version dynamic_variables`},
	{Agent{}, `agent_id version last_modification_timestamp response_engine voice_id agent_name is_published base_version assigned_tags
		language webhook_url webhook_events webhook_timeout_ms max_call_duration_ms ring_duration_ms end_call_after_silence_ms
		fallback_voice_ids data_storage_setting data_storage_retention_days opt_in_signed_url signed_url_expiration_ms
		voicemail_option timezone`},
	{ResponseEngine{}, `type llm_id conversation_flow_id llm_websocket_url version`},
	{PhoneNumber{}, `phone_number phone_number_type last_modification_timestamp phone_number_pretty nickname area_code inbound_agents
		outbound_agents inbound_sms_agents outbound_sms_agents inbound_webhook_url inbound_sms_webhook_url
		allowed_inbound_country_list allowed_outbound_country_list fallback_number sip_outbound_trunk_config`},
	{WeightedAgent{}, `agent_id weight agent_version`},
	{SIPTrunk{}, `termination_uri auth_username transport`},
	{Voice{}, `voice_id voice_name provider gender accent age preview_audio_url`},
	{CreateChatParams{}, `agent_id agent_version metadata retell_llm_dynamic_variables`},
	{CreateSMSChatParams{}, `from_number to_number override_agent_id override_agent_version metadata retell_llm_dynamic_variables
		honor_internal_dnc`},
	{CreateChatCompletionParams{}, `chat_id content`},
	{ChatCompletion{}, `messages`},
	{Message{}, `role content message_id created_timestamp`},
	{Chat{}, `chat_id agent_id chat_status chat_type version agent_tag start_timestamp end_timestamp transcript message_with_tool_calls
		metadata retell_llm_dynamic_variables collected_dynamic_variables custom_attributes chat_cost chat_analysis`},
	{ChatAnalysis{}, `chat_summary chat_successful user_sentiment custom_analysis_data`},
	{UpdateChatParams{}, `metadata data_storage_setting custom_attributes`},
	{WebhookEvent{}, `event call chat transfer_destination transfer_option`},
	{TransferDestination{}, `number extension`},
	{InboundCall{}, `call_id chat_id agent_id agent_version from_number to_number custom_sip_headers`},
}

func TestTheFieldsAreThoseOfTheAPI(t *testing.T) {
	for _, c := range fields {
		typ := reflect.TypeOf(c.of)
		var names []string
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name == "-" {
				continue
			}
			names = append(names, name)
			require.True(t, strings.EqualFold(strings.ReplaceAll(name, "_", ""), typ.Field(i).Name), "%v.%s is %s", typ, typ.Field(i).Name, name)
		}
		require.ElementsMatch(t, strings.Fields(c.names), names, typ)
	}
}

// A field that is zero is not sent, unless the API requires it.
func TestAZeroFieldIsNotSent(t *testing.T) {
	for want, all := range map[string][]any{
		`{"from_number":"","to_number":""}`: {CreatePhoneCallParams{}, CreateSMSChatParams{}},
		`{"agent_id":""}`:                   {CreateWebCallParams{}, RegisterPhoneCallParams{}, CreateChatParams{}, AgentFilter{}},
		`{"from_number":"","tasks":null}`:   {CreateBatchCallParams{}},
		`{"to_number":""}`:                  {BatchCallTask{}},
		`{"windows":null}`:                  {CallTimeWindow{}},
		`{"chat_id":"","content":""}`:       {CreateChatCompletionParams{}},
		`{"participant_id":""}`:             {TakeOverLiveParams{}},
		`{}`:                                {UpdateCallParams{}, UpdateChatParams{}, UpdateLiveParams{}, LiveFields{}, CallControl{}, ListCallsParams{}, ListChatsParams{}, CallFilter{}, ChatFilter{}, ToolCallFilter{}, AgentOverride{}},
		`{"type":"","op":""}`:               {Filter{}},
	} {
		for _, params := range all {
			got, err := json.Marshal(params)
			require.NoError(t, err)
			require.JSONEq(t, want, string(got), "%T", params)
		}
	}
}

// The values of the enums that the API describes. What it adds later is kept as it comes: they are open strings.
func TestTheEnumsAreThoseOfTheAPI(t *testing.T) {
	text := func(values ...any) string {
		var all []string
		for _, v := range values {
			all = append(all, reflect.ValueOf(v).String())
		}
		return strings.Join(all, " ")
	}
	require.Equal(t, "registered not_connected ongoing ended error", text(
		CallStatusRegistered, CallStatusNotConnected, CallStatusOngoing, CallStatusEnded, CallStatusError))
	require.Equal(t, "phone_call web_call inbound outbound", text(CallTypePhone, CallTypeWeb, DirectionInbound, DirectionOutbound))
	require.Equal(t, "everything everything_except_pii basic_attributes_only", text(
		StoreEverything, StoreEverythingExceptPII, StoreBasicAttributesOnly))
	require.Equal(t, "Negative Positive Neutral Unknown", text(SentimentNegative, SentimentPositive, SentimentNeutral, SentimentUnknown))
	require.Equal(t, "agent user transfer_target", text(RoleAgent, RoleUser, RoleTransferTarget))
	require.Equal(t, "ongoing ended error api_chat sms_chat", text(ChatStatusOngoing, ChatStatusEnded, ChatStatusError, ChatTypeAPI, ChatTypeSMS))
	require.Equal(t, "voice chat ascending descending", text(ChannelVoice, ChannelChat, SortAscending, SortDescending))
	require.Equal(t, "latest latest_published", VersionLatest.String()+" "+VersionLatestPublished.String())
	require.Equal(t, "call_started call_ended call_analyzed transcript_updated transfer_started transfer_bridged transfer_cancelled "+
		"transfer_ended chat_started chat_ended chat_analyzed call_inbound chat_inbound", text(
		EventCallStarted, EventCallEnded, EventCallAnalyzed, EventTranscriptUpdated, EventTransferStarted, EventTransferBridged,
		EventTransferCancelled, EventTransferEnded, EventChatStarted, EventChatEnded, EventChatAnalyzed, EventCallInbound, EventChatInbound))
	require.Equal(t, "user_hangup agent_hangup call_transfer voicemail_reached ivr_reached inactivity max_duration_reached "+
		"transfer_bridged transfer_cancelled manual_stopped call_take_over", text(
		ReasonUserHangup, ReasonAgentHangup, ReasonCallTransfer, ReasonVoicemailReached, ReasonIVRReached, ReasonInactivity,
		ReasonMaxDurationReached, ReasonTransferBridged, ReasonTransferCancelled, ReasonManualStopped, ReasonCallTakeOver))
	require.Equal(t, "dial_busy dial_failed dial_no_answer invalid_destination telephony_provider_permission_denied "+
		"telephony_provider_unavailable sip_routing_error marked_as_spam user_declined user_requested_dnc", text(
		ReasonDialBusy, ReasonDialFailed, ReasonDialNoAnswer, ReasonInvalidDestination, ReasonTelephonyProviderPermissionDenied,
		ReasonTelephonyProviderUnavailable, ReasonSIPRoutingError, ReasonMarkedAsSpam, ReasonUserDeclined, ReasonUserRequestedDNC))
	require.Equal(t, "concurrency_limit_reached no_concurrency_fallback no_valid_payment scam_detected credit_exhausted budget_reached "+
		"network_blocked error_user_not_joined registered_call_timeout", text(
		ReasonConcurrencyLimitReached, ReasonNoConcurrencyFallback, ReasonNoValidPayment, ReasonScamDetected, ReasonCreditExhausted,
		ReasonBudgetReached, ReasonNetworkBlocked, ReasonErrorUserNotJoined, ReasonRegisteredCallTimeout))
	require.Equal(t, "error_llm_websocket_open error_llm_websocket_lost_connection error_llm_websocket_runtime "+
		"error_llm_websocket_corrupt_payload error_no_audio_received error_asr error_retell error_unknown", text(
		ReasonErrorLLMWebsocketOpen, ReasonErrorLLMWebsocketLostConnection, ReasonErrorLLMWebsocketRuntime,
		ReasonErrorLLMWebsocketCorruptPayload, ReasonErrorNoAudioReceived, ReasonErrorASR, ReasonErrorRetell, ReasonErrorUnknown))
}

func TestNothingMoreHappensToACallThatIsOver(t *testing.T) {
	for status, over := range map[CallStatus]bool{
		CallStatusRegistered: false, CallStatusOngoing: false, CallStatusNotConnected: true, CallStatusEnded: true, CallStatusError: true,
		"brand_new": false, "": false,
	} {
		require.Equal(t, over, status.Terminal(), status)
	}
}

func TestFiltersAreSentAsTheAPIDescribesThem(t *testing.T) {
	for want, f := range map[string]*Filter{
		`{"type":"string","op":"eq","value":"x"}`:                  Equals("x"),
		`{"type":"string","op":"sw","value":"x"}`:                  Text("sw", "x"),
		`{"type":"number","op":"ge","value":1.5}`:                  Number("ge", 1.5),
		`{"type":"number","op":"eq","value":null}`:                 Number("eq", math.NaN()),
		`{"type":"boolean","op":"eq","value":true}`:                Is(true),
		`{"type":"range","op":"bt","value":[1,2]}`:                 Between(1, 2),
		`{"type":"enum","op":"in","value":["inbound","outbound"]}`: OneOf(DirectionInbound, DirectionOutbound),
		`{"type":"present","op":"pr"}`:                             Present(),
		`{"key":"a","type":"present","op":"np"}`:                   Absent().On("a"),
	} {
		got, err := json.Marshal(f)
		require.NoError(t, err)
		require.JSONEq(t, want, string(got))
	}
	f := Equals("x")
	f.On("a")
	require.Empty(t, f.Key, "a filter is not changed by what is made of it")
}
