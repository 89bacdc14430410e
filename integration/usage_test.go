package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const metered = "http://metered.models.inference.internal"

// longAnswer is a number of tokens that takes two seconds, so that an event can happen in the middle of the answer.
const longAnswer = 400

// TestUsageIsCounted counts the tokens of a pool. The picker's counts equal those that callers are told, and callers get
// each answer unchanged, even if the picker ends or hangs in the middle of it.
func TestUsageIsCounted(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	must(t, the.ApplyYAML(ctx, `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: metered, namespace: models, annotations: {inference-waypoint.io/pick-usage: "true"}}
spec:
  selector: {matchLabels: {app: llama}}
  targetPorts: [{number: 8000}]
`))
	eventually(ctx, t, "an answer that is counted", func(ctx context.Context) error {
		if _, err := io.ReadAll(openMetered(ctx, t, 1, nil)); err != nil {
			return err
		}
		if usageCounts(ctx, t)["usage=read"] == 0 {
			return fmt.Errorf("the picker has counted %v", usageCounts(ctx, t))
		}
		return nil
	})
	forms := map[string]struct {
		more  map[string]any
		usage string // each answer's label usage
	}{
		"plain":                {nil, "read"},
		"stream":               {map[string]any{"stream": true, "stream_options": map[string]bool{"include_usage": true}}, "read"},
		"stream without usage": {map[string]any{"stream": true}, "missing"},
	}
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			const calls = 5
			before, want := settledUsage(ctx, t), map[string]int{"usage=" + form.usage: calls}
			for range calls { // the same prompt: from the second call on most of it is cached
				answer, err := io.ReadAll(openMetered(ctx, t, 30, form.more))
				must(t, err)
				for kind, tokens := range usageTold(t, answer) {
					want["kind="+kind] += tokens
				}
			}
			if form.usage == "read" && (want["kind=cached"] == 0 || want["kind=completion"] == 0) {
				t.Fatalf("the answers themselves tell of %v: too little to compare with", want)
			}
			eventually(ctx, t, "what the answers said", func(ctx context.Context) error {
				got := usageCounts(ctx, t)
				for what := range got {
					if got[what] -= before[what]; got[what] == 0 {
						delete(got, what)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					return fmt.Errorf("the picker counts (-want +got):\n%s", diff)
				}
				return nil
			})
		})
	}
	whole, err := io.ReadAll(openMetered(ctx, t, longAnswer, map[string]any{"ignore_eos": true}))
	must(t, err)
	for name, fault := range map[string]syscall.Signal{"a picker that ends": syscall.SIGKILL, "a picker that hangs": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			stream := bufio.NewReader(openMetered(ctx, t, longAnswer, map[string]any{"stream": true, "ignore_eos": true}))
			begin, err := stream.ReadBytes('\n')
			must(t, err)
			process := pickerProcess(ctx, t)
			must(t, syscall.Kill(process, fault))
			if fault == syscall.SIGSTOP {
				defer func() { must(t, syscall.Kill(process, syscall.SIGCONT)) }()
			} else {
				defer func() { scalePicker(ctx, t, 0); scalePicker(ctx, t, 1) }()
			}
			rest, err := io.ReadAll(stream)
			must(t, err)
			if diff := cmp.Diff(textOf(t, whole), textOf(t, append(begin, rest...))); diff != "" || !bytes.HasSuffix(rest, []byte("data: [DONE]\n\n")) {
				t.Errorf("the answer ends with %q and says (-want +got):\n%s", rest[max(0, len(rest)-50):], diff)
			}
		})
	}
}

// openMetered calls the pool with counted tokens, and returns the answer's body.
func openMetered(ctx context.Context, t *testing.T, maxTokens int, more map[string]any) io.Reader {
	t.Helper()
	call := map[string]any{"model": model, "prompt": strings.Repeat("All that was said so far. ", 200), "max_tokens": maxTokens}
	for k, v := range more {
		call[k] = v
	}
	body, err := json.Marshal(call)
	must(t, err)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, metered+"/v1/completions", bytes.NewReader(body))
	must(t, err)
	response, err := the.caller.HTTP.Do(request)
	if err != nil {
		return failing{err} // the pool may be new
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	if response.StatusCode != http.StatusOK {
		return failing{fmt.Errorf("status %s", response.Status)}
	}
	if more["stream"] == nil && response.ContentLength < 0 {
		return failing{errors.New("the answer has lost the length that the model server gave it")}
	}
	return response.Body
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// usageTold returns an answer's token counts, by kind. In a stream they are in the last event that has usage.
func usageTold(t *testing.T, answer []byte) map[string]int {
	t.Helper()
	var told map[string]int
	for _, p := range piecesOf(t, answer) {
		if u := p.Usage; u != nil {
			told = map[string]int{"prompt": u.Prompt, "completion": u.Completion, "cached": u.Details.Cached}
		}
	}
	return told
}

// textOf returns the text of an answer.
func textOf(t *testing.T, answer []byte) string {
	t.Helper()
	var text strings.Builder
	for _, p := range piecesOf(t, answer) {
		for _, c := range p.Choices {
			text.WriteString(c.Text)
		}
	}
	return text.String()
}

// piece is a completion, or an event of its stream.
type piece struct {
	Choices []struct {
		Text string `json:"text"`
	} `json:"choices"`
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Details    struct {
			Cached int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

func piecesOf(t *testing.T, answer []byte) []piece {
	t.Helper()
	var out []piece
	for line := range bytes.Lines(answer) {
		line, _ = bytes.CutPrefix(bytes.TrimSpace(line), []byte("data: "))
		if bytes.HasPrefix(line, []byte("{")) {
			out = append(out, piece{})
			must(t, json.Unmarshal(line, &out[len(out)-1]))
		}
	}
	return out
}

// usageCounts returns the picker's usage counts for the pool, each by its label "kind=…" or "usage=…".
func usageCounts(ctx context.Context, t *testing.T) map[string]int {
	t.Helper()
	page, err := metricsOf(ctx, picker(ctx, t), "9090")
	must(t, err)
	out := map[string]int{}
	for line := range strings.Lines(page) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(name, "inference_waypoint_usage_") || !strings.Contains(name, `pool="models/metered"`) {
			continue
		}
		for _, label := range strings.FieldsFunc(name, func(r rune) bool { return strings.ContainsRune("{},", r) }) {
			if key, text, ok := strings.Cut(label, "="); ok && key != "pool" {
				n, err := strconv.ParseFloat(value, 64)
				must(t, err)
				out[key+"="+strings.Trim(text, `"`)] = int(n)
			}
		}
	}
	return out
}

// settledUsage waits until earlier answers are counted, which happens a moment after the caller has them.
func settledUsage(ctx context.Context, t *testing.T) map[string]int {
	t.Helper()
	last := usageCounts(ctx, t)
	eventually(ctx, t, "rest", func(ctx context.Context) error {
		now := usageCounts(ctx, t)
		moved := cmp.Diff(last, now)
		last = now
		if moved != "" {
			return fmt.Errorf("the picker still counts:\n%s", moved)
		}
		return nil
	})
	return last
}
