package telemetry

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// collector takes spans over OTLP as a real one does.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer

	mu    sync.Mutex
	spans []string // "service span"
}

func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range r.GetResourceSpans() {
		service := ""
		for _, a := range from.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range from.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.spans = append(c.spans, service+" "+span.GetName())
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// collect runs a collector until the test ends and returns it with its address.
func collect(t *testing.T) (*collector, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, server := &collector{}, grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // it ends with the test
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return c, "http://" + l.Addr().String()
}

func TestTracer(t *testing.T) {
	tests := map[string]struct {
		env  map[string]string
		want []string
	}{
		"all telemetry's endpoint": {
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, []string{"inference-picker of a caller's trace"},
		},
		"traces alone": {
			map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector"}, []string{"inference-picker of a caller's trace"},
		},
		"another name": {
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector", "OTEL_SERVICE_NAME": "mine"}, []string{"mine of a caller's trace"},
		},
		"all samples": {
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector", "OTEL_TRACES_SAMPLER": "parentbased_always_on"},
			[]string{"inference-picker of a caller's trace", "inference-picker of no trace"},
		},
		"no samples": {
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector", "OTEL_TRACES_SAMPLER": "always_off"}, nil,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, address := collect(t)
			for k, v := range tt.env {
				if v == "collector" {
					v = address
				}
				t.Setenv(k, v)
			}
			tracer, stop, err := NewTracer(t.Context(), "inference-picker", slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			for name, parent := range map[string]trace.SpanContextConfig{
				"of no trace":                 {},
				"of a caller's trace":         {TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled, Remote: true},
				"of a trace that is not kept": {TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, Remote: true},
			} {
				_, span := tracer.Start(trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(parent)), name)
				span.End()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := stop(ctx); err != nil {
				t.Error(err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if slices.Sort(c.spans); !slices.Equal(c.spans, tt.want) {
				t.Errorf("the collector has %q, want %q", c.spans, tt.want)
			}
		})
	}
}

func TestTracerIsOffUnlessAskedFor(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	tracer, stop, err := NewTracer(t.Context(), "inference-picker", slog.New(slog.DiscardHandler))
	if tracer != nil || err != nil {
		t.Errorf("the tracer is %v, the error %v, want neither", tracer, err)
	}
	if err := stop(t.Context()); err != nil {
		t.Error(err)
	}
}
