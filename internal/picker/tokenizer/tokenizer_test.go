package tokenizer

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/tokenblocks"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// What a vLLM 0.32 answered.
const (
	models    = `{"object":"list","data":[{"id":"tiny","object":"model","created":1796033161,"owned_by":"vllm","root":"bin/engines/tiny","parent":null,"max_model_len":8192,"permission":[]},{"id":"sql","object":"model","created":1796033161,"owned_by":"vllm","root":"bin/engines/tiny/adapters/sql","parent":"tiny","max_model_len":null,"permission":[]}]}`
	tokenized = `{"count":8,"max_model_len":8192,"tokens":[3,12,345,6,7,0,4294,9],"token_strs":["H","ello","Ġw","or","ld","!\\\"","Ċ","ÃĄ"]}`
)

// engine is a model server that answers as it is told.
func engine(t *testing.T, tokenize http.HandlerFunc) netip.AddrPort {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, models) })
	mux.HandleFunc("POST /tokenize", tokenize)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

func newTokenizer(t *testing.T) *Tokenizer {
	t.Helper()
	k := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(k.Close)
	return k
}

// ask asks for the tokens of a prompt, and returns nil where none come.
func ask(t *testing.T, k *Tokenizer, at netip.AddrPort, model, body string) *Tokens {
	t.Helper()
	got := make(chan poolstate.Tokens, 1)
	k.Tokenize(at, "tenant", &request.Facts{API: request.ChatCompletions, Model: model}, []byte(body), func(t poolstate.Tokens) { got <- t })
	for {
		select {
		case tokens := <-got:
			return tokens.(*Tokens)
		case <-time.After(10 * time.Millisecond):
			if !k.asks(at) {
				select {
				case tokens := <-got:
					return tokens.(*Tokens)
				default:
					return nil
				}
			}
		}
	}
}

// asks reports whether a server is being asked.
func (k *Tokenizer) asks(at netip.AddrPort) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.servers[at]
	return s != nil && s.busy
}

func TestTokensOfAPrompt(t *testing.T) {
	var body atomic.Value
	at := engine(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body.Store(string(b))
		_, _ = io.WriteString(w, tokenized)
	})
	k := newTokenizer(t)
	for model, adapter := range map[string]string{"tiny": "", "sql": "sql", "unknown": ""} {
		tokens := ask(t, k, at, model, `{"messages":[], "max_tokens": 5}`)
		if model == "unknown" {
			if tokens != nil {
				t.Errorf("a model that the server does not have has the tokens %v", tokens)
			}
			continue
		}
		if tokens == nil || tokens.Count() != 8 {
			t.Fatalf("the tokens for model %s are %v", model, tokens)
		}
		first := tokenblocks.Next(tokenblocks.Root(adapter), []uint32{3, 12, 345})
		want := []uint64{first, tokenblocks.Next(first, []uint32{6, 7, 0})}
		if got := tokens.Names(3); !slices.Equal(got, want) {
			t.Errorf("the names for model %s are %x, want %x", model, got, want)
		}
		if want := `{"messages":[],"return_token_strs":true}`; body.Load() != want {
			t.Errorf("the server got the body %s, want %s", body.Load(), want)
		}
	}
}

