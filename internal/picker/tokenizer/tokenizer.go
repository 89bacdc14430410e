// Package tokenizer learns the tokens of prompts from the model servers that get them: a vLLM answers at /tokenize with the tokens
// that a call's prompt has there, template, tools and all. The picker asks after a pick, beside the call. The package must not know
// what the tokens are for.
//
// A server can answer whatever it likes, at any speed. What it says only counts for its own pool. The memory of prompts and answers
// is bounded for each tenant, and where there is no room a prompt's tokens are not learned.
package tokenizer

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

const (
	// maxBytes bounds the memory of the prompts that wait for their tokens, of all tenants.
	maxBytes = 64 << 20
	// maxWaiting is how many prompts wait for one server, which is asked for one after the other.
	maxWaiting = 16
	// timeout is how long a server may take for one prompt.
	timeout = 5 * time.Second
	// restAfter is how long a server is not asked that could not answer.
	restAfter = 30 * time.Second
	// jobBytes is what a prompt takes beside its text.
	jobBytes = 4 << 10
)

// path is where vLLM tells the tokens of a body of chat completions or completions.
const path = "/tokenize"

// Options configure a Tokenizer.
type Options struct {
	Metrics *telemetry.Metrics
	Log     *slog.Logger
}

// Tokenizer asks servers for tokens. It is a poolstate.Tokenizer. Any goroutine may call its methods.
type Tokenizer struct {
	options   Options
	memory    *fairshare.Whole
	transport *http.Transport
	ctx       context.Context
	cancel    context.CancelFunc

	mu      sync.Mutex
	closed  bool
	servers map[netip.AddrPort]*server // that are being asked, or rest
	running sync.WaitGroup
}

// server is a model server that is asked, one prompt after the other.
type server struct {
	endpoint netip.AddrPort
	busy     bool
	waiting  []job
	rests    time.Time       // it is not asked before
	adapters map[string]bool // whether the model of a name is a LoRA adapter; guarded by busy
	asked    time.Time       // when it was last asked for its models; guarded by busy
}

// job is a prompt whose tokens are wanted.
type job struct {
	model string
	body  []byte
	room  *fairshare.Share
	took  int64
	then  func(poolstate.Tokens)
}

// New makes a tokenizer. The caller must call Close in the end.
func New(o Options) *Tokenizer {
	k := &Tokenizer{options: o, memory: fairshare.New(maxBytes), servers: map[netip.AddrPort]*server{}}
	k.transport = &http.Transport{
		DialContext:            (&net.Dialer{KeepAlive: 15 * time.Second, FallbackDelay: -1}).DialContext,
		DisableCompression:     true,
		MaxConnsPerHost:        1,
		MaxResponseHeaderBytes: 8 << 10,
		IdleConnTimeout:        time.Minute,
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

// Close ends all that is asked, and waits for it. Afterwards no function is called any more.
func (k *Tokenizer) Close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.running.Wait()
	k.transport.CloseIdleConnections()
}

// Tokenize asks an endpoint's server for a prompt's tokens, and calls then with them. It does nothing where the server cannot tell
// them, rests, or has too many to tell already.
func (k *Tokenizer) Tokenize(endpoint netip.AddrPort, tenant string, facts *request.Facts, body []byte, then func(poolstate.Tokens)) {
	if facts.API != request.ChatCompletions && facts.API != request.Completions {
		return
	}
	// A prompt has fewer tokens than bytes, of eight bytes each with its place.
	j := job{model: facts.Model, room: k.memory.Of(tenant), took: int64(len(body))*9 + jobBytes, then: then}
	if !k.admits(endpoint) {
		k.options.Metrics.Tokenized("dropped")
		return
	}
	fits := j.room.Take(j.took)
	if fits {
		j.body = bytes.Clone(body) // not under the mutex, for which all tenants' picks wait
		fits = k.queue(endpoint, j)
	}
	if !fits {
		j.room.Give(j.took)
		k.options.Metrics.Tokenized("dropped")
	}
}

// admits reports whether one more prompt may wait for a server.
func (k *Tokenizer) admits(endpoint netip.AddrPort) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.serverOf(endpoint)
	return !k.closed && len(s.waiting) < maxWaiting && !time.Now().Before(s.rests)
}

