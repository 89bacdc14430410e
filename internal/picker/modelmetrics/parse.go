package modelmetrics

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
)

// Reasons why a page gives no reading. Both mean that the endpoint's load is unknown, and not that it is zero.
var (
	// ErrNoEngine is returned for a page without any metric of a known engine, or of the engine that was set.
	ErrNoEngine = errors.New("the page has no metrics of a known model server")
	// ErrIncomplete is returned for a page on which the waiting requests, the running requests or the KV cache's usage are
	// missing or invalid: NaN, infinite, negative or no number. Servers that create a metric when they first set it, such
	// as trtllm-serve, send such pages until their first request.
	ErrIncomplete = errors.New("the page lacks a metric of the server's load: waiting requests, running requests or KV cache usage")
)

// Bounds on what a page can make the parser remember. Servers have far less (data parallelism of 64, some tens of
// adapters). Without the bounds, the searches for shards and names would take minutes for a hostile page of 4 MiB.
const (
	maxShards   = 256  // beyond it the load is unknown, since some shards' load is missing
	maxAdapters = 1024 // further ones are left out
)

// Parser reads the pages of one endpoint, one after the other, and finds out from page to page whether the server
// restarted. It allocates nothing unless the set of adapters has changed. Only one goroutine at a time may use it.
type Parser struct {
	engine   Engine
	tallies  [numEngines]tally
	start    float64 // of the process, in Unix seconds; 0 if the page does not have it
	adapters adapters
	model    string // of the last page that named one
	last     struct {
		engine   Engine
		counts   [numCounts]float64
		start    float64
		restarts int
	}
}

// NewParser returns a parser for the metrics of one engine or, with Detect, of the engine that each page is of.
func NewParser(engine Engine) *Parser {
	p := &Parser{engine: engine}
	p.reset()
	return p
}

// tally collects a page's metrics of one engine.
type tally struct {
	seen     bool
	shards   []shard
	hint     int  // the index of the shard that the next sample probably belongs to
	overflow bool // there are more than maxShards
	counters [numCounters]float64
	lora     loraSets
	model    []byte
}

// shard is one of the engines behind an endpoint.
type shard struct {
	label  []byte
	gauges gauges
}

// gauges are -1 where the page does not have them.
type gauges [numGauges]float64

// tokens returns the capacity of the KV cache, 0 if the page does not have it. Where the server tells the capacity
// outright, that counts: in a model with several kinds of attention, a block of tokens takes several blocks.
func (g *gauges) tokens() float64 {
	if g[capacity] > 0 {
		return g[capacity]
	}
	return max(0, g[blockSize]) * max(0, g[blocks])
}

// queue returns the calls that wait for capacity, and those that wait for something else.
func (g *gauges) queue() (queued, deferred float64) {
	queued, deferred = g[waiting], max(0, g[waitingApart])
	if g[waitingRoom] >= 0 {
		queued, deferred = g[waitingRoom], deferred+max(0, g[waiting]-g[waitingRoom])
	}
	return queued, deferred
}

// loraSets are the adapters of one series. vLLM keeps a series for every set that there ever was, whose value is the
// time when it was last current.
type loraSets struct {
	seen             bool
	at               float64
	slots            float64
	running, waiting []byte
}

// Parse reads a page that was requested at the given time. It returns ErrNoEngine or ErrIncomplete, wrapped, when the
// page gives no reading. It skips lines that it cannot read, since only missing metrics matter.
//
// If the engine is to be detected and the page has metrics of several, the first complete engine counts, in the order
// of the constants.
func (p *Parser) Parse(page []byte, at time.Time) (Reading, error) {
	for pause := len(page) - piece; len(page) > 0; {
		if len(page) < pause {
			runtime.Gosched()
			pause = len(page) - piece
		}
		line, rest := page, []byte(nil)
		if end := bytes.IndexByte(page, '\n'); end >= 0 {
			line, rest = page[:end], page[end+1:]
		}
		p.line(line)
		page = rest
	}
	reading, err := p.reading(at)
	p.reset() // at once, as the tallies point into the page
	return reading, err
}

// reset forgets the last page.
func (p *Parser) reset() {
	for i := range p.tallies {
		t := &p.tallies[i]
		clear(t.shards)
		*t = tally{shards: t.shards[:0]}
		for c := range t.counters {
			t.counters[c] = -1
		}
	}
	p.start = 0
}

// line adds one line, if its metric is read.
func (p *Parser) line(line []byte) {
	if len(line) == 0 || !startsMetric(line[0]) {
		return
	}
	name, rest := metricName(line)
	if bytes.HasSuffix(name, bucketSuffix) {
		return
	}
	m, ok := metrics[string(name)]
	if !ok {
		return
	}
	labels, value := labelsAndValue(rest)
	v, ok := number(value)
	switch {
	case m.field == processStart:
		if ok {
			p.start = v
		}
		return
	case p.engine != Detect && p.engine != m.engine:
		return
	}
	t := &p.tallies[m.engine]
	t.seen = true
	if ok {
		t.add(m, labels, v)
	}
}

