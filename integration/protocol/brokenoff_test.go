package protocol

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"time"
)

// The prompt takes 12 s at the picker's assumed speed. Without a report that the call was cut, the picker takes the prompt
// for prefilled after 0.4 s.
const (
	longPrompt = 400_000 // bytes
	longTokens = longPrompt / 4
	leftAfter  = time.Second
)

// TestBrokenOff has callers leave during the prefill, after their streamed answers have begun. Envoy reports these calls,
// and the picker takes for cached only what it had time to prefill. Of answers that end it takes the whole prompt.
func TestBrokenOff(t *testing.T) {
	p := the.pickers["main"]
	cached := func(body []byte) (tokens int) {
		for _, c := range p.explain(t, "broken", body) {
			tokens += c.CachedTokens
		}
		return tokens
	}
	told := func() float64 { return p.metric(t, "broken_off_total", `pool="protocol/broken"`) }
	// begin makes a call, and returns when its answer has begun.
	begin := func(by *http.Client, body []byte, pieces <-chan string) (answer io.ReadCloser, leave func()) {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		response, err := try(ctx, by, "waypoint broken", bytes.NewReader(body), script(t, say(pieces)))
		must(t, err)
		t.Cleanup(func() { _ = response.Body.Close() })
		return response.Body, cancel
	}
	ended := func() { eventually(t, "the call's end", func() bool { return p.inFlight(t, "broken") == 0 }) }
	for version, by := range map[string]*http.Client{"HTTP 1.1": client, "HTTP 2": multiplexing} {
		t.Run("an answer to its end, "+version, func(t *testing.T) {
			for name, size := range map[string]int{"short": 8_000, "long": longPrompt} {
				pieces := make(chan string, 1)
				body := prompt(name+" to its end, "+version, size)
				answer, _ := begin(by, body, pieces)
				time.Sleep(max(20*time.Millisecond, leftAfter*time.Duration(size)/longPrompt)) // a tenth of the expected time
				pieces <- "all of it"
				close(pieces)
				_, err := io.Copy(io.Discard, answer)
				must(t, err)
				ended()
				before := told()
				time.Sleep(200 * time.Millisecond) // in which Envoy would have reported a cut call
				if got := cached(body); got < size/4-64 || told() != before {
					t.Errorf("%s: %d of %d tokens are taken to be cached, and %v calls were broken off, %v before", name, got, size/4, told(), before)
				}
			}
		})
		t.Run("left after the first byte, "+version, func(t *testing.T) {
			pieces := make(chan string, 1)
			body := prompt("after the first byte, "+version, longPrompt)
			answer, leave := begin(by, body, pieces)
			time.Sleep(leftAfter)
			pieces <- "a beginning"
			hears(t, answer, "a beginning")
			leave()
			ended()
			time.Sleep(200 * time.Millisecond)
			if got := cached(body); got < longTokens-64 {
				t.Errorf("%d of %d tokens are taken to be cached", got, longTokens)
			}
		})
		t.Run("left in the prefill, "+version, func(t *testing.T) {
			before := told()
			body := prompt("in the prefill, "+version, longPrompt)
			_, leave := begin(by, body, make(chan string))
			time.Sleep(leftAfter)
			leave()
			ended()
			eventually(t, "Envoy's word", func() bool { return told() == before+1 })
			if got := cached(body); got < 4_000 || got > longTokens/2 {
				t.Errorf("%d of %d tokens are taken to be cached after %s, at 8,000 a second", got, longTokens, leftAfter)
			}
		})
	}
}
