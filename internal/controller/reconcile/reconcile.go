// Package reconcile has the controllers of InferencePools, of HTTPRoutes and GRPCRoutes at their hosts, and of labelled
// Namespaces. It must not decide what these objects become (package translate), how objects are written (apply), or what a
// status says (poolstatus, routes). It watches the objects and their dependencies, has them translated, applies the result,
// and reports the outcome in their status.
//
// Pools get no finalizer: a finalizer would keep a pool, and its namespace, from being deleted while no controller runs.
// But a pool's EnvoyFilters may be in another namespace, where Kubernetes does not collect garbage. So every object that we
// make names its pool, and is an event when the controller starts. For the objects of a deleted pool, the reconcile then
// finds no pool and deletes them. Objects in the pool's own namespace have no ownerReference either: Kubernetes would
// delete them with the pool, but calls in flight need them until they have drained.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// Times after which a pool is reconciled again without an event.
const (
	// conflictRetry applies when another controller wrote the status at the same time.
	conflictRetry = 200 * time.Millisecond
	// takenRetry applies when an object that is not ours has the name of one of ours: its deletion may be no event.
	takenRetry = 30 * time.Second
)

// Reconciler writes one pool's objects and status.
type Reconciler struct {
	client   client.Client
	objects  apply.Set
	events   events.EventRecorder
	settings translate.Settings
	clock    clock.Clock
	picking  picking // nil if waypoints are not watched
	read     *dependents

	handover   *handover.Filters
	contests   *apply.Contests
	complaints complaints
}

// Reconcile is called with a pool's name whenever something that it depends on may have changed.
func (r *Reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	reads := r.read.begin(request.NamespacedName)
	g := newReader(ctx, r.client, r.settings, reads)
	pool := g.Pool(request.NamespacedName)
	out := translate.Translate(request.NamespacedName, g, r.settings)
	if g.err != nil {
		return reconcile.Result{}, g.err
	}
	changes, again, err := r.apply(g, request.NamespacedName, out)
	if pool == nil {
		reads.forget()
		r.contests.Forget(statusKey(request.NamespacedName))
		r.complaints.forget(request.NamespacedName)
		return reconcile.Result{RequeueAfter: again}, err
	}
	if transient(err) {
		return reconcile.Result{}, err
	}
	reject(&out, err)
	calls := r.judgePicking(request.NamespacedName, &out, g)
	if g.err == nil {
		reads.end()
	}
	r.reportSettings(pool)
	result, statusErr := r.report(ctx, pool, out, changes, calls)
	result.RequeueAfter = handover.Sooner(result.RequeueAfter, again)
	return requeue(err, result, statusErr)
}

// transient reports whether an error is transient: the cache was out of date, or the program is ending.
func transient(err error) bool {
	return err != nil && !slices.ContainsFunc(each(err), func(e error) bool {
		return !apierrors.IsConflict(e) && !errors.Is(e, context.Canceled)
	})
}

// reject sets every parent to not accepted, with the reason why the waypoint's configuration could not be written.
func reject(out *translate.Output, err error) {
	if err == nil {
		return
	}
	verdict := poolstatus.Verdict{
		Reason:  poolstatus.ReasonNotWritten,
		Message: fmt.Sprintf("the configuration could not be written, and the waypoint keeps its previous one: %s", stableText(err)),
	}
	if all[*apply.NotOursError](err) {
		verdict = poolstatus.Verdict{Reason: inferencev1.InferencePoolReasonNotSupportedByParent, Message: oneLine(each(err))}
	}
	for i := range out.Parents {
		out.Parents[i].Accepted = verdict
	}
}

// clientPort matches the local port of a broken connection in a network error.
var clientPort = regexp.MustCompile(`:\d+->`)

// stableText is an error's text without the local port, which differs each time. A changed status would be written, and that
// write is an event that reconciles the pool again at once.
func stableText(err error) string { return clientPort.ReplaceAllString(oneLine(each(err)), "->") }

// requeue decides when a pool is reconciled again: after the shortest wait if names are taken or another writer undoes our
// writes, and with the queue's back-off after any other error.
func requeue(err error, result reconcile.Result, statusErr error) (reconcile.Result, error) {
	switch {
	case statusErr != nil:
		return reconcile.Result{}, statusErr
	case err == nil:
		return result, nil
	}
	for _, e := range each(err) {
		var notOurs *apply.NotOursError
		var contested *apply.ContestedError
		switch {
		case errors.As(e, &notOurs):
			result.RequeueAfter = handover.Sooner(result.RequeueAfter, takenRetry)
		case errors.As(e, &contested):
			result.RequeueAfter = handover.Sooner(result.RequeueAfter, contested.Wait)
		default:
			return reconcile.Result{}, err
		}
	}
	return result, nil
}

