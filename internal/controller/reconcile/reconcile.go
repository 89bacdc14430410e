// Package reconcile keeps the cluster as its InferencePools, the HTTPRoutes to them and its labelled Namespaces say:
// it watches them and what they depend on, has them translated, applies the result and reports it in their status. What
// they become is decided in package translate, how objects are written in apply, and what a status says in
// poolstatus and routes.
//
// Pools get no finalizer, though their EnvoyFilters may lie in another namespace, where Kubernetes does not collect
// them: it would keep a pool, and its namespace, from going while no controller runs. Every object that was made names
// its pool instead, and is an event when the controller starts. So the objects of a pool that went meanwhile bring about
// its reconcile, which finds no pool and removes them. Those in the pool's own namespace name it in no ownerReference
// either: Kubernetes would take them away with the pool, and calls in flight still go by them for as long as they drain.
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

// Times after which a pool is looked at again without an event that asks for it.
const (
	// conflictRetry is for a status that another controller wrote at the same time.
	conflictRetry = 200 * time.Millisecond
	// takenRetry is for a name that another's object holds: nothing tells when that one goes.
	takenRetry = 30 * time.Second
)

// Reconciler brings one pool's objects and status to what they should be.
type Reconciler struct {
	client   client.Client
	objects  apply.Set
	events   events.EventRecorder
	settings translate.Settings
	clock    clock.Clock
	picking  picking // nil where nobody watches
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
	if passing(err) {
		return reconcile.Result{}, err
	}
	reject(&out, err)
	calls := r.judgePicking(request.NamespacedName, &out, g)
	if g.err == nil {
		reads.end()
	}
	r.tellSettings(pool)
	result, statusErr := r.report(ctx, pool, out, changes, calls)
	result.RequeueAfter = handover.Sooner(result.RequeueAfter, again)
	return after(err, result, statusErr)
}

// passing reports whether an error needs no one's attention: what was read was out of date, or the program ends.
func passing(err error) bool {
	return err != nil && !slices.ContainsFunc(each(err), func(e error) bool {
		return !apierrors.IsConflict(e) && !errors.Is(e, context.Canceled)
	})
}

// reject says in every parent that what the waypoint is to serve could not be written, and why.
func reject(out *translate.Output, err error) {
	if err == nil {
		return
	}
	verdict := poolstatus.Verdict{
		Reason:  poolstatus.ReasonNotWritten,
		Message: fmt.Sprintf("the configuration could not be written, and the waypoint has what it had before: %s", steady(err)),
	}
	if all[*apply.NotOursError](err) {
		verdict = poolstatus.Verdict{Reason: inferencev1.InferencePoolReasonNotSupportedByParent, Message: oneLine(each(err))}
	}
	for i := range out.Parents {
		out.Parents[i].Accepted = verdict
	}
}

// clientPort is the caller's side of a broken connection, as errors of the network tell it.
var clientPort = regexp.MustCompile(`:\d+->`)

// steady is an error's text without what is another each time: a status that changes is written, and its write is an
// event that has the pool looked at again at once.
func steady(err error) string { return clientPort.ReplaceAllString(oneLine(each(err)), "->") }

// after is when a pool is looked at again: where a name is taken or another writer is at work, in a while; after any
// other error as the queue has it for those.
func after(err error, result reconcile.Result, statusErr error) (reconcile.Result, error) {
	var contested *apply.ContestedError
	switch {
	case statusErr != nil:
		return reconcile.Result{}, statusErr
	case err == nil:
		return result, nil
	case all[*apply.NotOursError](err):
		return reconcile.Result{RequeueAfter: takenRetry}, nil
	case all[*apply.ContestedError](err) && errors.As(err, &contested):
		return reconcile.Result{RequeueAfter: contested.Wait}, nil
	default:
		return reconcile.Result{}, err
	}
}

// each are the errors that were joined into one.
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

// all reports whether each of joined errors is of a kind.
func all[E error](err error) bool {
	return !slices.ContainsFunc(each(err), func(e error) bool {
		var as E
		return !errors.As(e, &as)
	})
}

// report writes our part of the pool's status where it changed, and tells of changes in events.
func (r *Reconciler) report(ctx context.Context, pool *inferencev1.InferencePool, out translate.Output, changes []apply.Change, calls map[types.NamespacedName]seen) (reconcile.Result, error) {
	if len(changes) > 0 { // in one event: those that differ in their text alone become one
		r.events.Eventf(pool, nil, corev1.EventTypeNormal, "Synced", "Sync", "%s", note(describe(changes)))
	}
	wait, err := r.writeStatus(ctx, pool, out.Parents, calls)
	switch {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil // the pool went meanwhile, and its deletion is another event
	case err != nil:
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: wait}, nil
}

// writeStatus writes our part of the pool's status where it differs, and tells what is new in it. Where another undoes
// it, it says when to come back.
func (r *Reconciler) writeStatus(ctx context.Context, pool *inferencev1.InferencePool, ours []poolstatus.Parent, calls map[types.NamespacedName]seen) (wait time.Duration, err error) {
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
			"another controller removes what status.parents says of %s; istiod does so with ENABLE_GATEWAY_API_INFERENCE_EXTENSION. Calls are served all the same", poolstatus.ControllerName)
	case !again:
		r.tell(pool, ours)
		r.tellPicking(pool, ours, calls)
	}
	return 0, nil
}

// tell puts what is new in the pool's status into events: each condition that is false, or that the waypoint serves it.
func (r *Reconciler) tell(pool *inferencev1.InferencePool, parents []poolstatus.Parent) {
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

// statusKey is a pool's key among contests.
func statusKey(pool types.NamespacedName) string { return "status of pool " + pool.String() }
