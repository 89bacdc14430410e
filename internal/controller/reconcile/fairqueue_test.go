package reconcile

import (
	"fmt"
	"slices"
	"testing"

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
