package waypointwatch

import "github.com/prometheus/client_golang/prometheus"

// The metrics of a Watch. Those of a pool go with it.
var (
	labels    = []string{"pool", "waypoint"}
	askedDesc = prometheus.NewDesc("inference_waypoint_calls_asked_total",
		"Calls for which a waypoint asked the pool's picker, or was to ask it, since the controller began to watch.", labels, nil)
	unpickedDesc = prometheus.NewDesc("inference_waypoint_calls_unpicked_total",
		"Those of them that went on, or were refused, without a pick.", labels, nil)
	pickedDesc = prometheus.NewDesc("inference_waypoint_picked",
		"1 where the calls of the pool that come by the waypoint are picked, 0 where a tenth of them or more are not. Absent where no call came of late and where the waypoint's counters are unread.", labels, nil)
)

// Example has a series of each metric of a Watch, for lists of them.
func Example(at Place) prometheus.Collector {
	w := New(StatsPort, nil, nil, nil)
	w.places[at] = &place{verdict: Verdict{State: Picked}}
	return w
}

// Describe is prometheus.Collector's.
func (w *Watch) Describe(out chan<- *prometheus.Desc) {
	out <- askedDesc
	out <- unpickedDesc
	out <- pickedDesc
}

// Collect is prometheus.Collector's.
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
