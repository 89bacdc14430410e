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

// A session logs each pick at the debug level, since there are thousands a second, each refusal as a warning, and each
// panic as an error. With tracing it also makes one span from the headers to the pick.

// attempt calls f and reports whether it ended without a panic. It counts a panic, and logs it with its stack.
func (x *session) attempt(f func()) (ok bool) {
	defer func() {
		if fault := recover(); fault != nil {
			x.server.logPanic(x.pool, fault)
		}
	}()
	f()
	return true
}

func (s *Server) logPanic(pool string, fault any) {
	s.options.Metrics.Panicked()
	s.options.Log.Error("the picker panicked", "pool", pool, "panic", fault, "stack", string(debug.Stack()))
}

func (x *session) logPick(took, held time.Duration) {
	if log := x.server.options.Log; x.pool != probePool && log.Enabled(context.Background(), slog.LevelDebug) {
		log.Debug("picked", "pool", x.pool, "path", clipped(x.head.Path), "model", clipped(x.facts.Model), "endpoints", string(x.endpoints),
			"promptTokens", x.reservation.PromptTokens, "cachedTokens", x.reservation.CachedTokens,
			"subset", x.subset.Given, "took", took, "held", held)
	}
	if x.span != nil {
		x.span.SetAttributes(
			attribute.String("gen_ai.request.model", clipped(x.facts.Model)),
			attribute.String("inference_waypoint.endpoints", string(x.endpoints)),
			attribute.Int("inference_waypoint.prompt_tokens", x.reservation.PromptTokens),
			attribute.Int("inference_waypoint.cached_tokens", x.reservation.CachedTokens),
			attribute.Float64("inference_waypoint.held_seconds", held.Seconds()),
		)
		x.endSpan()
	}
}

// textLimit bounds a client's own text in a span or a log, in bytes.
const textLimit = 512

// clipped cuts no character in two: exporters refuse spans whose text is not UTF-8.
func clipped(text string) string { return strings.ToValidUTF8(text[:min(len(text), textLimit)], "") }

func (x *session) logRefusal() {
	x.server.options.Log.Warn("refused a call", "pool", x.pool, "reason", string(x.refused.Reason), "message", x.refused.Message)
	if x.span != nil {
		x.span.SetAttributes(attribute.String("inference_waypoint.refusal", string(x.refused.Reason)))
		x.span.SetStatus(codes.Error, x.refused.Message)
		x.endSpan()
	}
}

// startSpan begins the span of the pick, in the trace of the request's header, if any.
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
