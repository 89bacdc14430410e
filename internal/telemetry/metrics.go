package telemetry

import (
	"runtime"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// namespace starts the name of every metric of the project.
const namespace = "inference_waypoint"

// Metrics are the picker's metrics. The pool label takes only the names of existing pools, so the cluster bounds its
// cardinality and clients do not.
type Metrics struct {
	streams   *prometheus.GaugeVec
	poolless  prometheus.Gauge // the streams without a pool
	held      prometheus.Gauge
	panics    prometheus.Counter
	timeouts  *prometheus.CounterVec
	pools     prometheus.Gauge
	picks     *prometheus.CounterVec
	refusals  *prometheus.CounterVec
	responses *prometheus.CounterVec
	elsewhere *prometheus.CounterVec
	tokens    *prometheus.CounterVec
	matched   *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	hitRatio  *prometheus.HistogramVec
	hitLength *prometheus.HistogramVec
	inFlight  *prometheus.GaugeVec
	endpoints *prometheus.GaugeVec
	invalid   *prometheus.GaugeVec
	used      *prometheus.CounterVec
	shown     *prometheus.CounterVec
	unread    *prometheus.CounterVec
	broken    *prometheus.CounterVec
	expected  *prometheus.HistogramVec
	tokenized *prometheus.CounterVec
	waiting   *prometheus.GaugeVec
	waited    *prometheus.HistogramVec
}

// NewMetrics makes the metrics and registers them. It panics if they are registered already, which is a bug of the
// program.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	pool := []string{"pool"}
	m := &Metrics{
		streams: gaugeVec("streams_in_flight",
			"Open ext_proc streams, one for each call in flight. The pool is empty for streams that name no existing pool.", pool...),
		held:   gauge("held_body_bytes", "Bytes of request bodies that are held until their calls are picked."),
		panics: counter("panics_total", "Panics of the picker. The call goes on where possible."),
		timeouts: counterVec("stream_timeouts_total",
			"Streams that were ended because the proxy did not send in time what a pick needs, by what was awaited: headers or body.",
			"awaited"),
		pools: gauge("pools", "Pools that the picker serves."),
		picks: counterVec("picks_total",
			"Picks by outcome: prefix, if a part of the prompt is taken to be cached at the picked endpoint, else load.", "pool", "outcome"),
		refusals: counterVec("refusals_total",
			"Refused calls by reason. The pool is empty for calls that name no existing pool.", "pool", "reason"),
		responses: counterVec("responses_total", "Answers of model servers by class of HTTP status: 2xx, 4xx, 5xx, other.", "pool", "class"),
		elsewhere: counterVec("served_elsewhere_total", "Calls that another endpoint than the first choice served, except while the first choice is new to the pool.", pool...),
		tokens:    counterVec("prompt_tokens_total", "Estimated prompt tokens of picked calls, at four bytes a token.", pool...),
		matched: counterVec("prompt_tokens_matched_total",
			"Estimated prompt tokens that are taken to be in the picked endpoint's prefix cache.", pool...),
		duration: histogramVec("pick_duration_seconds",
			"Time of a pick from the message that triggers it: reading the prompt, choosing the endpoint and reserving it.",
			prometheus.ExponentialBuckets(2e-6, 2, 14)), // 2 µs to 16 ms
		hitRatio: histogramVec("prefix_hit_ratio",
			"Share of a prompt's tokens that are taken to be in the picked endpoint's prefix cache.",
			prometheus.LinearBuckets(0, 0.1, 11)),
		hitLength: histogramVec("prefix_hit_tokens",
			"Estimated length of the prompt's head that is taken to be in the picked endpoint's prefix cache, in tokens.",
			append([]float64{0}, prometheus.ExponentialBuckets(64, 4, 6)...)), // 64 to 65,536
		waiting: gaugeVec("requests_waiting", "Calls that wait at the picker until a server would begin with them soon.", pool...),
		waited: histogramVec("wait_duration_seconds",
			"Time for which calls waited at the picker before they were picked, of those that waited.",
			prometheus.ExponentialBuckets(0.01, 2, 14)), // 10 ms to 82 s
		inFlight:  gaugeVec("requests_in_flight", "Picked calls that have not ended.", pool...),
		endpoints: gaugeVec("endpoints", "Endpoints that can be picked now.", pool...),
		invalid: gaugeVec("pool_settings_invalid",
			"Invalid annotations of the pool for the picker; the picker uses the defaults instead.", pool...),
		used: counterVec("usage_tokens_total",
			"Tokens that answers report as used, in pools that count usage: prompt, completion, and cached, which is a part of prompt.",
			"pool", "kind"),
		shown: counterVec("usage_answers_total",
			"Answers in pools that count usage, by whether they report it: read or missing.", "pool", "usage"),
		unread: counterVec("picks_unread_total",
			"Picks by load alone, because prompts of the pool's namespace came faster than its share of the processors can read them.", pool...),
		broken: counterVec("broken_off_total",
			"Streamed answers that were broken off before their first byte and before their whole prompt can have been prefilled. The rest of such a prompt does not count as cached.", pool...),
		expected: histogramVec("first_token_expected_ratio",
			"The time to first token that was expected when a call was picked, as a multiple of the time that the server measured. Calls whose first tokens a server counted together have the ratio of their sums.",
			[]float64{1. / 16, 1. / 8, 1. / 4, 1. / 2, 1 / 1.25, 1.25, 2, 4, 8, 16}),
	}
	m.tokenized = counterVec("prompts_tokenized_total",
		"Prompts whose tokens model servers were to tell after the pick, in pools whose prefixes come from events, by outcome: ok, failed, or dropped, where there was no room or the server could not tell before.", "outcome")
	for _, outcome := range []string{"ok", "failed", "dropped"} {
		m.tokenized.WithLabelValues(outcome)
	}
	for _, awaited := range []string{"headers", "body"} { // from 0 on, so that the first one shows as an increase
		m.timeouts.WithLabelValues(awaited)
	}
	m.poolless = m.streams.WithLabelValues("")
	reg.MustRegister(buildInfo(), m.streams, m.held, m.panics, m.timeouts, m.pools, m.picks, m.refusals, m.responses, m.elsewhere, m.tokens, m.matched,
		m.duration, m.hitRatio, m.hitLength, m.inFlight, m.endpoints, m.invalid, m.used, m.shown, m.unread, m.broken, m.expected, m.tokenized, m.waiting, m.waited)
	return m
}

