// Package debug serves operators over HTTP: the pools' live state, and where a call would go. It must not know who may
// ask.
package debug

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/explain"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// explainLimit bounds the body of a request for an explanation, in bytes.
const explainLimit = 16 << 20

// ExplainHandler answers POST /debug/explain?pool=namespace/name, whose body is that of a request to a model, with the
// ranking as JSON, and reserves nothing. The body's type and encoding are in the same headers. Optional are path (the request's, by default /v1/chat/completions), session
// (the value of the pool's session header) and subset (an allowed endpoint; may be repeated).
func ExplainHandler(f *poolstate.Fleet) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		explanation, status, err := explainRequest(f, w, r)
		answer(w, status, explanation, err)
	})
}

// answer writes a value as JSON, or else the error. It ignores that a client is gone.
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

func explainRequest(f *poolstate.Fleet, w http.ResponseWriter, r *http.Request) (*livestate.Explanation, int, error) {
	query := r.URL.Query()
	name, ok := pool.ParseName(query.Get("pool"))
	if !ok {
		return nil, http.StatusBadRequest, errors.New("the query must name a pool: pool=namespace/name")
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
	call := poolstate.Call{
		Facts:   &request.Facts{Seed: f.Seed()},
		Subset:  poolstate.Subset{Given: query.Has("subset")},
		Session: query.Get("session"),
	}
	call.Facts.Read(request.Head{
		Path: path, ContentType: r.Header.Get("Content-Type"), ContentEncoding: r.Header.Get("Content-Encoding"),
	}, body)
	for _, text := range query["subset"] {
		call.Subset.Add(text)
	}
	decision, err := p.Rank(&call)
	if err != nil {
		return nil, refusal.Of(err).Status(), err
	}
	return explain.Decision(decision), http.StatusOK, nil
}
