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

// A letter of Do has no request that could be sent again: a handler does the work. Without one the write stays with its
// caller, so register it before the first call; after a restart also before Import and Run.
func ExampleDLQ_Handle() {
	stack, err := resilience.New(resilience.Config{Retry: resilience.RetryConfig{Max: -1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stack.Close(context.Background()) //nolint:errcheck // nothing is under way
	up := false
	send := func(ctx context.Context, order int) (string, error) {
		return resilience.Do(ctx, stack, resilience.Call{Operation: "send-invoice", Params: order}, func(context.Context) (string, error) {
			if !up { // without the mark the invoice would be in doubt, and never sent again
				return "", resilience.MarkNotSent(errors.New("connection refused"))
			}
			return fmt.Sprint("receipt for order ", order), nil
		})
	}
	stack.DLQ.Handle("send-invoice", func(ctx context.Context, l resilience.Letter) error {
		var order int
		if json.Unmarshal(l.Body, &order) != nil {
			return resilience.ErrPoison // no later try can read it either
		}
		receipt, err := send(ctx, order) // through the stack, so that the letter's key knows how it ended
		fmt.Println("handler:", receipt, err)
		return err
	})

	ctx := resilience.WithIdempotencyKey(context.Background(), "invoice:4711")
	_, err = send(ctx, 4711)
	fmt.Println("a letter owns it:", errors.Is(err, resilience.ErrParked))
	up = true
	_ = stack.DLQ.Requeue(stack.DLQ.List(resilience.LetterFilter{})[0].ID) // due now
	fmt.Println("redrive:", stack.DLQ.Redrive(context.Background()).Status)
	// Output:
	// a letter owns it: true
	// handler: receipt for order 4711 <nil>
	// redrive: done
}

// A reminder that comes after the appointment helps nobody. It is given up in time, and a person is told.
func ExampleWithExpiry() {
	givenUp := make(chan resilience.Letter, 1)
	stack, err := resilience.New(resilience.Config{
		Retry: resilience.RetryConfig{Max: -1},
		DLQ:   resilience.DLQConfig{OnParked: func(l resilience.Letter) { givenUp <- l }},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	down := resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return nil, resilience.MarkNotSent(errors.New("connection refused"))
	})
	client := &http.Client{Transport: stack.Wrap(down)}
	go stack.Run(context.Background())      // redrives, until Close
	defer stack.Close(context.Background()) //nolint:errcheck // nothing is under way

	appointment := time.Now().Add(20 * time.Millisecond)
	ctx := resilience.WithIdempotencyKey(context.Background(), "reminder:4711")
	ctx = resilience.WithExpiry(ctx, appointment)
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example.com/reminders", strings.NewReader(`{"id":4711}`))
	_, err = client.Do(req) //nolint:bodyclose // there is an error
	fmt.Println("a letter owns it:", errors.Is(err, resilience.ErrParked))
	letter := <-givenUp
	fmt.Println("given up:", letter.ParkedReason, letter.Expires.Equal(appointment), "last failure:", letter.Cause)
	// Output:
	// a letter owns it: true
	// given up: expired true last failure: transport
}
