package selection

import (
	"testing"
	"time"
)

func TestLoad(t *testing.T) {
	const s = time.Second
	tests := map[string]struct {
		do           func(l *Load)
		at           time.Duration
		wantQueue    float64
		wantRequests int
	}{
		"empty": {do: func(*Load) {}, at: s},
		"a call waits": {
			do: func(l *Load) { l.Add(0, 500) }, wantQueue: 500, wantRequests: 1,
		},
		"the queue drains at the rate": {
			do: func(l *Load) { l.Add(0, 500) }, at: s, wantQueue: 400, wantRequests: 1,
		},
		"an empty queue does not go on draining": {
			do: func(l *Load) { l.Add(0, 50); l.Add(10*s, 300) }, at: 11 * s, wantQueue: 200, wantRequests: 2,
		},
		"an answer shows that all before it is prefilled": {
			do: func(l *Load) {
				l.Add(0, 100)
				second := l.Add(0, 100)
				l.Add(0, 100)
				l.Answered(0, second)
			}, wantQueue: 100, wantRequests: 2,
		},
		"an answer whose tokens have drained changes no queue": {
			do: func(l *Load) {
				first := l.Add(0, 100)
				l.Add(0, 300)
				l.Answered(2*s, first)
			}, at: 2 * s, wantQueue: 200, wantRequests: 1,
		},
		"a call that leaves takes its tokens along": {
			do: func(l *Load) {
				l.Add(0, 100)
				second := l.Add(0, 200)
				l.Add(0, 400)
				l.Withdraw(0, second)
			}, wantQueue: 500, wantRequests: 2,
		},
		"a call that leaves half prefilled takes the rest": {
			do: func(l *Load) {
				first := l.Add(0, 200)
				l.Withdraw(s, first)
			}, at: s, wantQueue: 0,
		},
		"a call that leaves after its prefill takes nothing": {
			do: func(l *Load) {
				first := l.Add(0, 100)
				l.Add(0, 500)
				l.Withdraw(2*s, first)
			}, at: 2 * s, wantQueue: 400, wantRequests: 1,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := &Load{Rate: 100}
			tt.do(l)
			if got := l.Queue(tt.at); got != tt.wantQueue {
				t.Errorf("queue is %v tokens, want %v", got, tt.wantQueue)
			}
			if l.Requests != tt.wantRequests {
				t.Errorf("%d requests, want %d", l.Requests, tt.wantRequests)
			}
		})
	}
}