// bucketSuffix ends the names of three lines out of four, the buckets of histograms. Comparing it costs less than a
// look-up in the map.
var bucketSuffix = []byte("_bucket")

// startsMetric reports whether a metric that is read can begin with the byte; comments do not.
func startsMetric(c byte) bool {
	return c == 'v' || c == 's' || c == 't' || c == 'n' || c == 'p'
}

func (t *tally) add(m metric, labels []byte, v float64) {
	if t.count(m.field, v) {
		return
	}
	shardLabel, values := wanted(m, labels)
	switch m.field {
	case loraRequests:
		if !t.lora.seen || v >= t.lora.at {
			slots, _ := number(values[0])
			t.lora = loraSets{seen: true, at: v, slots: slots, running: values[1], waiting: values[2]}
		}
	case cacheConfig:
		for i, gauge := range [...]field{blockSize, blocks, capacity} {
			if n, ok := number(values[i]); ok {
				t.gauge(shardLabel, gauge, n)
			}
		}
	case requestsBy:
		t.gauge(shardLabel, requestGauge(values[0]), v)
	case blocksBy:
		t.gauge(shardLabel, blockGauge(values[0]), v)
	case waitingBy:
		t.gauge(shardLabel, waitingGauge(values[0]), v)
	case promptTokensBy:
		t.count(promptCounter(values[0]), v)
	default:
		if m.field == running && len(values[0]) > 0 {
			t.model = values[0]
		}
		t.gauge(shardLabel, m.field, v)
	}
}

// count adds to a counter, and reports whether the field is one. Counters have labels of many kinds (engine, priority,
// source of the cached tokens). The sum over all series is always the total.
func (t *tally) count(f field, v float64) bool {
	if f < numGauges || f >= endOfCounters {
		return false
	}
	t.counters[f-numGauges] = max(0, t.counters[f-numGauges]) + v
	return true
}

// counter returns a counter, 0 if the page does not have it.
func (t *tally) counter(f field) float64 { return max(0, t.counters[f-numGauges]) }

// wanted returns the values of the labels that are read with a metric.
func wanted(m metric, labels []byte) (shardLabel []byte, values [maxLabels][]byte) {
	for {
		name, value, rest, ok := nextLabel(labels)
		if !ok {
			return shardLabel, values
		}
		if string(name) == shardLabels[m.engine] {
			shardLabel = value
		}
		for i, want := range m.labels {
			if string(name) == want {
				values[i] = value
			}
		}
		labels = rest
	}
}

// gauge adds a gauge of a shard. Of several series of one shard the largest counts: SGLang's tensor-parallel ranks
// repeat one number, and it reports its queue by priority beside the total.
func (t *tally) gauge(shardLabel []byte, f field, v float64) {
	if f >= numGauges || t.overflow {
		return
	}
	if s := t.shard(shardLabel); s != nil {
		s.gauges[f] = max(s.gauges[f], v)
	}
}

// shard returns the shard of a label. The series of each metric come in the same order, so the search begins behind the
// last shard found.
func (t *tally) shard(label []byte) *shard {
	for range t.shards {
		if t.hint >= len(t.shards) {
			t.hint = 0
		}
		s := &t.shards[t.hint]
		t.hint++
		if bytes.Equal(s.label, label) {
			return s
		}
	}
	if len(t.shards) == maxShards {
		t.overflow = true
		return nil
	}
	s := shard{label: label}
	for i := range s.gauges {
		s.gauges[i] = -1
	}
	t.shards = append(t.shards, s)
	t.hint = len(t.shards)
	return &t.shards[len(t.shards)-1]
}

// reading makes the page's reading.
func (p *Parser) reading(at time.Time) (Reading, error) {
	engine, err := p.choose()
	if err != nil {
		return Reading{}, err
	}
	t := &p.tallies[engine]
	r := Reading{Engine: engine, At: at, Restarts: p.restarts(engine)}
	t.fill(&r)
	r.RunningAdapters, r.WaitingAdapters = p.adapters.of(t.lora.running, t.lora.waiting)
	r.Model = p.modelOf(t.model)
	return r, nil
}

// modelOf returns a model's name as a string, the last page's where it is the same.
func (p *Parser) modelOf(name []byte) string {
	if p.model != string(name) {
		p.model = unescape(name)
	}
	return p.model
}

// choose returns the first engine with a complete tally.
func (p *Parser) choose() (Engine, error) {
	incomplete := Detect
	for e := VLLM; e < numEngines; e++ {
		switch t := &p.tallies[e]; {
		case !t.seen:
		case t.complete():
			return e, nil
		case incomplete == Detect:
			incomplete = e
		}
	}
	if incomplete != Detect {
		return Detect, fmt.Errorf("%s: %w", incomplete, ErrIncomplete)
	}
	return Detect, ErrNoEngine
}

