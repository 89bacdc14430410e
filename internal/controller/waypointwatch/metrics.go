package waypointwatch

import "github.com/prometheus/client_golang/prometheus"

// The metrics of a Watch. A pool's metrics disappear with the pool.
var (
	labels    = []string{"pool", "waypoint"}
	askedDesc = prometheus.NewDesc("inference_waypoint_calls_asked_total",
		"Calls for which a waypoint asked the pool's picker, or tried to, since the controller began to watch.", labels, nil)
	unpickedDesc = prometheus.NewDesc("inference_waypoint_calls_unpicked_total",
		"Calls that a waypoint served or refused without a pick, since the controller began to watch.", labels, nil)
	pickedDesc = prometheus.NewDesc("inference_waypoint_picked",
		"1 if the pool's calls through the waypoint are picked, 0 if a tenth of them or more are not. Absent if there were no recent calls, or if the waypoint's counters cannot be read.", labels, nil)
)

// Example is a collector with one series of each metric of a Watch, for documentation.
func Example(at Place) prometheus.Collector {
	w := New(StatsPort, nil, nil, nil)
	w.places[at] = &place{verdict: Verdict{State: Picked}}
	return w
}

// Describe implements prometheus.Collector.
func (w *Watch) Describe(out chan<- *prometheus.Desc) {
	out <- askedDesc
	out <- unpickedDesc
	out <- pickedDesc
}

// Collect implements prometheus.Collector.
func (w *Watch) Collect(out chan<- prometheus.Metric) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for at, p := range w.places {
		name, waypoint := at.Pool.String(), at.Waypoint.String()
		out <- prometheus.MustNewConstMetric(askedDesc, prometheus.CounterValue, p.asked, name, waypoint)
		out <- prometheus.MustNewConstMetric(unpickedDesc, prometheus.CounterValue, p.unpicked, name, waypoint)
		switch p.verdict.State {
		case Picked:
			out <- prometheus.MustNewConstMetric(pickedDesc, prometheus.GaugeValue, 1, name, waypoint)
		case Unpicked:
			out <- prometheus.MustNewConstMetric(pickedDesc, prometheus.GaugeValue, 0, name, waypoint)
		}
	}
}
