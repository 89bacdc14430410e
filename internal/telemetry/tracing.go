package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// NewTracer makes a tracer that sends spans over OTLP/gRPC to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
// OTEL_EXPORTER_OTLP_ENDPOINT; it is nil where neither is set. OpenTelemetry's other variables work too:
// OTEL_TRACES_SAMPLER (by default a span is made if the caller's trace is sampled), OTEL_RESOURCE_ATTRIBUTES,
// OTEL_SERVICE_NAME instead of service, and the exporter's own. That a collector is away is logged, and costs calls
// nothing.
//
// stop sends the remaining spans, until its context ends.
func NewTracer(ctx context.Context, service string, log *slog.Logger) (tracer trace.Tracer, stop func(context.Context) error, err error) {
	stop = func(context.Context) error { return nil }
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return nil, stop, nil
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, stop, fmt.Errorf("making the OTLP exporter of traces: %w", err)
	}
	from, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", service)),
		resource.WithFromEnv(), // the environment wins, as the last option
	)
	if err != nil {
		return nil, stop, fmt.Errorf("building the OpenTelemetry resource of traces: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("sending traces failed", "error", err) }))
	options := []sdktrace.TracerProviderOption{sdktrace.WithBatcher(exporter), sdktrace.WithResource(from)}
	if os.Getenv("OTEL_TRACES_SAMPLER") == "" {
		// OpenTelemetry's own default samples every call whose caller does not trace.
		options = append(options, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
	}
	provider := sdktrace.NewTracerProvider(options...)
	return provider.Tracer("github.com/inference-waypoint/inference-waypoint"), provider.Shutdown, nil
}
