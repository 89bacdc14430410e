package waypointwatch

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Bounds on a page. A pool takes about 1.4 KiB of a page, so a page shows some 700 pools of one waypoint.
const (
	maxPage = 1 << 20 // bytes
	maxLine = 4 << 10 // bytes; lines of our counters have some 150
	// maxPools is how many pools a page may have: more than fit into a page with all of their counters.
	maxPools = 1000
)

// maxCount is more than a proxy counts in a hundred years, and small enough that sums do not overflow.
const maxCount = 1 << 48

// counters are the counters of Envoy's ext_proc filter for one pool's calls since the proxy's start. Their meaning was
// observed with Envoy 1.40: a picked call sends and receives a message for its headers, for its body and for the answer's
// headers, and its stream is open until the answer ends.
type counters struct {
	// started counts opened streams. It leaves out streams that fail while they are opened, as where no picker is left to
	// ask.
	started int64
	// closed counts streams that ended, including failed ones if the pool fails open.
	closed int64
	// failed counts streams that ended with an error, timeouts streams with a reply that was too late. No stream is in both.
	failed, timeouts int64
	// allowed counts streams of failed and timeouts after which the call went on.
	allowed int64
	// sent and received count messages.
	sent, received int64
}

// field finds a counter by Envoy's name; nil for a counter that is not read.
func (c *counters) field(name string) *int64 {
	switch name {
	case "streams_started":
		return &c.started
	case "streams_closed":
		return &c.closed
	case "streams_failed":
		return &c.failed
	case "message_timeouts":
		return &c.timeouts
	case "failure_mode_allowed":
		return &c.allowed
	case "stream_msgs_sent":
		return &c.sent
	case "stream_msgs_received":
		return &c.received
	default:
		return nil
	}
}

// names has the names of the counters that are read, as a regular expression.
const names = "streams_started|streams_closed|streams_failed|message_timeouts|failure_mode_allowed|stream_msgs_sent|stream_msgs_received"

// dotted is the filter for Envoy's stats page: a regular expression for the counters' full names in Envoy.
var dotted = fmt.Sprintf(`[.]ext_proc[.][a-z2-7]{%d}[.](%s)$`, pool.CounterNameLength, names)

// metricName splits the Prometheus name of a counter into the pool's name and the counter's own. The proxy's tags decide how
// much of the listener's name precedes them. It uses no regular expression, as a tenant could make that costly.
func metricName(name []byte) (of, counter []byte, ok bool) {
	const prefix, filter = "envoy_http_", "ext_proc_"
	at := bytes.LastIndex(name, []byte(filter))
	if !bytes.HasPrefix(name, []byte(prefix)) || at < len(prefix) || at > len(prefix) && name[at-1] != '_' {
		return nil, nil, false
	}
	rest := name[at+len(filter):]
	if len(rest) <= pool.CounterNameLength || rest[pool.CounterNameLength] != '_' {
		return nil, nil, false
	}
	of, counter = rest[:pool.CounterNameLength], rest[pool.CounterNameLength+1:]
	inAlphabet := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '2' && r <= '7' }
	return of, counter, bytes.IndexFunc(of, func(r rune) bool { return !inAlphabet(r) }) < 0
}

// parse reads the counters of pools, by pool.CounterName, from a page in Prometheus' text format. It keeps one line in memory at a
// time. It sums a counter that several listeners have. It skips lines that are not counters of a pool, and values that a
// counter cannot have. It returns how many bytes it read.
func parse(page io.Reader) (out map[string]counters, bytes int, err error) {
	limited := &io.LimitedReader{R: page, N: maxPage + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 0, maxLine), maxLine)
	out = map[string]counters{}
	read := func() int { return maxPage + 1 - int(limited.N) }
	for lines.Scan() {
		name, value := sample(lines.Bytes())
		of, counter, ok := metricName(name)
		if !ok {
			continue
		}
		c, known := out[string(of)]
		field := c.field(string(counter))
		n, isCount := count(value)
		if field == nil || !isCount {
			continue
		}
		if !known && len(out) == maxPools {
			return nil, read(), fmt.Errorf("its page of counters has more than %d pools", maxPools)
		}
		if *field+n <= maxCount {
			*field += n
		}
		out[string(of)] = c
	}
	if limited.N <= 0 {
		return nil, read(), fmt.Errorf("its page of counters is longer than %d bytes", maxPage)
	}
	if err := lines.Err(); err != nil {
		return nil, read(), fmt.Errorf("reading its page of counters: %w", err)
	}
	return out, read(), nil
}

// sample splits a line into the metric's name and value. It drops labels and timestamp.
func sample(line []byte) (name, value []byte) {
	end := bytes.IndexAny(line, "{ ")
	if end < 0 {
		return nil, nil
	}
	name, value = line[:end], line[end:]
	// Only numbers follow the labels, so the last brace ends them, whatever the values of the labels contain.
	if closing := bytes.LastIndexByte(value, '}'); closing >= 0 {
		value = value[closing+1:]
	}
	value = bytes.TrimSpace(value)
	if space := bytes.IndexByte(value, ' '); space >= 0 {
		value = value[:space]
	}
	return name, value
}

func count(text []byte) (int64, bool) {
	v, err := strconv.ParseFloat(string(text), 64)
	if err != nil || math.IsNaN(v) || v < 0 || v > maxCount {
		return 0, false
	}
	return int64(v), true
}
