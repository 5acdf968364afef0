package retell

import "context"

// Voices are the operations on the voices that agents speak with.
type Voices struct{ c *Client }

// Voice is one that an agent can speak with.
type Voice struct {
	Meta `json:"-"`

	VoiceID         string `json:"voice_id"`
	VoiceName       string `json:"voice_name"`
	Provider        string `json:"provider"`
	Gender          string `json:"gender"`
	Accent          string `json:"accent,omitempty"`
	Age             string `json:"age,omitempty"`
	PreviewAudioURL string `json:"preview_audio_url,omitempty"`
}

// Get returns a voice.
//
// GET /get-voice/{voice_id}
func (s Voices) Get(ctx context.Context, voiceID string, opts ...CallOption) (*Voice, error) {
	path, err := byID("/get-voice", "voice_id", voiceID)
	if err != nil {
		return nil, err
	}
	return Do[Voice](ctx, s.c, "GET", path, nil, opts...)
}

// List returns the whole catalogue; the API does not page it.
//
// GET /list-voices
func (s Voices) List(ctx context.Context, opts ...CallOption) (*List[Voice], error) {
	return Do[List[Voice]](ctx, s.c, "GET", "/list-voices", nil, opts...)
}
