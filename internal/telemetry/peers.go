package telemetry

import "github.com/prometheus/client_golang/prometheus"

// PeerMetrics are a picker's metrics of what it tells other pickers, and of what they tell it.
type PeerMetrics struct {
	followed, followers prometheus.Gauge
	told, applied       prometheus.Counter
	cut                 prometheus.Counter
	copies              *prometheus.CounterVec
}

// NewPeerMetrics makes the metrics and registers them. It panics if they are registered already.
func NewPeerMetrics(reg prometheus.Registerer) *PeerMetrics {
	m := &PeerMetrics{
		followed:  gauge("peers_followed", "Other pickers whose decisions this picker follows."),
		followers: gauge("peers_following", "Other pickers that follow the decisions of this picker."),
		told:      counter("peer_events_told_total", "Events of calls that this picker told the pickers that follow it, each counted once."),
		applied:   counter("peer_events_applied_total", "Events of calls that other pickers told this one."),
		cut:       counter("peer_cuts_total", "Times that a picker did not follow fast enough, and had to begin again with a copy."),
		copies: counterVec("peer_copies_total",
			"Copies of all that a picker knows, by direction: given to another picker or taken from one.", "direction"),
	}
	for _, direction := range []string{"given", "taken"} {
		m.copies.WithLabelValues(direction)
	}
	reg.MustRegister(m.followed, m.followers, m.told, m.applied, m.cut, m.copies)
	return m
}

// Followed adds n to the pickers that this one follows.
func (m *PeerMetrics) Followed(n int) { m.followed.Add(float64(n)) }

// SetFollowers sets how many pickers follow this one.
func (m *PeerMetrics) SetFollowers(n int) { m.followers.Set(float64(n)) }

// Told notes that so many events were told.
func (m *PeerMetrics) Told(n int) { m.told.Add(float64(n)) }

// Applied notes that another picker told so many events.
func (m *PeerMetrics) Applied(n int) { m.applied.Add(float64(n)) }

// Cut notes that a picker did not follow fast enough.
func (m *PeerMetrics) Cut() { m.cut.Inc() }

// CopyGiven notes that another picker got a copy of all that this one knows.
func (m *PeerMetrics) CopyGiven() { m.copies.WithLabelValues("given").Inc() }

// CopyTaken notes that this picker got a copy of all that another one knows.
func (m *PeerMetrics) CopyTaken() { m.copies.WithLabelValues("taken").Inc() }
