package reconcile

import (
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// turns are the requests that wait for a reconcile, in a line for each namespace. The lines are served in turn, so that
// however much of one tenant's is to be done, the next of another's waits for one of it.
type turns struct {
	lines map[string][]reconcile.Request
	order []string // the namespaces with a line, the next first
	n     int
}

func (q *turns) Touch(reconcile.Request) {}

func (q *turns) Push(r reconcile.Request) {
	line := q.lines[r.Namespace]
	if len(line) == 0 {
		q.order = append(q.order, r.Namespace)
	}
	q.lines[r.Namespace] = append(line, r)
	q.n++
}

func (q *turns) Len() int { return q.n }

// Pop is called where there is something.
func (q *turns) Pop() reconcile.Request {
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

// fairly has a controller work by turns of namespaces, on so many objects at once: a reconcile mostly waits for the API
// server.
func fairly(parallel int) controller.Options {
	return controller.Options{MaxConcurrentReconciles: parallel, NewQueue: newTurns}
}

func newTurns(name string, limiter workqueue.TypedRateLimiter[reconcile.Request]) workqueue.TypedRateLimitingInterface[reconcile.Request] {
	fair := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[reconcile.Request]{
		Name: name, Queue: &turns{lines: map[string][]reconcile.Request{}},
	})
	delaying := workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[reconcile.Request]{Name: name, Queue: fair})
	return workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{
		Name: name, DelayingQueue: delaying,
	})
}
