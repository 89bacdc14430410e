package reconcile

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Each request of a namespace waits for one request of another, even if that other has a hundred.
func TestNamespacesTakeTurns(t *testing.T) {
	q := newTurns("test", workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer q.ShutDown()
	add := func(namespace string, n int) {
		for i := range n {
			q.Add(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: fmt.Sprint(i)}})
		}
	}
	add("greedy", 100)
	add("greedy", 100) // which wait already
	add("modest", 2)
	if q.Len() != 102 {
		t.Fatalf("%d wait, want 102", q.Len())
	}
	var order []string
	for range 102 {
		r, _ := q.Get()
		order = append(order, r.Namespace+r.Name)
		q.Done(r)
	}
	if want := []string{"greedy0", "modest0", "greedy1", "modest1", "greedy2"}; !slices.Equal(order[:5], want) || q.Len() != 0 {
		t.Errorf("the order is %v and %d are left, want %v and none", order[:5], q.Len(), want)
	}
}

// However often a request failed, it is tried again soon, and the failures of one namespace do not delay the next try of
// another's request.
func TestFailuresOfOthersDelayNothing(t *testing.T) {
	limiter := fairOptions(1).RateLimiter
	greedy := func(n int) reconcile.Request {
		return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "greedy", Name: fmt.Sprint(n)}}
	}
	for n := range 1000 {
		for range 30 {
			if wait := limiter.When(greedy(n)); wait > longestRetry {
				t.Fatalf("a request that failed is tried again after %s, want %s at most", wait, longestRetry)
			}
		}
	}
	modest := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "modest", Name: "a"}}
	if wait := limiter.When(modest); wait > time.Second {
		t.Errorf("after the failures of another namespace, a request is tried again after %s", wait)
	}
}