// StreamOpened notes that a stream without a pool began; StreamClosed must follow.
func (m *Metrics) StreamOpened() { m.poolless.Inc() }

// StreamClosed notes that a stream without a pool ended.
func (m *Metrics) StreamClosed() { m.poolless.Dec() }

// Held adds n to the bytes of bodies that are held before the pick; n may be negative.
func (m *Metrics) Held(n int) { m.held.Add(float64(n)) }

// Panicked notes a panic of the picker.
func (m *Metrics) Panicked() { m.panics.Inc() }

// StreamTimedOut notes a stream that was ended before its pick, by what was awaited.
func (m *Metrics) StreamTimedOut(awaited string) { m.timeouts.WithLabelValues(awaited).Inc() }

// Tokenized notes a prompt whose tokens a model server was to tell: ok, failed or dropped.
func (m *Metrics) Tokenized(outcome string) { m.tokenized.WithLabelValues(outcome).Inc() }

// SetPools sets how many pools are served.
func (m *Metrics) SetPools(n int) { m.pools.Set(float64(n)) }

// RefusedWithoutPool notes a refused call that names no existing pool.
func (m *Metrics) RefusedWithoutPool(reason string) { m.refusals.WithLabelValues("", reason).Inc() }

// PoolMetrics are the metrics of one pool. Their labels are looked up once, and not in each pick.
type PoolMetrics struct {
	parent           *Metrics
	name             string
	byPrefix, byLoad prometheus.Counter
	elsewhere        prometheus.Counter
	tokens, matched  prometheus.Counter
	duration         prometheus.Observer
	hitRatio         prometheus.Observer
	hitLength        prometheus.Observer
	inFlight         prometheus.Gauge
	endpoints        prometheus.Gauge
	invalid          prometheus.Gauge
	streams          prometheus.Gauge
	unread           prometheus.Counter
	broken           prometheus.Counter
	expected         prometheus.Observer
	waiting          prometheus.Gauge
	waited           prometheus.Observer
	responses        [4]prometheus.Counter // in the order of responseClasses
}

var responseClasses = [4]string{"2xx", "4xx", "5xx", "other"}

// ForPool makes the metrics of a pool; DropPool ends them.
func (m *Metrics) ForPool(name string) *PoolMetrics {
	p := &PoolMetrics{
		parent:    m,
		name:      name,
		byPrefix:  m.picks.WithLabelValues(name, "prefix"),
		byLoad:    m.picks.WithLabelValues(name, "load"),
		elsewhere: m.elsewhere.WithLabelValues(name),
		tokens:    m.tokens.WithLabelValues(name),
		matched:   m.matched.WithLabelValues(name),
		duration:  m.duration.WithLabelValues(name),
		hitRatio:  m.hitRatio.WithLabelValues(name),
		hitLength: m.hitLength.WithLabelValues(name),
		inFlight:  m.inFlight.WithLabelValues(name),
		endpoints: m.endpoints.WithLabelValues(name),
		invalid:   m.invalid.WithLabelValues(name),
		streams:   m.streams.WithLabelValues(name),
		unread:    m.unread.WithLabelValues(name),
		broken:    m.broken.WithLabelValues(name),
		expected:  m.expected.WithLabelValues(name),
		waiting:   m.waiting.WithLabelValues(name),
		waited:    m.waited.WithLabelValues(name),
	}
	for i, class := range responseClasses {
		p.responses[i] = m.responses.WithLabelValues(name, class)
	}
	return p
}

