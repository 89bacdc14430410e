package waypointwatch

import "testing"

// TestEvidence replays the counters of an Envoy 1.40 while its only picker ran, was killed, refused connections, came back,
// hung, and had callers that did not wait for it. The numbers are the proxy's own.
func TestEvidence(t *testing.T) {
	type step struct {
		what string
		c    counters
		want evidence
	}
	picked := counters{started: 20, closed: 20, sent: 60, received: 60}
	open := counters{started: 28, closed: 20, sent: 79, received: 79}
	tests := map[string]struct {
		duplex bool
		steps  []step
	}{
		"fail open": {steps: []step{
			{"20 calls are picked", picked, evidence{asked: 20, replies: 60}},
			{"8 more have their picks and are answered still", open, evidence{asked: 8, replies: 19}},
			{"the picker is killed: all 8 streams break, and none of the calls is unpicked",
				counters{started: 28, closed: 28, failed: 8, allowed: 8, sent: 79, received: 79}, evidence{}},
			{"a call finds no picker: its stream is not even started",
				counters{started: 28, closed: 29, failed: 9, allowed: 9, sent: 79, received: 79}, evidence{asked: 1, unpicked: 1}},
			{"three more do", counters{started: 28, closed: 32, failed: 12, allowed: 12, sent: 79, received: 79}, evidence{asked: 3, unpicked: 3}},
			{"the picker is back", counters{started: 48, closed: 52, failed: 12, allowed: 12, sent: 139, received: 139}, evidence{asked: 20, replies: 60}},
			{"it hangs", counters{started: 53, closed: 57, failed: 12, timeouts: 5, allowed: 17, sent: 144, received: 139}, evidence{asked: 5, unpicked: 5, timeouts: 5}},
			{"four callers go before the time is over", counters{started: 57, closed: 61, failed: 12, timeouts: 5, allowed: 17, sent: 148, received: 139}, evidence{asked: 4}},
		}},
		"fail close": {steps: []step{
			{"20 calls are picked", picked, evidence{asked: 20, replies: 60}},
			{"8 more have their picks and are answered still", open, evidence{asked: 8, replies: 19}},
			{"the picker is killed", counters{started: 28, closed: 20, failed: 8, sent: 79, received: 79}, evidence{}},
			{"a call finds no picker", counters{started: 28, closed: 20, failed: 9, sent: 79, received: 79}, evidence{asked: 1, unpicked: 1}},
			{"three more do", counters{started: 28, closed: 20, failed: 12, sent: 79, received: 79}, evidence{asked: 3, unpicked: 3}},
			{"the picker is back", counters{started: 48, closed: 40, failed: 12, sent: 139, received: 139}, evidence{asked: 20, replies: 60}},
			{"it hangs", counters{started: 53, closed: 45, failed: 12, timeouts: 5, sent: 144, received: 139}, evidence{asked: 5, unpicked: 5, timeouts: 5}},
		}},
		"connections are refused": {steps: []step{ // as by an AuthorizationPolicy: the stream is started, and then breaks
			{"five calls", counters{started: 5, closed: 5, failed: 5, allowed: 5, sent: 5}, evidence{asked: 5, unpicked: 5}},
			{"the picker is taken out", counters{started: 5, closed: 35, failed: 35, allowed: 35, sent: 5}, evidence{asked: 30, unpicked: 30}},
		}},
		"a reply is late at the boundary of two readings": {steps: []step{
			{"a message waits", counters{started: 3, closed: 2, sent: 7, received: 6}, evidence{asked: 3, replies: 6}},
			{"in vain", counters{started: 3, closed: 3, timeouts: 1, allowed: 1, sent: 7, received: 6}, evidence{asked: 1, unpicked: 1, timeouts: 1}},
		}},
		"a picker that is sent bodies as they come": {duplex: true, steps: []step{
			{"picked with more replies than messages", counters{started: 10, closed: 8, sent: 50, received: 90}, evidence{asked: 10, replies: 90}},
			{"streams break, and calls with them", counters{started: 10, closed: 10, failed: 2, allowed: 2, sent: 50, received: 90}, evidence{asked: 2, unpicked: 2}},
		}},
		"started anew": {steps: []step{
			{"before", counters{started: 100, closed: 100, sent: 300, received: 300}, evidence{asked: 100, replies: 300}},
			{"after", counters{started: 3, closed: 3, sent: 9, received: 9}, evidence{asked: 3, replies: 9}},
		}},
		"numbers that do not go together": {steps: []step{
			{"more failures than streams", counters{failed: maxCount}, evidence{asked: maxCount, unpicked: maxCount}},
			{"and so on", counters{failed: maxCount, allowed: maxCount, timeouts: maxCount, closed: maxCount, received: maxCount}, evidence{asked: maxCount, unpicked: maxCount, timeouts: maxCount, replies: maxCount}},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h, _ := firstReading(counters{})
			for _, s := range tt.steps {
				if got := h.next(s.c, tt.duplex); got != s.want {
					t.Errorf("%s: %+v, want %+v", s.what, got, s.want)
				}
			}
		})
	}
}

// Counts from before the first reading are no evidence, unless no picker ever replied.
func TestEvidenceBegins(t *testing.T) {
	if _, e := firstReading(counters{started: 9, closed: 9, failed: 9, allowed: 9, sent: 30, received: 12}); e != (evidence{}) {
		t.Errorf("of a proxy whose picker replied once: %+v", e)
	}
	if _, e := firstReading(counters{started: 2, closed: 9, failed: 9, allowed: 9, sent: 2}); e != (evidence{asked: 9, unpicked: 9}) {
		t.Errorf("of a proxy whose picker never replied: %+v", e)
	}
	// Streams that never started are known, so later broken streams are not mistaken for them.
	h, _ := firstReading(counters{started: 20, closed: 25, failed: 5, allowed: 5, sent: 60, received: 60})
	if e := h.next(counters{started: 28, closed: 33, failed: 13, allowed: 13, sent: 79, received: 79}, false); e != (evidence{asked: 8, replies: 19}) {
		t.Errorf("of streams that break after their picks: %+v", e)
	}
}
