package extproc

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// What a session tells: one line at the debug level for each pick, since there are thousands a second, a warning for
// each refusal, an error for each fault of ours; and, where somebody traces, one span from the headers to the pick.

// attempt calls f and reports whether it ended well. A panic in it ends here, counted and told with its place.
func (x *session) attempt(f func()) (ok bool) {
	defer func() {
		if fault := recover(); fault != nil {
			x.server.tellFault(x.pool, fault)
		}
	}()
	f()
	return true
}

func (s *Server) tellFault(pool string, fault any) {
	s.options.Metrics.Panicked()
	s.options.Log.Error("a fault of the picker", "pool", pool, "panic", fault, "stack", string(debug.Stack()))
}

func (x *session) tellPick(took time.Duration) {
	if log := x.server.options.Log; x.pool != probePool && log.Enabled(context.Background(), slog.LevelDebug) {
		log.Debug("picked", "pool", x.pool, "path", clipped(x.path), "model", clipped(x.facts.Model), "endpoints", string(x.endpoints),
			"promptTokens", x.reservation.PromptTokens, "cachedTokens", x.reservation.CachedTokens,
			"subset", x.subset.Given, "took", took)
	}
	if x.span != nil {
		x.span.SetAttributes(
			attribute.String("gen_ai.request.model", clipped(x.facts.Model)),
			attribute.String("inference_waypoint.endpoints", string(x.endpoints)),
			attribute.Int("inference_waypoint.prompt_tokens", x.reservation.PromptTokens),
			attribute.Int("inference_waypoint.cached_tokens", x.reservation.CachedTokens),
		)
		x.endSpan()
	}
}

// textLimit bounds, in bytes, what a client's own text takes in a span or a log.
const textLimit = 512

// clipped cuts no character in two: exporters refuse spans whose text is not UTF-8.
func clipped(text string) string { return strings.ToValidUTF8(text[:min(len(text), textLimit)], "") }

func (x *session) tellRefusal() {
	x.server.options.Log.Warn("refused a call", "pool", x.pool, "reason", string(x.refused.Reason), "message", x.refused.Message)
	if x.span != nil {
		x.span.SetAttributes(attribute.String("inference_waypoint.refusal", string(x.refused.Reason)))
		x.span.SetStatus(codes.Error, x.refused.Message)
		x.endSpan()
	}
}

// startSpan begins the span of the pick, in the trace that the request's header names, if any.
func (x *session) startSpan() {
	tracer := x.server.options.Tracer
	if tracer == nil || x.span != nil || x.pool == probePool {
		return
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{traceHeader: string(x.message.trace)})
	_, x.span = tracer.Start(ctx, "pick endpoint", trace.WithAttributes(attribute.String("inference_waypoint.pool", x.pool)))
}

func (x *session) endSpan() {
	if x.span != nil {
		x.span.End()
		x.span = nil
	}
}
