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

// Bounds on a page. A pool takes about 1.4 KiB of it, so some 700 pools of one waypoint are seen.
const (
	maxPage = 1 << 20 // bytes
	maxLine = 4 << 10 // bytes; ours have some 150
	// maxPools are the pools that one page tells of: more than fit into it, each with all of its counters.
	maxPools = 1000
)

// maxCount is more than a proxy counts in a hundred years, and little enough for sums of many.
const maxCount = 1 << 48

// counters are what Envoy's ext_proc filter has counted of one pool's calls since the proxy started. They were seen on
// Envoy 1.40: a call that is picked sends and receives a message for its headers, for its body and for the answer's
// headers, and its stream is open until the answer ends.
type counters struct {
	// started are the streams that were opened. One that fails while it is opened, as where no picker is left to ask,
	// is not among them.
	started int64
	// closed are the streams that ended, also those that failed where the pool fails open.
	closed int64
	// failed are the streams that ended with an error, and timeouts those on which a reply took too long. No stream is both.
	failed, timeouts int64
	// allowed are those of both after which the call went on.
	allowed int64
	// sent and received are messages.
	sent, received int64
}

// field is a counter by Envoy's name; nil for one that is not read.
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

// names are those of the counters that are read, as a regular expression.
const names = "streams_started|streams_closed|streams_failed|message_timeouts|failure_mode_allowed|stream_msgs_sent|stream_msgs_received"

// dotted selects what is read by Envoy's own names, in Envoy's own regular expressions.
var dotted = fmt.Sprintf(`[.]ext_proc[.][a-z2-7]{%d}[.](%s)$`, pool.CounterNameLength, names)

// metricName cuts a counter's name, as Envoy has it for Prometheus, into the pool's and the counter's own. A proxy's tags
// decide what of the listener's name is before them. It is no regular expression, as who writes the page has us read it.
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

// parse reads the counters of pools, by pool.CounterName, from a page in Prometheus' text format. It holds one line at a time. Of a
// counter that several listeners have it takes the sum. Lines that are no counter of a pool are passed over, and so are
// numbers that no counter can have. It says how many bytes it read.
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
			return nil, read(), fmt.Errorf("its page of counters tells of more than %d pools", maxPools)
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

// sample cuts a line into a metric's name and its value. The labels are left out, and so is a timestamp.
func sample(line []byte) (name, value []byte) {
	end := bytes.IndexAny(line, "{ ")
	if end < 0 {
		return nil, nil
	}
	name, value = line[:end], line[end:]
	// Behind the labels come only numbers, so the last brace is theirs whatever the labels' values hold.
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
