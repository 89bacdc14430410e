package poolstate

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// Explanation is why a call goes where it goes. Its JSON is what operators are shown.
type Explanation struct {
	Pool         string      `json:"pool"`
	Model        string      `json:"model,omitempty"`
	PromptTokens int         `json:"promptTokens"`
	PromptBlocks int         `json:"promptBlocks"`
	Candidates   []Candidate `json:"candidates"` // best first
}

// Candidate is one endpoint's place in an explanation. Times are in seconds; those under Cost add up to it, and Class
// names the bound that puts the endpoint behind all that have none.
type Candidate struct {
	Endpoint       string   `json:"endpoint"`
	Class          string   `json:"class,omitempty"`
	CachedTokens   int      `json:"cachedTokens"`
	UncachedTokens int      `json:"uncachedTokens"`
	QueueTokens    float64  `json:"queueTokens"`
	TokensPerSec   float64  `json:"prefillTokensPerSecond"`
	InFlight       int      `json:"inFlight"`
	Calls          float64  `json:"callsWithThoseOfOthers"`
	ReadingAge     *float64 `json:"readingAgeSeconds"` // null where there is no reading
	FirstToken     float64  `json:"expectedFirstTokenSeconds"`
	AdapterState   string   `json:"adapter,omitempty"`
	Cost           Cost     `json:"costSeconds"`
}

// Cost is an endpoint's cost and its terms, as the package comment of selection has them.
type Cost struct {
	Total   float64 `json:"total"`
	Wait    float64 `json:"wait"`
	Prefill float64 `json:"prefill"`
	Others  float64 `json:"others"`
	Batch   float64 `json:"batch"`
	Memory  float64 `json:"memory"`
	Adapter float64 `json:"adapter"`
	Session float64 `json:"session"`
}

// Explain tells why a call would go where it would go now; nothing is reserved. The error is a *refusal.Error, as
// Pick's is.
func (p *Pool) Explain(facts *request.Facts, subset *Subset, session string) (*Explanation, error) {
	call := selection.Call{Facts: facts, Session: sessionKey(session)}
	ranked, err := p.lookRanked(&call, subset)
	if err != nil {
		return nil, err
	}
	return p.explain(facts, ranked), nil
}

func (p *Pool) lookRanked(call *selection.Call, subset *Subset) ([]ranked, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	if err := p.look(call, subset, now); err != nil {
		return nil, err
	}
	return p.rank(call, now), nil
}

// ranked is an endpoint with the numbers of its place, in no order yet.
type ranked struct {
	endpoint string
	reason   selection.Reason
}

// rank takes down what an explanation is made of. The pool's mutex is held, so it copies numbers and does no more.
func (p *Pool) rank(call *selection.Call, now time.Duration) []ranked {
	reasons := selection.Explain(call, &p.view, now)
	out := make([]ranked, len(reasons))
	for i, r := range reasons {
		out[i] = ranked{endpoint: p.slots[r.Endpoint].text, reason: r}
	}
	return out
}

// explain puts what was taken down in order and into words. The pool's mutex is not held.
func (p *Pool) explain(facts *request.Facts, rows []ranked) *Explanation {
	slices.SortStableFunc(rows, func(a, b ranked) int { return a.reason.Compare(b.reason) })
	out := &Explanation{
		Pool: p.name.String(), Model: facts.Model,
		PromptTokens: facts.PromptTokens(), PromptBlocks: len(facts.Blocks),
		Candidates: make([]Candidate, 0, len(rows)),
	}
	for _, row := range rows {
		out.Candidates = append(out.Candidates, row.candidate())
	}
	return out
}

func (row *ranked) candidate() Candidate {
	r := &row.reason
	c := Candidate{
		Endpoint: row.endpoint, Class: r.Class, AdapterState: r.AdapterState,
		CachedTokens: r.CachedTokens, UncachedTokens: r.UncachedTokens,
		QueueTokens: math.Round(r.QueueTokens), TokensPerSec: math.Round(r.Rate),
		InFlight: r.InFlight, Calls: rounded(r.Calls), FirstToken: rounded(r.Wait + r.Prefill),
		Cost: Cost{
			Total: rounded(r.Cost), Wait: rounded(r.Wait), Prefill: rounded(r.Prefill), Others: rounded(r.Others),
			Batch: rounded(r.Batch), Memory: rounded(r.Memory), Adapter: rounded(r.Adapter), Session: rounded(r.Session),
		},
	}
	if !math.IsInf(r.ReadingAge, 0) {
		age := rounded(r.ReadingAge)
		c.ReadingAge = &age
	}
	return c
}

// rounded leaves microseconds of seconds.
func rounded(v float64) float64 { return math.Round(v*1e6) / 1e6 }

// LogValue has the first of the ranking as a log is read: one group for each.
func (e *Explanation) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("model", clipped(e.Model)), slog.Int("promptTokens", e.PromptTokens), slog.Int("candidates", len(e.Candidates)),
	}
	for _, c := range e.Candidates[:min(len(e.Candidates), selection.Choices)] {
		attrs = append(attrs, slog.Group(c.Endpoint,
			"cost", c.Cost.Total, "wait", c.Cost.Wait, "prefill", c.Cost.Prefill, "others", c.Cost.Others,
			"cachedTokens", c.CachedTokens, "queueTokens", c.QueueTokens, "inFlight", c.InFlight,
			"adapter", c.AdapterState, "class", c.Class))
	}
	return slog.GroupValue(attrs...)
}

// clipped bounds what a client's own text takes in a log.
func clipped(text string) string { return text[:min(len(text), 100)] }

// explainLimit bounds the body of a request for an explanation, in bytes.
const explainLimit = 16 << 20

// ExplainHandler answers POST /debug/explain?pool=namespace/name, whose body is that of a request to a model, with the
// ranking as JSON; nothing is reserved. Optional are path (the request's own, /v1/chat/completions by default), session
// (the value of the pool's session header) and subset (an endpoint that the call may go to; several times for several).
func ExplainHandler(f *Fleet) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		explanation, status, err := explainRequest(f, w, r)
		answer(w, status, explanation, err)
	})
}

// answer writes a value as JSON, or the error in its place. That a client is gone is no fault to report.
func answer(w http.ResponseWriter, status int, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	if err != nil {
		value = map[string]string{"error": err.Error()}
	}
	_ = out.Encode(value)
}

func explainRequest(f *Fleet, w http.ResponseWriter, r *http.Request) (*Explanation, int, error) {
	query := r.URL.Query()
	name, ok := ParseName(query.Get("pool"))
	if !ok {
		return nil, http.StatusBadRequest, errors.New("the query has to name a pool: pool=namespace/name")
	}
	p := f.Pool(name)
	if p == nil {
		return nil, http.StatusNotFound, errors.New("there is no such pool")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, explainLimit))
	if err != nil {
		return nil, http.StatusRequestEntityTooLarge, errors.New("the body cannot be read, or is longer than 16 MiB")
	}
	path := query.Get("path")
	if path == "" {
		path = "/v1/chat/completions"
	}
	facts := request.Facts{Seed: f.Seed()}
	facts.Read(path, body, false)
	subset := Subset{Given: query.Has("subset")}
	for _, text := range query["subset"] {
		subset.Add(text)
	}
	explanation, err := p.Explain(&facts, &subset, query.Get("session"))
	if err != nil {
		return nil, refusal.Of(err).Status(), err
	}
	return explanation, http.StatusOK, nil
}