// complete reports whether the load of each shard is known. A shard that has only a capacity comes from vLLM before
// 0.10, which did not label it by engine.
func (t *tally) complete() bool {
	loads := 0
	for i := range t.shards {
		known := 0
		for _, f := range [...]field{waiting, running, usage} {
			if t.shards[i].gauges[f] >= 0 {
				known++
			}
		}
		if known == 3 {
			loads++
		} else if known > 0 {
			return false
		}
	}
	return loads > 0 && !t.overflow
}

// fill adds up the shards.
func (t *tally) fill(r *Reading) {
	var queued, deferred, batch, used, loads, tokens, block float64
	split := true
	for i := range t.shards {
		g := &t.shards[i].gauges
		tokens += g.tokens()
		block = max(block, g[blockSize])
		if g[waiting] < 0 {
			continue
		}
		loads++
		q, d := g.queue()
		queued += q
		deferred += d
		split = split && g[waitingRoom] >= 0
		batch += g[running]
		used += min(1, g[usage])
	}
	r.Waiting, r.Running, r.KVUsage = int(count(queued)), int(count(batch)), used/loads
	r.Deferred, r.WaitingSplit = int(count(deferred)), split
	r.CapacityTokens, r.BlockTokens = count(tokens), count(block)
	r.MaxLoRA = int(count(t.lora.slots))
	t.fillCounters(r)
}

func (t *tally) fillCounters(r *Reading) {
	r.PromptTokens = count(t.counter(promptTokens))
	r.CacheHits = count(t.counter(cacheHits))
	r.FirstTokens = count(t.counter(firstTokens))
	r.FirstTokenSeconds = t.counter(firstTokenSeconds)
	r.CacheQueries = r.PromptTokens // servers that do not count look-ups look up every prompt
	if r.Engine == VLLM {
		r.CacheQueries = count(t.counter(cacheQueries))
	}
	r.ComputedTokens = count(t.counter(computedTokens))
	r.TransferredTokens = count(t.counter(transferredTokens))
	r.GeneratedTokens = count(t.counter(generatedTokens))
	r.Ended = count(t.counter(endedCalls))
}

// count returns a number as an integer: rounded, and within the integers that a float holds exactly.
func count(v float64) int64 {
	const most = 1 << 53
	return int64(math.Round(min(max(v, 0), most)))
}

// startSlack is by how many seconds a process's start may seem to move: some servers compute it from the machine's
// uptime and clock.
const startSlack = 1

// restarts counts a restart if the page is of another process than the last page: another engine, a later start, or a
// counter that dropped. A missing counter shows nothing: SGLang has none before its first request, and the end of an
// overlong page is not read.
func (p *Parser) restarts(engine Engine) int {
	last, counts := &p.last, p.tallies[engine].counters[:numCounts]
	anew := last.engine != Detect && last.engine != engine
	anew = anew || (last.start > 0 && p.start > last.start+startSlack)
	for i, c := range counts {
		anew = anew || (c >= 0 && c < last.counts[i])
	}
	if anew {
		last.restarts++
		last.counts = [numCounts]float64{}
	}
	last.engine = engine
	if p.start > 0 {
		last.start = p.start
	}
	for i, c := range counts {
		if c >= 0 {
			last.counts[i] = c
		}
	}
	return last.restarts
}

// adapters turns a page's lists of adapters into names. It keeps the last lists and names, as they seldom change from
// page to page.
type adapters struct {
	raw              []byte // the lists as they were written
	split            int    // where the second begins in raw
	names            []string
	running, waiting []string // parts of names
}

// of returns the names in two comma-separated lists: those in the first, and those only in the second.
func (a *adapters) of(running, waiting []byte) (runningNames, waitingNames []string) {
	if bytes.Equal(a.raw[:a.split], running) && bytes.Equal(a.raw[a.split:], waiting) {
		return a.running, a.waiting
	}
	a.raw = append(append(a.raw[:0], running...), waiting...)
	a.split = len(running)

	// A new slice each time: readings that are out there hold the old one.
	known := a.names
	names := appendNames(nil, known, running)
	n := len(names)
	a.names = appendNames(names, known, waiting)
	a.running, a.waiting = a.names[:n:n], a.names[n:]
	return a.running, a.waiting
}

// appendNames appends the names of a list that are not there yet. It reuses the strings of known names.
func appendNames(names, known []string, list []byte) []string {
	for name := range bytes.SplitSeq(list, []byte{','}) {
		if name = bytes.TrimSpace(name); len(name) == 0 {
			continue
		}
		if len(names) == maxAdapters {
			break
		}
		if s := intern(known, name); !slices.Contains(names, s) {
			names = append(names, s)
		}
	}
	return names
}

// intern returns the name as a string, a known one if there is one.
func intern(known []string, name []byte) string {
	for _, k := range known {
		if k == string(name) {
			return k
		}
	}
	return unescape(name)
}
