package protocol

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// When no picker answers, the proxy's failure mode decides about a call.
func TestPickerKilled(t *testing.T) {
	p := the.pickers["killed"]
	for _, door := range []string{"killed open", "killed closed"} {
		checkDestination(t, served(t, door, ask(door)))
	}
	p.Stop()
	goByFailureMode(t, "killed")
}

// A picker that dies while bodies come costs no FailOpen call a byte: the endpoint gets each body whole, and once.
func TestPickerKilledInTheMiddleOfABody(t *testing.T) {
	p := the.pickers["cut"]
	body := prompt("a body whose picker dies", 400_000)
	type upload struct {
		name   string
		rest   []byte
		to     *io.PipeWriter
		answer chan string
	}
	var uploads []upload
	for version, by := range map[string]*http.Client{"HTTP/1.1": client, "HTTP/2": multiplexing} {
		for _, sent := range []int{0, 1, 2_000, 20_000, 200_000, len(body) - 1} {
			from, to := io.Pipe()
			u := upload{fmt.Sprintf("%s, %d bytes sent", version, sent), body[sent:], to, make(chan string, 1)}
			go func() {
				sized := func(r *http.Request) { r.ContentLength = int64(len(body)) }
				u.answer <- says(try(t.Context(), by, "waypoint cut open", from, header("Content-Type", "application/json"), sized)) //nolint:bodyclose // says closes it
			}()
			_, err := to.Write(body[:sent])
			must(t, err)
			uploads = append(uploads, u)
		}
	}
	eventually(t, "the picker to know of the calls", func() bool { return p.metric(t, "streams_in_flight") == float64(len(uploads)) })
	p.Stop()
	time.Sleep(100 * time.Millisecond) // Envoy hears of it
	sum := sha256.Sum256(body)
	for _, u := range uploads {
		go func() {
			_, _ = u.to.Write(u.rest) // a call that was refused reads no more
			_ = u.to.Close()
		}()
		if got := <-u.answer; !strings.Contains(got, hex.EncodeToString(sum[:])) {
			t.Errorf("%s: the endpoint did not get the body: %s", u.name, got)
		}
	}
}