// DropPool removes the series of a pool that is gone.
func (m *Metrics) DropPool(name string) {
	labels := prometheus.Labels{"pool": name}
	for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{
		m.picks, m.refusals, m.responses, m.elsewhere, m.tokens, m.matched, m.duration, m.hitRatio, m.hitLength,
		m.inFlight, m.endpoints, m.invalid, m.streams, m.used, m.shown, m.unread, m.broken, m.expected, m.waiting, m.waited,
	} {
		v.DeletePartialMatch(labels)
	}
}

// Picked notes a pick: the prompt's tokens, those of them taken to be cached at the endpoint, and the pick's time.
func (p *PoolMetrics) Picked(promptTokens, matchedTokens int, took time.Duration) {
	if matchedTokens > 0 {
		p.byPrefix.Inc()
	} else {
		p.byLoad.Inc()
	}
	if promptTokens > 0 {
		p.tokens.Add(float64(promptTokens))
		p.matched.Add(float64(matchedTokens))
		p.hitRatio.Observe(float64(matchedTokens) / float64(promptTokens))
		p.hitLength.Observe(float64(matchedTokens))
	}
	p.duration.Observe(took.Seconds())
}

// PickedUnread notes a pick without the prompt, whose turn to be read did not come in time.
func (p *PoolMetrics) PickedUnread() { p.unread.Inc() }

// Refused notes a refused call.
func (p *PoolMetrics) Refused(reason string) { p.parent.refusals.WithLabelValues(p.name, reason).Inc() }

// Responded notes a model server's answer by its HTTP status.
func (p *PoolMetrics) Responded(status int) {
	class := 3
	switch status / 100 {
	case 2:
		class = 0
	case 4:
		class = 1
	case 5:
		class = 2
	}
	p.responses[class].Inc()
}

// ServedElsewhere notes a call that the first choice did not serve.
func (p *PoolMetrics) ServedElsewhere() { p.elsewhere.Inc() }

// BrokenOff notes a call that was broken off while its prompt was prefilled.
func (p *PoolMetrics) BrokenOff() { p.broken.Inc() }

// FirstTokens notes the first tokens of so many calls, and the sums of the times to them, in seconds, as they were expected
// and as the server measured them.
func (p *PoolMetrics) FirstTokens(calls int, expected, observed float64) {
	const most = 1000 // whatever a server's counters say, so that the histogram's sum means something
	for range calls {
		p.expected.Observe(min(max(expected/observed, 1.0/most), most))
	}
}

// StreamOpened notes that a stream of the pool began; StreamClosed must follow.
func (p *PoolMetrics) StreamOpened() { p.streams.Inc() }

// StreamClosed notes that a stream of the pool ended.
func (p *PoolMetrics) StreamClosed() { p.streams.Dec() }

// Used notes the tokens that an answer reports as used. The cached ones are a part of the prompt's.
func (p *PoolMetrics) Used(prompt, cached, completion int) {
	p.parent.shown.WithLabelValues(p.name, "read").Inc()
	for _, of := range []struct {
		kind   string
		tokens int
	}{{"prompt", prompt}, {"cached", cached}, {"completion", completion}} {
		p.parent.used.WithLabelValues(p.name, of.kind).Add(float64(of.tokens))
	}
}

// UsageMissing notes an answer that does not report its used tokens.
func (p *PoolMetrics) UsageMissing() { p.parent.shown.WithLabelValues(p.name, "missing").Inc() }

// SetWaiting sets how many calls wait.
func (p *PoolMetrics) SetWaiting(n int) { p.waiting.Set(float64(n)) }

// Waited notes how long a call waited that is picked now.
func (p *PoolMetrics) Waited(d time.Duration) { p.waited.Observe(d.Seconds()) }

// RequestStarted notes a picked call; RequestEnded must follow.
func (p *PoolMetrics) RequestStarted() { p.inFlight.Inc() }

// RequestEnded notes the end of a picked call.
func (p *PoolMetrics) RequestEnded() { p.inFlight.Dec() }

// SetEndpoints sets how many endpoints can be picked.
func (p *PoolMetrics) SetEndpoints(n int) { p.endpoints.Set(float64(n)) }

// SetInvalidSettings sets how many of the pool's annotations for the picker are invalid.
func (p *PoolMetrics) SetInvalidSettings(n int) { p.invalid.Set(float64(n)) }

// buildInfo makes a series of value 1 whose labels name the program's build.
func buildInfo() prometheus.Collector {
	labels := prometheus.Labels{"version": "", "revision": "", "go_version": runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		labels["version"] = info.Main.Version
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				labels["revision"] = setting.Value
			}
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the labels name the program's build.", ConstLabels: labels,
	})
	g.Set(1)
	return g
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
}

func gaugeVec(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
}

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
}

func histogramVec(name, help string, buckets []float64) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(
		prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}, []string{"pool"})
}