// Whatever a server answers, there is no panic, and no tokens that it did not tell.
func TestAnswersThatAreNone(t *testing.T) {
	for what, h := range map[string]http.HandlerFunc{
		"nothing":              says(""),
		"no JSON":              says("hello"),
		"no tokens":            says(`{"count":3}`),
		"a list that is cut":   says(`{"tokens":[1,2`),
		"tokens that are text": says(`{"tokens":["a","b"]}`),
		"negative tokens":      says(`{"tokens":[-1]}`),
		"huge tokens":          says(`{"tokens":[99999999999999999999]}`),
		"too many tokens":      says(`{"tokens":[` + strings.Repeat("1,", 100_000) + `1]}`),
		"a list without end": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"tokens":[`)
			for range 1000 {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1<<12)); err != nil {
					return
				}
			}
		},
		"an error":   func(w http.ResponseWriter, _ *http.Request) { http.Error(w, tokenized, http.StatusNotFound) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"a hang-up":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(what, func(t *testing.T) {
			if got := ask(t, newTokenizer(t), engine(t, h), "tiny", "{}"); got != nil {
				t.Errorf("the tokens are %v", got)
			}
		})
	}
}

// A server that cannot tell tokens is left alone for a while. One that refuses a prompt is not.
func TestServersThatCannotTell(t *testing.T) {
	for status, want := range map[int]int32{
		http.StatusNotFound: 1, http.StatusUnauthorized: 1, http.StatusBadRequest: 3, http.StatusInternalServerError: 3,
	} {
		var calls atomic.Int32
		at := engine(t, func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); http.Error(w, "no", status) })
		k := newTokenizer(t)
		for range 3 {
			ask(t, k, at, "tiny", "{}")
		}
		if got := calls.Load(); got != want {
			t.Errorf("a server that answers %d is asked %d times of 3, want %d", status, got, want)
		}
	}
}

// A server that answers nothing holds few prompts, and nobody else's.
func TestServersThatHang(t *testing.T) {
	hang := make(chan struct{})
	slow := engine(t, func(http.ResponseWriter, *http.Request) { <-hang })
	defer close(hang)
	k := newTokenizer(t)
	for range 100 {
		k.Tokenize(slow, "hostile", &request.Facts{API: request.ChatCompletions, Model: "tiny"}, make([]byte, 1<<10), func(poolstate.Tokens) {})
	}
	if most := int64((maxWaiting + 1) * (9<<10 + jobBytes)); k.memory.Taken() > most {
		t.Errorf("100 prompts for a server that hangs take %d bytes, want at most %d", k.memory.Taken(), most)
	}
	if ask(t, k, engine(t, says(tokenized)), "tiny", "{}") == nil {
		t.Error("another server is not asked")
	}
}

// Prompts that are too large for the tenant's share are not learned, and their memory is given back.
func TestMemoryIsGivenBack(t *testing.T) {
	at := engine(t, says(tokenized))
	k := newTokenizer(t)
	if got := ask(t, k, at, "tiny", strings.Repeat(" ", maxBytes)); got != nil {
		t.Error("a prompt as large as all memory is learned")
	}
	if ask(t, k, at, "tiny", "{}") == nil {
		t.Error("a small prompt is not learned")
	}
	for range 2 * maxWaiting { // more than may wait
		k.Tokenize(at, "tenant", &request.Facts{API: request.ChatCompletions, Model: "tiny"}, []byte("{}"), func(poolstate.Tokens) {})
	}
	for k.asks(at) {
		time.Sleep(time.Millisecond)
	}
	if got := k.memory.Taken(); got != 0 {
		t.Errorf("%d bytes are still taken", got)
	}
}

// Close ends what is asked, and nothing is called afterwards.
func TestClose(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	at := engine(t, func(http.ResponseWriter, *http.Request) { <-hang })
	k := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler)})
	var called atomic.Bool
	for range 3 {
		k.Tokenize(at, "tenant", &request.Facts{API: request.Completions, Model: "tiny"}, []byte("{}"), func(poolstate.Tokens) { called.Store(true) })
	}
	closed := make(chan struct{})
	go func() { k.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("Close does not return")
	}
	k.Tokenize(at, "tenant", &request.Facts{API: request.Completions}, []byte("{}"), func(poolstate.Tokens) { called.Store(true) })
	if called.Load() {
		t.Error("a function is called for a server that told nothing")
	}
}

// Where a call's tokens depend on more than its text, they are not those of the same text elsewhere.
func TestCallsWithOtherTokens(t *testing.T) {
	at := engine(t, says(tokenized))
	k := newTokenizer(t)
	for what, body := range map[string]string{
		"a salt":             `{"messages":[],"cache_salt":"a"}`,
		"a template":         `{"messages":[],"chat_template":"{{ messages }}"}`,
		"template's values":  `{"messages":[],"chat_template_kwargs":{"enable_thinking":false}}`,
		"messages twice":     `{"messages":[],"messages":[{"role":"user","content":"b"}]}`,
		"no JSON":            `messages`,
		"a list":             `[]`,
		"more than a member": `{"messages":[]} {"messages":[1]}`,
	} {
		if got := ask(t, k, at, "tiny", body); got != nil {
			t.Errorf("the tokens of a call with %s are learned", what)
		}
	}
	if ask(t, k, at, "tiny", `{"messages":[],"cache_salt":null,"stream":true}`) == nil {
		t.Error("the tokens of a plain call are not learned")
	}
}

func TestWhereTokensEnd(t *testing.T) {
	for text, want := range map[string][]int32{
		tokenized: {1, 5, 7, 9, 11, 14, 15, 17},
		`{"tokens":[1,2,3],"token_strs":["▁Grüße","▁an","<s>"]}`:           {8, 11, 14},
		`{"tokens":[1,2],"token_strs":["a\u0001b\\\"","c"]}`:               {5, 6},
		`{"tokens":[1], "x": {"token_strs" : 1}, "token_strs":[ "abc" ] }`: {3},
	} {
		_, got, err := readTokens(strings.NewReader(text), 100)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("the tokens of %s end at %v, want %v (%v)", text, got, want, err)
		}
	}
	tokens := &Tokens{ends: []int32{4, 8, 12, 20}, tokens: make([]uint32, 4)}
	for part, want := range map[float64]int{0: 0, 0.1: 0, 0.2: 1, 0.55: 2, 0.6: 3, 1: 4} {
		if got := tokens.Before(part); got != want {
			t.Errorf("%d tokens end within %g of the prompt, want %d", got, part, want)
		}
	}
}

func FuzzReadTokens(f *testing.F) {
	f.Add(tokenized)
	f.Add(`{"tokens":[`)
	f.Add(`"tok"tokens":[1],"token_strs":["\u00`)
	f.Fuzz(func(t *testing.T, answer string) {
		got, ends, err := readTokens(strings.NewReader(answer), 100)
		if err == nil && (len(got) > 101 || len(got) != len(ends) || !slices.IsSorted(ends)) {
			t.Errorf("%d tokens that end at %v", len(got), ends)
		}
	})
}
