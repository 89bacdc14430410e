package protocol

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const completionsPath = "/v1/completions"

// The clients that call through Envoy, over HTTP/1.1 and multiplexed over HTTP/2.
var (
	client       = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	multiplexing = &http.Client{Transport: &http.Transport{Protocols: cleartextHTTP2()}}
)

func cleartextHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// option changes a request.
type option func(*http.Request)

func header(name, value string) option {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// within restricts a call to a subset: a list of endpoints, or a text with commas. Envoy turns the header into the metadata
// that another filter or control plane would set.
func within(t *testing.T, subset any) option {
	t.Helper()
	value, err := structpb.NewValue(subset)
	must(t, err)
	encoded, err := proto.Marshal(value)
	must(t, err)
	return header(subsetHeader, base64.StdEncoding.EncodeToString(encoded))
}

// answer is a whole answer.
type answer struct {
	status int
	served string // the endpoint that served, according to Envoy
	body   []byte
	heard  heard // what the endpoint received, if one answered
}

// open makes a call and returns when the answer's headers have come. The call ends with the test at the latest. Without a
// body the request is a GET.
func open(t *testing.T, door string, body io.Reader, options ...option) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	response, err := try(ctx, client, door, body, options...)
	must(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

// try makes a call and returns its outcome.
func try(ctx context.Context, by *http.Client, door string, body io.Reader, options ...option) (*http.Response, error) {
	method := http.MethodPost
	if body == nil {
		method = http.MethodGet
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+the.envoy.Addresses[door]+completionsPath, body)
	if err != nil {
		return nil, err
	}
	for _, change := range options {
		change(request)
	}
	return by.Do(request)
}

// call makes a call and reads the answer.
func call(t *testing.T, door string, body io.Reader, options ...option) answer {
	t.Helper()
	response := open(t, door, body, options...) //nolint:bodyclose // the test's end closes it
	text, err := io.ReadAll(response.Body)
	must(t, err)
	a := answer{status: response.StatusCode, served: response.Header.Get(servedHeader), body: text}
	if a.status == http.StatusOK {
		if err := json.Unmarshal(text, &a.heard); err != nil {
			t.Fatalf("the answer is not the endpoint's: %.200s", text)
		}
	}
	return a
}

// served makes a call that an endpoint must serve.
func served(t *testing.T, door string, body io.Reader, options ...option) heard {
	t.Helper()
	a := call(t, door, body, options...)
	if a.status != http.StatusOK {
		t.Fatalf("the answer is %d: %s", a.status, a.body)
	}
	if a.served != a.heard.Endpoint {
		t.Errorf("%s served, but Envoy tells the picker of %q", a.heard.Endpoint, a.served)
	}
	return a.heard
}

// isRefused checks that the picker itself refused a call, in the format of the OpenAI API.
func isRefused(t *testing.T, a answer, wantCode string) {
	t.Helper()
	var said struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal(a.body, &said); err != nil {
		t.Fatalf("the answer is %d %q, want an error in JSON", a.status, a.body)
	}
	if a.status != http.StatusServiceUnavailable || said.Error.Type != "service_unavailable_error" || said.Error.Code != wantCode || said.Error.Message == "" {
		t.Errorf("the answer is %d %s, want 503 and code %s", a.status, a.body, wantCode)
	}
}

// prompt is a body whose prompt has a number of bytes. Prompts of different names share no prefix.
func prompt(name string, size int) []byte {
	word := name + " goes on. "
	return fmt.Appendf(nil, `{"model":"llama","prompt":%q}`, strings.Repeat(word, size/len(word)+1)[:size])
}

// ask is a short body.
func ask(name string) io.Reader { return bytes.NewReader(prompt(name, 300)) }
