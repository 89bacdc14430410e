package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/pickerwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/endpointmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// metricsPage lists the metrics of the picker and of the controller. A metric with labels has series only once its event
// has happened, so the page uses a pool with every event.
func metricsPage() ([]byte, error) {
	registry := prometheus.NewRegistry()
	pool := telemetry.NewMetrics(registry).ForPool("namespace/pool")
	pool.Refused(string(refusal.Overloaded))
	pool.Used(0, 0, 0)
	telemetry.NewPeerMetrics(registry)
	registry.MustRegister(endpointmetrics.New(wholeState))
	pickers, err := table(registry)
	if err != nil {
		return nil, err
	}
	registry = prometheus.NewRegistry()
	registry.MustRegister(waypointwatch.Example(waypointwatch.Place{}), pickerwatch.Withdrawn())
	controllers, err := table(registry)
	if err != nil {
		return nil, err
	}
	var page bytes.Buffer
	page.WriteString(`# Metrics

Written from the code by ` + "`make docs`" + `.

The picker serves these at ` + "`/metrics`" + ` of port 9090, beside Go's own (` + "`go_`, `process_`" + `). The label ` + "`pool`" + ` is
` + "`namespace/name`" + ` of a pool that exists, and no label has a value that a client chose. Tokens are
estimated at four bytes each, but for those of usage, which answers tell.

`)
	page.WriteString(pickers)
	page.WriteString(`
The replica of the controller that acts serves these at ` + "`/metrics`" + ` of port 9090. The label ` + "`waypoint`" + ` is ` + "`namespace/name`" + `, too.

`)
	page.WriteString(controllers)
	page.WriteString(`
Each replica serves the metrics of controller-runtime at ` + "`/metrics`" + ` of port 9090:
` + "`controller_runtime_reconcile_total`, `controller_runtime_reconcile_errors_total`, `workqueue_depth`, `rest_client_requests_total`" + ` and
others, by the name of the controller.
`)
	return page.Bytes(), nil
}

// table lists the metrics of a registry.
func table(registry *prometheus.Registry) (string, error) {
	families, err := registry.Gather()
	if err != nil {
		return "", fmt.Errorf("gathering metrics: %w", err)
	}
	if all := described(registry); all != len(families) {
		return "", fmt.Errorf("%d metrics are registered, but only %d have a series here to be listed by", all, len(families))
	}
	var out strings.Builder
	out.WriteString("| Metric | Type | Labels | |\n|---|---|---|---|\n")
	for _, f := range families {
		fmt.Fprintf(&out, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), labelsOf(f), f.GetHelp())
	}
	return out.String(), nil
}

// wholeState is an endpoint with all values set.
func wholeState() livestate.State {
	return livestate.State{Pools: []livestate.Pool{{Name: "namespace/pool", Needed: new(float64), Endpoints: []livestate.Endpoint{{
		Address: "10.0.0.1:8000", Reading: &livestate.Reading{}, CachedShare: new(float64), ObservedFirstToken: new(float64),
		ObservedToExpected: new(float64), ToldTokens: new(int),
	}}}}}
}

// described counts a registry's metrics, with and without series.
func described(registry *prometheus.Registry) int {
	descriptions := make(chan *prometheus.Desc)
	go func() {
		registry.Describe(descriptions)
		close(descriptions)
	}()
	n := 0
	for range descriptions {
		n++
	}
	return n
}

func labelsOf(f *dto.MetricFamily) string {
	var names []string
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if name := "`" + l.GetName() + "`"; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return strings.Join(names, ", ")
}
