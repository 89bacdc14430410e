package protocol

import (
	"io"
	"net/http"
	"testing"
)

// An answer of a status line without headers, which ends with its connection, is passed on like any other, and leaves
// nothing at the picker.
func TestStatusLineWithoutHeaders(t *testing.T) {
	p := the.pickers["main"]
	for _, door := range []string{"left " + partial, "left " + duplex} {
		for _, line := range []string{"HTTP/1.1 200\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"} {
			t.Run(door+", "+line, func(t *testing.T) {
				response := open(t, door, ask(t.Name()), script(t, func(w http.ResponseWriter, r *http.Request) { //nolint:bodyclose // the test's end closes it
					_, _ = io.Copy(io.Discard, r.Body)
					conn, _, err := http.NewResponseController(w).Hijack()
					if err != nil {
						return
					}
					_, _ = io.WriteString(conn, line+"an answer")
					_ = conn.Close()
				}))
				text, err := io.ReadAll(response.Body)
				if response.StatusCode != http.StatusOK || string(text) != "an answer" || err != nil {
					t.Errorf("the answer is %s %q, %v", response.Status, text, err)
				}
				if response.Header.Get(servedHeader) == "" {
					t.Error("Envoy does not tell who served")
				}
				eventually(t, "the call's end", func() bool { return p.inFlight(t, "left") == 0 && p.metric(t, "streams_in_flight") == 0 })
				if got := p.metric(t, "panics_total"); got != 0 {
					t.Errorf("%v faults", got)
				}
			})
		}
	}
}