// says reads an answer as text, or tells why there is none.
func says(response *http.Response, err error) string {
	if err != nil {
		return err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return fmt.Sprint(response.Status, " ", string(text), " ", err)
}

// goByFailureMode checks that FailOpen calls are served without a pick, and that FailClose calls are refused.
func goByFailureMode(t *testing.T, picker string) {
	t.Helper()
	for range 5 {
		if h := served(t, picker+" open", ask("nobody picks")); h.Header != "" {
			t.Errorf("without a picker, %q is picked", h.Header)
		}
		for _, door := range []string{picker + " closed", picker + " checked", picker + " duplex"} {
			if a := call(t, door, ask("nobody picks")); a.status != http.StatusServiceUnavailable {
				t.Errorf("%s: the answer is %d: %s, want 503", door, a.status, a.body)
			}
		}
	}
}

// longCall is a call whose answer comes in pieces, sent by the test.
type longCall struct {
	door   string
	answer *http.Response
	pieces chan string
}

// answering starts a long call through each of the doors.
func answering(t *testing.T, doors ...string) []longCall {
	t.Helper()
	var out []longCall
	for _, door := range doors {
		c := longCall{door: door, pieces: make(chan string)}
		c.answer = open(t, door, ask(door), script(t, say(c.pieces))) //nolint:bodyclose // the test's end closes it
		c.says(t, "a beginning")
		out = append(out, c)
	}
	return out
}

func (c longCall) says(t *testing.T, piece string) {
	t.Helper()
	c.pieces <- piece
	hears(t, c.answer.Body, piece)
}

func (c longCall) ends(t *testing.T) {
	t.Helper()
	close(c.pieces)
	if rest, err := io.ReadAll(c.answer.Body); err != nil || len(rest) > 0 {
		t.Errorf("%s: the answer ends with %q, %v", c.door, rest, err)
	}
}

// A picker that is asked to end first reports that it is not ready, accepts calls until proxies can have noticed, and keeps
// its calls.
func TestDrain(t *testing.T) {
	p := the.pickers["drained"]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watch, err := healthv1.NewHealthClient(p.dial(t, "health")).Watch(ctx, &healthv1.HealthCheckRequest{Service: extprocService})
	must(t, err)
	isHealth(t, watch, healthv1.HealthCheckResponse_SERVING)
	calls := answering(t, "drained open", "drained closed", "drained checked", "drained requests duplex", "drained duplex")

	p.terminate(t)
	isHealth(t, watch, healthv1.HealthCheckResponse_NOT_SERVING)
	checkDestination(t, served(t, "drained closed", ask("a late one"))) // the picker accepts calls for three seconds
	eventually(t, "Envoy to hear of it", func() bool { return call(t, "drained checked", ask("later")).status == http.StatusServiceUnavailable })
	eventually(t, "the picker to take no more calls", func() bool { return call(t, "drained closed", ask("too late")).status != http.StatusOK })
	goByFailureMode(t, "drained")
	for _, c := range calls {
		c.says(t, ", a middle")
		c.says(t, " and an end")
		c.ends(t)
	}
	p.ends(t)
}

func isHealth(t *testing.T, watch healthv1.Health_WatchClient, want healthv1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	r, err := watch.Recv()
	must(t, err)
	if r.GetStatus() != want {
		t.Fatalf("the health is %s, want %s", r.GetStatus(), want)
	}
}

// Where the drain ends before an answer does, the picker ends, and the answer goes on without it. A request that streams
// through the picker at that moment is cut, as its middle would be missing otherwise. So is an answer that streams through
// the picker without a pause.
func TestDrainThatIsTooShort(t *testing.T) {
	p := the.pickers["parted"]
	calls := answering(t, "parted open", "parted closed", "parted checked", "parted requests duplex", "parted duplex")
	whole := []flow{
		uploading(t, "parted closed"), downloading(t, "parted closed"), downloading(t, "parted requests duplex"),
	}
	wholeOrCut := []flow{downloading(t, "parted duplex"), downloading(t, "parted duplex")}
	cut := uploading(t, "parted requests duplex")
	all := append(slices.Concat(whole, wholeOrCut), cut)
	for _, f := range all {
		<-f.begun
	}
	p.terminate(t)
	p.ends(t)
	for _, f := range all {
		close(f.enough)
	}
	for _, f := range whole {
		if err := <-f.ended; err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
	}
	for _, f := range wholeOrCut {
		if err := <-f.ended; errors.Is(err, errLost) {
			t.Errorf("%s: %v", f.name, err)
		}
	}
	// The body on its way to the endpoint cannot be complete. It must not look complete.
	if err := <-cut.ended; err == nil || errors.Is(err, errLost) {
		t.Errorf("%s: the end is %v, want the call cut off", cut.name, err)
	}
	goByFailureMode(t, "parted")
	for _, c := range calls {
		t.Run(c.door, func(t *testing.T) {
			for n := range 100 {
				c.says(t, fmt.Sprintf("data: %d\n\n", n))
			}
			c.ends(t)
		})
	}
}

// flow is a body that never pauses until it is long enough.
type flow struct {
	name          string
	begun, enough chan struct{}
	ended         chan error // nil if all of it arrived
}

func newFlow(name string) flow {
	return flow{name: name, begun: make(chan struct{}), enough: make(chan struct{}), ended: make(chan error, 1)}
}

// body consists of numbered lines, so that a missing one shows. It counts as begun after 2 MiB.
func (f flow) body() io.Reader {
	reader, writer := io.Pipe()
	go func() {
		defer func() { _ = writer.Close() }() // never fails
		for sent, n := 0, 0; ; n++ {
			written, err := fmt.Fprintf(writer, "%01000d\n", n)
			if err != nil {
				return // the reader has gone
			}
			if sent += written; sent > 2<<20 && sent-written <= 2<<20 {
				close(f.begun)
			}
			select {
			case <-f.enough:
				return
			default:
			}
		}
	}()
	return reader
}

// errLost says that a body looks complete and is not.
var errLost = errors.New("pieces are lost")

// check reads the body and checks that no line is missing.
func (f flow) check(from io.Reader) error {
	lines := bufio.NewReader(from)
	for n := 0; ; n++ {
		got, err := lines.ReadString('\n')
		switch {
		case errors.Is(err, io.EOF) && got == "" && n > 2000:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%w: it ends in line %d", errLost, n)
		case err != nil:
			return fmt.Errorf("after %d lines: %w", n, err)
		case got != fmt.Sprintf("%01000d\n", n):
			return fmt.Errorf("%w: after %d lines comes %.20q…%.20q", errLost, n, got, got[max(0, len(got)-20):])
		}
	}
}

func uploading(t *testing.T, door string) flow {
	f := newFlow("uploading through " + door)
	arrived := make(chan error, 1)
	reading := script(t, func(_ http.ResponseWriter, r *http.Request) { arrived <- f.check(r.Body) })
	go func() {
		response, err := try(t.Context(), client, door, f.body(), reading)
		if err == nil {
			err = response.Body.Close()
		}
		if err == nil && response.StatusCode != http.StatusOK {
			err = errors.New(response.Status)
		}
		select {
		case e := <-arrived:
			err = errors.Join(err, e)
		case <-time.After(patience):
			err = errors.Join(err, errors.New("it does not arrive"))
		}
		f.ended <- err
	}()
	return f
}

func downloading(t *testing.T, door string) flow {
	f := newFlow("downloading through " + door)
	response := open(t, door, ask(f.name), script(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, f.body()) })) //nolint:bodyclose // the test's end closes it
	go func() { f.ended <- f.check(response.Body) }()
	return f
}
