package retell

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Whoever walks a list must not take it for complete because "there is more" came as another type.
func TestAListDoesNotEndWhereHasMoreIsNotATruthValue(t *testing.T) {
	for _, more := range []string{`"true"`, `1`, `{}`} {
		_, err := bare(t, answering(200, `{"items":[{"call_id":"a"}],"pagination_key":"p2","has_more":`+more+`}`, nil)).
			Calls.ListPage(t.Context(), ListCallsParams{})
		require.ErrorIs(t, err, ErrBadAnswer, more)
	}
}

// A page that names the next one and does not say whether there is more has a next one.
func TestAPageThatNamesTheNextHasMore(t *testing.T) {
	for _, rest := range []string{``, `,"has_more":null`} {
		rt, asked := pagesOf(`{"items":[{"call_id":"a"}],"pagination_key":"p2"`+rest+`}`, `{"items":[{"call_id":"b"}]}`)
		var ids []string
		for call, err := range bare(t, rt).Calls.List(t.Context(), ListCallsParams{}) {
			require.NoError(t, err)
			ids = append(ids, call.CallID)
		}
		require.Equal(t, []string{"a", "b"}, ids)
		require.Len(t, *asked, 2)
	}
}

// null is no thing, in a list as alone.
func TestAnItemThatIsNullIsNoItem(t *testing.T) {
	_, err := bare(t, answering(200, `{"items":[{"call_id":"a"},null],"has_more":false}`, nil)).Calls.ListPage(t.Context(), ListCallsParams{})
	require.ErrorIs(t, err, ErrBadAnswer)
	_, err = bare(t, answering(200, `[null]`, nil)).Voices.List(t.Context())
	require.ErrorIs(t, err, ErrBadAnswer)
}

// One field of another type costs that field, also inside a type that reads itself.
func TestAnICEServerKeepsItsURLs(t *testing.T) {
	access, err := bare(t, answering(200, `{"access_token":"t","ice_servers":[{"urls":"stun:a","username":7,"credential":"c"}]}`, nil)).
		Calls.ListenLive(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, []ICEServer{{URLs: []string{"stun:a"}, Credential: "c"}}, access.ICEServers)
}

// What follows # is never sent: without its version a delete reaches more than it says.
func TestAPathWithAFragmentInItsQueryIsRefused(t *testing.T) {
	var seen []sent
	c := bare(t, answering(204, ``, &seen))
	_, err := Do[Empty](t.Context(), c, "DELETE", "/delete-agent/a?x=1#&version=2", nil)
	require.ErrorIs(t, err, ErrInvalid)
	require.Empty(t, seen)
}

// What does not fit is not known: it must not read as a call that failed, or as a list of nothing.
func TestATruthValueThatDoesNotFitIsNil(t *testing.T) {
	call, err := bare(t, answering(200, `{"call_id":"a","call_analysis":{"call_summary":"s","call_successful":"true","in_voicemail":1,"user_sentiment":"Angry"}}`, nil)).
		Calls.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Nil(t, call.CallAnalysis.CallSuccessful)
	require.Nil(t, call.CallAnalysis.InVoicemail)
	require.Equal(t, "s", call.CallAnalysis.CallSummary)
	require.Equal(t, Sentiment("Angry"), call.CallAnalysis.UserSentiment)
	chat, err := bare(t, answering(200, `{"chat_id":"a","chat_analysis":{"chat_successful":"true","chat_summary":"s"}}`, nil)).Chats.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Nil(t, chat.ChatAnalysis.ChatSuccessful)
	require.Equal(t, "s", chat.ChatAnalysis.ChatSummary)
	page, err := bare(t, answering(200, `{"items":[],"has_more":false,"total":"5"}`, nil)).Calls.ListPage(t.Context(), ListCallsParams{})
	require.NoError(t, err)
	require.Nil(t, page.Total)
	for _, analysis := range []string{`"later"`, `[]`, `null`} {
		call, err = bare(t, answering(200, `{"call_analysis":`+analysis+`,"call_id":"a"}`, nil)).Calls.Get(t.Context(), "a")
		require.NoError(t, err, analysis)
		require.Equal(t, "a", call.CallID)
		_, err = bare(t, answering(200, `{"chat_analysis":`+analysis+`,"chat_id":"a"}`, nil)).Chats.Get(t.Context(), "a")
		require.NoError(t, err, analysis)
	}
}
