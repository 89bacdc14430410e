package reconcile

import (
	"math/rand/v2"
	"time"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// fairQueue is a queue of reconcile requests that is fair among namespaces. It has one line of requests for each namespace, and
// serves the lines in turn. So a request waits for at most one request of each other namespace.
type fairQueue struct {
	lines map[string][]reconcile.Request
	order []string // the namespaces with waiting requests, the next first
	n     int
}

func (q *fairQueue) Touch(reconcile.Request) {}

func (q *fairQueue) Push(r reconcile.Request) {
	line := q.lines[r.Namespace]
	if len(line) == 0 {
		q.order = append(q.order, r.Namespace)
	}
	q.lines[r.Namespace] = append(line, r)
	q.n++
}

func (q *fairQueue) Len() int { return q.n }

// Pop is called only if the queue is not empty.
func (q *fairQueue) Pop() reconcile.Request {
	namespace := q.order[0]
	line := q.lines[namespace]
	q.order, q.n = q.order[1:], q.n-1
	if len(line) > 1 {
		q.lines[namespace] = line[1:]
		q.order = append(q.order, namespace)
	} else {
		delete(q.lines, namespace)
	}
	return line[0]
}

const (
	// firstRetry is when a request that failed is tried again; after each further failure the time doubles.
	firstRetry = 5 * time.Millisecond
	// longestRetry bounds that time. While istiod is away the API server refuses Istio's objects, which istiod validates.
	// However long that lasts, pools follow soon after it is back.
	longestRetry = 30 * time.Second
)

// retries gives each request a time of its own until its next try.
type retries struct {
	workqueue.TypedRateLimiter[reconcile.Request]
}

// When spreads the tries over the second half of the time, so that requests that failed together are not tried together.
func (r retries) When(request reconcile.Request) time.Duration {
	wait := r.TypedRateLimiter.When(request)
	return wait/2 + rand.N(wait/2+1)
}

// fairOptions gives a controller a queue that is fair among namespaces, and this many parallel reconciles. A reconcile mostly
// waits for the API server.
//
// controller-runtime's limiter also gives all failed requests together ten tries a second, in the order of their failures, so
// that one namespace's hundreds would make another's wait for a minute.
func fairOptions(parallel int) controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: parallel, NewQueue: newTurns,
		RateLimiter: retries{workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, longestRetry)},
	}
}

func newTurns(name string, limiter workqueue.TypedRateLimiter[reconcile.Request]) workqueue.TypedRateLimitingInterface[reconcile.Request] {
	fair := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[reconcile.Request]{
		Name: name, Queue: &fairQueue{lines: map[string][]reconcile.Request{}},
	})
	delaying := workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[reconcile.Request]{Name: name, Queue: fair})
	return workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{
		Name: name, DelayingQueue: delaying,
	})
}
