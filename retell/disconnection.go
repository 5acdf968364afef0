package retell

// DisconnectionReason is why a call is over. Values may be added at any time.
type DisconnectionReason string

// The reasons of a call that ended as calls do.
const (
	ReasonUserHangup         DisconnectionReason = "user_hangup"
	ReasonAgentHangup        DisconnectionReason = "agent_hangup"
	ReasonCallTransfer       DisconnectionReason = "call_transfer"
	ReasonVoicemailReached   DisconnectionReason = "voicemail_reached"
	ReasonIVRReached         DisconnectionReason = "ivr_reached"
	ReasonInactivity         DisconnectionReason = "inactivity"
	ReasonMaxDurationReached DisconnectionReason = "max_duration_reached"
	ReasonTransferBridged    DisconnectionReason = "transfer_bridged"
	ReasonTransferCancelled  DisconnectionReason = "transfer_cancelled"
	ReasonManualStopped      DisconnectionReason = "manual_stopped"
	ReasonCallTakeOver       DisconnectionReason = "call_take_over"
)

// The reasons of a call that never connected.
const (
	ReasonDialBusy                          DisconnectionReason = "dial_busy"
	ReasonDialFailed                        DisconnectionReason = "dial_failed"
	ReasonDialNoAnswer                      DisconnectionReason = "dial_no_answer"
	ReasonInvalidDestination                DisconnectionReason = "invalid_destination"
	ReasonTelephonyProviderPermissionDenied DisconnectionReason = "telephony_provider_permission_denied"
	ReasonTelephonyProviderUnavailable      DisconnectionReason = "telephony_provider_unavailable"
	ReasonSIPRoutingError                   DisconnectionReason = "sip_routing_error"
	ReasonMarkedAsSpam                      DisconnectionReason = "marked_as_spam"
	ReasonUserDeclined                      DisconnectionReason = "user_declined"
	ReasonUserRequestedDNC                  DisconnectionReason = "user_requested_dnc"
)

// The reasons that lie in the capacity or the account of the workspace, or of the network.
const (
	ReasonConcurrencyLimitReached DisconnectionReason = "concurrency_limit_reached"
	ReasonNoConcurrencyFallback   DisconnectionReason = "no_concurrency_fallback"
	ReasonNoValidPayment          DisconnectionReason = "no_valid_payment"
	ReasonScamDetected            DisconnectionReason = "scam_detected"
	ReasonCreditExhausted         DisconnectionReason = "credit_exhausted"
	ReasonBudgetReached           DisconnectionReason = "budget_reached"
	ReasonNetworkBlocked          DisconnectionReason = "network_blocked"
)

// The reasons of a call that nobody joined.
const (
	ReasonErrorUserNotJoined    DisconnectionReason = "error_user_not_joined"
	ReasonRegisteredCallTimeout DisconnectionReason = "registered_call_timeout"
)

// The reasons that are errors.
const (
	ReasonErrorLLMWebsocketOpen           DisconnectionReason = "error_llm_websocket_open"
	ReasonErrorLLMWebsocketLostConnection DisconnectionReason = "error_llm_websocket_lost_connection"
	ReasonErrorLLMWebsocketRuntime        DisconnectionReason = "error_llm_websocket_runtime"
	ReasonErrorLLMWebsocketCorruptPayload DisconnectionReason = "error_llm_websocket_corrupt_payload"
	ReasonErrorNoAudioReceived            DisconnectionReason = "error_no_audio_received"
	ReasonErrorASR                        DisconnectionReason = "error_asr"
	ReasonErrorRetell                     DisconnectionReason = "error_retell"
	ReasonErrorUnknown                    DisconnectionReason = "error_unknown"
)
