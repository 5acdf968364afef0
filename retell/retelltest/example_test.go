package retelltest_test

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

func post(client *http.Client, path, body string) (int, error) {
	req, err := http.NewRequest(http.MethodPost, "https://api.retellai.com"+path, strings.NewReader(body)) //nolint:noctx // short
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer key_test")
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

const call = `{"from_number":"+15550001000","to_number":"+15550001111"}`

func Example() {
	srv := retelltest.NewServer()
	defer srv.Close()

	// The first call is placed, and its answer gets lost. A client that tries again dials again.
	srv.Inject("create-phone-call", retelltest.LostAnswer())
	for range 2 {
		status, err := post(srv.Client(), "/v2/create-phone-call", call)
		fmt.Println(status, err != nil)
	}
	fmt.Println("rings:", srv.Rings("+15550001111"))
	// Output:
	// 0 true
	// 201 false
	// rings: 2
}

// Faults are met in order, one for each request; then all goes well.
func ExampleServer_Inject() {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject("create-phone-call",
		retelltest.Refuse(),
		retelltest.Throttle(2*time.Second),
		retelltest.StatusAfterEffect(500),
	)
	for range 4 {
		status, err := post(srv.Client(), "/v2/create-phone-call", call)
		fmt.Println(status, "not sent:", resilience.NotSent(err), "rings:", srv.Rings("+15550001111"))
	}
	// Output:
	// 0 not sent: true rings: 0
	// 429 not sent: false rings: 0
	// 500 not sent: false rings: 1
	// 201 not sent: false rings: 2
}

// A fault is data: any combination can be written down.
func ExampleFault() {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject(retelltest.Any, retelltest.Fault{
		Name: "proxy gave up", Status: 504, Body: "<html>Gateway Timeout</html>", Late: time.Minute,
	})
	status, _ := post(srv.Client(), "/v2/create-phone-call", call)
	fmt.Println(status, srv.Received()[0].Fault)
	// Output: 504 proxy gave up
}

// Webhooks come with the signature that Retell would send.
func ExampleServer_OnWebhook() {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.OnWebhook(func(event []byte, signature string) {
		fmt.Println(strings.HasPrefix(string(event), `{"call":`), strings.HasPrefix(signature, "v="))
	})
	_, _ = post(srv.Client(), "/v2/create-phone-call", call)
	id := srv.Calls()[0].ID
	fmt.Println(srv.Answer(id), srv.Hangup(id, "user_hangup"))
	// Output:
	// true true
	// true true
	// <nil> <nil>
}