// queue has a prompt wait for its server.
func (k *Tokenizer) queue(endpoint netip.AddrPort, j job) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.serverOf(endpoint)
	if k.closed || len(s.waiting) >= maxWaiting {
		return false
	}
	s.waiting = append(s.waiting, j)
	if !s.busy {
		s.busy = true
		k.running.Go(func() { k.work(s) })
	}
	return true
}

// maxServers bounds the servers that are remembered without being asked.
const maxServers = 1_000

func (k *Tokenizer) serverOf(endpoint netip.AddrPort) *server {
	s := k.servers[endpoint]
	if s != nil {
		return s
	}
	if len(k.servers) >= maxServers {
		for known, o := range k.servers {
			if !o.busy {
				delete(k.servers, known)
			}
		}
	}
	s = &server{endpoint: endpoint}
	k.servers[endpoint] = s
	return s
}

// work asks a server for the tokens of all prompts that wait for it.
func (k *Tokenizer) work(s *server) {
	for {
		j, more := k.next(s)
		if !more {
			return
		}
		t, err := k.tokenize(s, &j)
		switch {
		case k.ctx.Err() != nil:
		case err != nil:
			k.rest(s, err)
		default:
			k.options.Metrics.Tokenized("ok")
			j.then(t)
		}
		j.room.Give(j.took)
	}
}

// next takes the next prompt for a server, and ends its work where there is none.
func (k *Tokenizer) next(s *server) (job, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(s.waiting) == 0 {
		s.busy = false
		return job{}, false
	}
	j := s.waiting[0]
	s.waiting = append(s.waiting[:0], s.waiting[1:]...)
	return j, true
}

// rest leaves a server alone for a while that cannot answer, and drops what waits for it.
func (k *Tokenizer) rest(s *server, err error) {
	k.options.Metrics.Tokenized("failed")
	if !hopeless(err) {
		return
	}
	k.options.Log.Warn("a server does not tell the tokens of prompts; what it has cached is estimated from their text",
		"endpoint", s.endpoint.String(), "error", err)
	k.mu.Lock()
	defer k.mu.Unlock()
	s.rests = time.Now().Add(restAfter)
	for _, j := range s.waiting {
		j.room.Give(j.took)
	}
	s.waiting = nil
}

// tokenize asks for the tokens of one prompt.
func (k *Tokenizer) tokenize(s *server, j *job) (*Tokens, error) {
	ctx, cancel := context.WithTimeout(k.ctx, timeout)
	defer cancel()
	question, err := questionOf(j.body)
	if err != nil {
		return nil, err
	}
	adapter, err := k.isAdapter(ctx, s, j.model)
	if err != nil {
		return nil, err
	}
	t := &Tokens{}
	if adapter {
		t.adapter = j.model
	}
	answer, err := k.ask(ctx, s.endpoint, http.MethodPost, path, bytes.NewReader(question))
	if err != nil {
		return nil, err
	}
	defer finish(answer)
	t.tokens, t.ends, err = readTokens(answer, len(j.body)+jobBytes/16)
	return t, err
}

// ask returns the body of the answer, which must be closed.
func (k *Tokenizer) ask(ctx context.Context, endpoint netip.AddrPort, method, path string, body io.Reader) (io.ReadCloser, error) {
	call, err := http.NewRequestWithContext(ctx, method, "http://"+endpoint.String()+path, body)
	if err != nil {
		return nil, err
	}
	call.Header.Set("Content-Type", "application/json")
	call.Header.Set("User-Agent", "inference-waypoint")
	answer, err := k.transport.RoundTrip(call)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		finish(answer.Body)
		return nil, statusError{path, answer.StatusCode}
	}
	return answer.Body, nil
}

// finish closes an answer. If little of it is left, its connection is kept.
func finish(answer io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, answer, 64<<10) // what is not read is closed
	_ = answer.Close()
}
