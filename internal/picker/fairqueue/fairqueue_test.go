package fairqueue

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const long = time.Hour

// TestTurns queues one tenant's hundred before another's two, which are served after one and two of the hundred.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(1)
		if !q.Enter("anybody", 0) {
			t.Fatal("no place in an empty queue")
		}
		var mu sync.Mutex
		var order []string
		wait := func(tenant string, n int) {
			for i := range n {
				go func() {
					if q.Enter(tenant, long) {
						mu.Lock()
						defer mu.Unlock()
						order = append(order, fmt.Sprint(tenant, i))
					}
				}()
				synctest.Wait()
			}
		}
		wait("greedy", 100)
		wait("modest", 2)
		for range 102 {
			q.Leave()
			synctest.Wait()
		}
		if want := []string{"greedy0", "modest0", "greedy1", "modest1", "greedy2"}; !slices.Equal(order[:5], want) {
			t.Errorf("the order is %v, want %v", order[:5], want)
		}
		if len(order) != 102 {
			t.Errorf("%d were served, want all 102", len(order))
		}
		q.Leave()
		if len(q.lines) != 0 || len(q.turns) != 0 || q.free != 1 {
			t.Errorf("%d lines, %d turns and %d free places are left, want 0, 0 and 1", len(q.lines), len(q.turns), q.free)
		}
	})
}

// TestPatience lets waiters time out, and checks that no place is lost with them.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(2)
		q.Enter("a", 0)
		q.Enter("a", 0)
		begin := time.Now()
		if q.Enter("b", time.Second) {
			t.Error("a place although none is free")
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("it took %v, want its patience of 1s", took)
		}
		served := make(chan bool)
		go func() { served <- q.Enter("b", long) }()
		synctest.Wait()
		q.Leave()
		if !<-served {
			t.Error("who came after one that went was not served")
		}
		q.Leave()
		q.Leave()
		if q.free != 2 || len(q.lines) != 0 {
			t.Errorf("%d places are free and %d lines are left, want 2 and 0", q.free, len(q.lines))
		}
	})
}

// BenchmarkFree measures a place that no other waiter wants.
func BenchmarkFree(b *testing.B) {
	q := New(2)
	for b.Loop() {
		q.Enter("tenant", long)
		q.Leave()
	}
}
