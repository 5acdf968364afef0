package resilience_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/retell-resilience/resilience"
)

// A write fails while the other side is down. The queue owns it from then on, and redrives it with the same key.
func ExampleDLQ() {
	queue, err := resilience.NewDLQ(resilience.DLQConfig{Base: time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	status := http.StatusServiceUnavailable
	base := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody}, nil
	})
	client := http.Client{Transport: queue.Wrap(base)}

	ctx := resilience.WithIdempotencyKey(context.Background(), "rename-agent:7")
	req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "https://api.example.com/agents/7", strings.NewReader(`{"name":"Ann"}`))
	_, err = client.Do(req) //nolint:bodyclose // there is an error
	var e *resilience.Error
	if errors.As(err, &e) && errors.Is(err, resilience.ErrParked) {
		fmt.Println("parked, status", e.StatusCode, "- letters:", queue.Len())
	}

	status = http.StatusOK // it is back
	result := queue.Redrive(context.Background())
	for result.Status == resilience.RedriveNotDue {
		time.Sleep(time.Until(result.Next))
		result = queue.Redrive(context.Background())
	}
	fmt.Println("redrive:", result.Status, "- letters:", queue.Len())
	// Output:
	// parked, status 503 - letters: 1
	// redrive: done - letters: 0
}

// Letters are in memory. To take them over a restart, export them at the end and import them at the beginning.
func ExampleDLQ_Export() {
	queue, _ := resilience.NewDLQ(resilience.DLQConfig{})
	_ = queue.Add(resilience.Letter{Operation: "send-report", Key: "report:2026-11", Body: []byte(`{"month":11}`)})
	file, _ := os.CreateTemp("", "letters")
	defer os.Remove(file.Name()) //nolint:errcheck // a temporary file
	fmt.Println("export:", queue.Export(file))

	_, _ = file.Seek(0, 0)
	next, _ := resilience.NewDLQ(resilience.DLQConfig{})
	next.Handle("send-report", func(_ context.Context, l resilience.Letter) error {
		fmt.Println("sending again:", l.Key, string(l.Body))
		return nil
	})
	fmt.Println("import:", next.Import(file))
	letter := next.List(resilience.LetterFilter{})[0]
	_ = next.Requeue(letter.ID) // due now
	fmt.Println("redrive:", next.Redrive(context.Background()).Status)
	// Output:
	// export: <nil>
	// import: <nil>
	// sending again: report:2026-11 {"month":11}
	// redrive: done
}

// Every letter in pages of two. The cursor could as well be kept, as JSON, and used an hour or a restart later.
func ExampleDLQ_List() {
	queue, _ := resilience.NewDLQ(resilience.DLQConfig{})
	begin := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for i := range 5 {
		_ = queue.Add(resilience.Letter{ID: fmt.Sprint("letter-", i), Operation: "send-report", First: begin.Add(time.Duration(i) * time.Second)})
	}
	filter := resilience.LetterFilter{State: resilience.LetterWaiting, Limit: 2}
	for page := queue.List(filter); len(page) > 0; page = queue.List(filter) {
		for _, letter := range page {
			fmt.Print(letter.ID, " ")
		}
		filter.After = page[len(page)-1].Cursor()
		cursor, _ := json.Marshal(filter.After)
		fmt.Println(string(cursor))
	}
	// Output:
	// letter-0 letter-1 {"first":"2026-11-24T12:00:01Z","id":"letter-1"}
	// letter-2 letter-3 {"first":"2026-11-24T12:00:03Z","id":"letter-3"}
	// letter-4 {"first":"2026-11-24T12:00:04Z","id":"letter-4"}
}
