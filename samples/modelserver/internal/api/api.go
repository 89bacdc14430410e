// Package api is the HTTP API of the model server: vLLM's OpenAI-compatible
// routes, their JSON, errors and event streams. It does not decide on timing or
// caching; the engine does.
package api

import (
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/metrics"
)

// ServedByHeader names the server on every response.
const ServedByHeader = "x-served-by"

// maxBodyBytes bounds a request's body; a longer body gets 413.
const maxBodyBytes = 64 << 20

// Server answers requests with an engine.
type Server struct {
	name    string
	engine  *engine.Engine
	metrics *metrics.Metrics
	models  *catalog
	fault   fault
	log     *slog.Logger
}

// New returns a server with the given name, which serves the engine's base model
// and the given adapters.
func New(name string, adapters []string, e *engine.Engine, m *metrics.Metrics, log *slog.Logger) *Server {
	return &Server{name: name, engine: e, metrics: m, models: newCatalog(e.Config(), adapters), log: log}
}

// Handler returns all routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.faulty(s.chatCompletions))
	mux.HandleFunc("POST /v1/completions", s.faulty(s.completions))
	mux.HandleFunc("GET /v1/models", s.listModels)
	mux.HandleFunc("POST /v1/load_lora_adapter", s.loadAdapter)
	mux.HandleFunc("POST /v1/unload_lora_adapter", s.unloadAdapter)
	mux.HandleFunc("POST /reset_prefix_cache", s.resetPrefixCache)
	mux.HandleFunc("PUT /fault/{name}", s.setFault)
	mux.HandleFunc("GET /health", s.health)
	mux.HandleFunc("GET /version", s.version)
	mux.Handle("GET /metrics", s.metrics.Handler())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(ServedByHeader, s.name)
		mux.ServeHTTP(w, r)
	})
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	s.writeJSON(w, http.StatusOK, map[string]string{"version": version})
}

// resetPrefixCache answers 409 while requests run, where vLLM answers 200 and
// does nothing: a caller who measures should know that the cache is not cold.
func (s *Server) resetPrefixCache(w http.ResponseWriter, _ *http.Request) {
	if !s.engine.ResetPrefixCache() {
		s.fail(w, &requestError{http.StatusConflict, "the prefix cache is in use by running requests"})
	}
}

// generation is one valid request, and how to answer it.
type generation struct {
	id       string
	model    string
	arrived  time.Time
	request  engine.Request
	stream   bool
	endUsage bool // the stream ends with a chunk of the usage
	format   format
}

// generate runs the request, writes the answer and counts it.
func (s *Server) generate(w http.ResponseWriter, r *http.Request, g *generation) {
	outputs, err := s.engine.Generate(r.Context(), g.request)
	if err != nil {
		s.fail(w, err)
		return
	}
	var answer responder = &wholeResponder{server: s, w: w, g: g}
	if g.stream {
		answer = newStreamResponder(w, g)
	}
	last, first := engine.Output{Finish: engine.FinishAbort}, true
	for out, err := range outputs {
		if err != nil {
			answer.fail(err)
			break
		}
		if first {
			s.metrics.FirstToken(time.Since(g.arrived))
			first = false
		}
		if answer.write(out) != nil {
			break // the caller has left, so an error would not reach it
		}
		if out.Finish != "" {
			last = out
		}
	}
	s.metrics.Finished(last, time.Since(g.arrived))
}