// each splits joined errors.
func each(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, each(e)...)
	}
	return out
}

// all reports whether all of the joined errors are of a type.
func all[E error](err error) bool {
	return !slices.ContainsFunc(each(err), func(e error) bool {
		var as E
		return !errors.As(e, &as)
	})
}

// report writes our part of the pool's status if it changed, and emits events about changes.
func (r *Reconciler) report(ctx context.Context, pool *inferencev1.InferencePool, out translate.Output, changes []apply.Change, calls map[types.NamespacedName]observed) (reconcile.Result, error) {
	if len(changes) > 0 { // one event for all: Kubernetes merges events that differ only in their text
		r.events.Eventf(pool, nil, corev1.EventTypeNormal, "Synced", "Sync", "%s", note(describe(changes)))
	}
	wait, err := r.writeStatus(ctx, pool, out.Parents, calls)
	switch {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil // the pool was deleted meanwhile, and its deletion is another event
	case err != nil:
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: wait}, nil
}

// writeStatus writes our part of the pool's status if it differs, and emits events about what is new. If another writer
// undoes our writes, it returns how long to wait before the next write.
func (r *Reconciler) writeStatus(ctx context.Context, pool *inferencev1.InferencePool, ours []poolstatus.Parent, calls map[types.NamespacedName]observed) (wait time.Duration, err error) {
	now := r.clock.Now()
	parents, changed, err := poolstatus.Merge(pool.Status.Parents, ours, pool.Generation, now)
	if err != nil || !changed {
		return 0, err
	}
	name, what := client.ObjectKeyFromObject(pool), fmt.Sprint(pool.Generation, ours)
	if wait := r.contests.Wait(statusKey(name), what); wait > 0 {
		return wait, nil
	}
	next := pool.DeepCopy()
	next.Status.Parents = parents
	// The list is replaced as a whole, so the write must fail if another controller wrote its entry meanwhile.
	patch := client.MergeFromWithOptions(pool, client.MergeFromWithOptimisticLock{})
	if err := r.client.Status().Patch(ctx, next, patch, apply.FieldOwner); err != nil {
		return 0, fmt.Errorf("writing the status of pool %s: %w", name, err)
	}
	switch again, contested := r.contests.Wrote(statusKey(name), what); {
	case contested:
		r.events.Eventf(pool, nil, corev1.EventTypeWarning, "StatusContested", "Report",
			"another controller removes the entry of %s from status.parents; istiod does so with ENABLE_GATEWAY_API_INFERENCE_EXTENSION. Calls are served all the same", poolstatus.ControllerName)
	case !again:
		r.emitEvents(pool, ours)
		r.emitPickingEvents(pool, ours, calls)
	}
	return 0, nil
}

// emitEvents emits events about what is new in the pool's status: each condition that is false, or that the pool is served.
func (r *Reconciler) emitEvents(pool *inferencev1.InferencePool, parents []poolstatus.Parent) {
	for _, p := range parents {
		if p.SaidBy(pool.Status.Parents) {
			continue
		}
		well := true
		for _, v := range []poolstatus.Verdict{p.Accepted, p.ResolvedRefs} {
			if !v.OK() {
				well = false
				r.events.Eventf(pool, nil, corev1.EventTypeWarning, string(v.Reason), "Translate", "%s", note(fmt.Sprintf("waypoint %s: %s", p.Gateway, v.Message)))
			}
		}
		for _, remark := range p.Remarks() {
			r.events.Eventf(pool, nil, corev1.EventTypeWarning, string(remark.Reason), "Translate", "%s", note(fmt.Sprintf("waypoint %s: %s", p.Gateway, remark.Message)))
		}
		if well {
			r.events.Eventf(pool, nil, corev1.EventTypeNormal, string(p.Accepted.Reason), "Translate", "%s", note(fmt.Sprintf("waypoint %s: %s", p.Gateway, p.Accepted.Message)))
		}
	}
}

func describe(changes []apply.Change) string {
	var parts []string
	for _, c := range changes {
		parts = append(parts, fmt.Sprintf("%s %s %s", c.Verb, c.Kind, c.Name))
	}
	return strings.Join(parts, ", ")
}

// maxNote is the longest text that the API takes in an event.
const maxNote = 1024

func note(text string) string { return poolstatus.Clip(text, maxNote) }

// statusKey is the key of a pool's status in Contests.
func statusKey(pool types.NamespacedName) string { return "status of pool " + pool.String() }
