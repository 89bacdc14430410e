// Package cluster keeps a fleet's pools as a Kubernetes cluster's InferencePools and pods are. It must not know
// picking.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	inferencelisters "sigs.k8s.io/gateway-api-inference-extension/client-go/listers/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Cluster reads the InferencePools and the pods that they select.
type Cluster struct {
	fleet  *poolstate.Fleet
	serves pool.Serves
	log    *slog.Logger

	informers []cache.SharedIndexInformer
	pods      corelisters.PodLister
	pools     inferencelisters.InferencePoolLister
	events    []cache.InformerSynced
	// queue holds the pools that must be synced. Events only name pools, so that a burst of events costs one sync.
	queue workqueue.TypedDelayingInterface[types.NamespacedName]
	// left is when a pool that is still served went over to another picker.
	left   map[types.NamespacedName]time.Time
	linger time.Duration
	// wrong is what was logged of each invalid pool, so that it is logged once and not with each pod's event.
	wrong map[types.NamespacedName]string
}

// New makes the source from the watches of pods and of InferencePools; Run starts it.
func New(pods, pools cache.ListerWatcher, f *poolstate.Fleet, serves pool.Serves, log *slog.Logger) (*Cluster, error) {
	c := &Cluster{
		fleet:  f,
		serves: serves,
		log:    log,
		queue:  workqueue.NewTypedDelayingQueue[types.NamespacedName](),
		left:   map[types.NamespacedName]time.Time{},
		linger: linger,
		wrong:  map[types.NamespacedName]string{},
	}
	podIndex, err := c.listen(pods, &corev1.Pod{}, c.podHandler())
	if err != nil {
		return nil, fmt.Errorf("watching pods: %w", err)
	}
	poolIndex, err := c.listen(pools, &inferencev1.InferencePool{}, c.poolHandler())
	if err != nil {
		return nil, fmt.Errorf("watching InferencePools: %w", err)
	}
	c.pods, c.pools = corelisters.NewPodLister(podIndex), inferencelisters.NewInferencePoolLister(poolIndex)
	return c, nil
}

func (c *Cluster) listen(to cache.ListerWatcher, kind runtime.Object, handler cache.ResourceEventHandler) (cache.Indexer, error) {
	informer := cache.NewSharedIndexInformer(to, kind, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	if err := informer.SetTransform(strip); err != nil {
		return nil, err
	}
	registration, err := informer.AddEventHandler(handler)
	if err != nil {
		return nil, err
	}
	c.informers = append(c.informers, informer)
	c.events = append(c.events, registration.HasSynced)
	return informer.GetIndexer(), nil
}

// Run keeps the fleet as the cluster is until the context ends. It calls synced once, when every pool of the start can
// be picked from.
func (c *Cluster) Run(ctx context.Context, synced func()) {
	var running sync.WaitGroup
	defer running.Wait()
	for _, informer := range c.informers {
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	// The queue is read only once it holds all events of the start, so that the order of pods and pools does not matter.
	if !cache.WaitForCacheSync(ctx.Done(), c.events...) {
		return // the context ended first
	}
	stop := context.AfterFunc(ctx, c.queue.ShutDown)
	defer stop()
	for c.queue.Len() > 0 {
		c.next()
	}
	synced()
	for c.next() {
	}
}

// next waits for a pool in the queue and syncs it; it reports false when the queue is shut down.
func (c *Cluster) next() bool {
	name, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(name)
	c.sync(name)
	return true
}

// sync makes the fleet's pool like the cluster's.
func (c *Cluster) sync(name types.NamespacedName) {
	object, err := c.pools.InferencePools(name.Namespace).Get(name.Name)
	if err != nil { // the lister's only error is that the pool is gone
		c.forget(name)
		return
	}
	p, faults := pool.FromAPI(object)
	if c.serves.Includes(p) {
		delete(c.left, name)
	} else if !c.lingers(name) {
		c.forget(name)
		return
	}
	settings, wrong := picksettings.Parse(object.Annotations)
	c.warn(name, errors.Join(append(wrong, faults)...))
	c.fleet.Configure(name, settings)
	c.fleet.Pool(name).Metrics().SetInvalidSettings(len(wrong))
	pods, err := c.pods.Pods(name.Namespace).List(labels.SelectorFromSet(p.Selector))
	if err != nil {
		c.log.Error("listing the pods of a pool failed; its endpoints stay as they are", "pool", name.String(), "error", err)
		return
	}
	c.fleet.SetPool(p, p.Endpoints(pods))
}

// linger is how long a pool that went over to another picker is still served: waypoints learn of the change seconds
// after this picker, and a picker refuses calls to pools that it does not know.
const linger = time.Minute

// lingers reports whether calls may still come to a pool that went over to another picker.
func (c *Cluster) lingers(name types.NamespacedName) bool {
	if c.fleet.Pool(name) == nil {
		return false
	}
	if c.left[name].IsZero() {
		c.left[name] = time.Now()
		c.queue.AddAfter(name, c.linger)
	}
	return time.Since(c.left[name]) < c.linger
}

// forget drops a pool that is gone, or that another picker serves.
func (c *Cluster) forget(name types.NamespacedName) {
	delete(c.left, name)
	c.fleet.RemovePool(name)
	delete(c.wrong, name)
}

// warn logs once what is wrong with a pool. The rest of the pool still serves: the fault may not concern the picker,
// and wrong settings have their defaults.
func (c *Cluster) warn(name types.NamespacedName, err error) {
	if err == nil {
		delete(c.wrong, name)
		return
	}
	if c.wrong[name] != err.Error() {
		c.wrong[name] = err.Error()
		c.log.Warn("the InferencePool is invalid in part; the picker uses the rest", "pool", name.String(), "error", err)
	}
}

func (c *Cluster) poolHandler() cache.ResourceEventHandler {
	enqueue := func(object any) {
		if p, ok := last[*inferencev1.InferencePool](object); ok {
			c.queue.Add(types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, now any) { enqueue(now) },
		DeleteFunc: enqueue,
	}
}

func (c *Cluster) podHandler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: c.enqueuePoolsOf,
		UpdateFunc: func(before, now any) {
			c.enqueuePoolsOf(before) // the pools that the pod may have left
			c.enqueuePoolsOf(now)
		},
		DeleteFunc: c.enqueuePoolsOf,
	}
}

// enqueuePoolsOf queues the pools that select a pod. A pool that comes later lists all pods anyway.
func (c *Cluster) enqueuePoolsOf(object any) {
	pod, ok := last[*corev1.Pod](object)
	if !ok {
		return
	}
	pools, err := c.pools.InferencePools(pod.Namespace).List(labels.Everything())
	if err != nil {
		c.log.Error("listing the pools of a namespace failed", "namespace", pod.Namespace, "error", err)
		return
	}
	for _, object := range pools {
		if selects(object, pod.Labels) {
			c.queue.Add(types.NamespacedName{Namespace: object.Namespace, Name: object.Name})
		}
	}
}

func selects(p *inferencev1.InferencePool, podLabels map[string]string) bool {
	for k, v := range p.Spec.Selector.MatchLabels {
		if got, ok := podLabels[string(k)]; !ok || got != string(v) {
			return false
		}
	}
	return true
}

// last returns the object of an event, or its last known state if its deletion was missed.
func last[T any](object any) (T, bool) {
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = unknown.Obj
	}
	t, ok := object.(T)
	return t, ok
}

// strip reduces an object to what the picker needs. The pods of the whole cluster are held, 10,000 and more, and a
// whole pod takes some 10 KB.
func strip(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		return stripPod(o), nil
	case *inferencev1.InferencePool:
		o.ManagedFields = nil
		o.Status = inferencev1.InferencePoolStatus{}
	}
	return object, nil
}

func stripPod(pod *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:              pod.Name,
			Namespace:         pod.Namespace,
			UID:               pod.UID,
			ResourceVersion:   pod.ResourceVersion,
			Labels:            pod.Labels,
			DeletionTimestamp: pod.DeletionTimestamp,
		},
		Status: corev1.PodStatus{PodIP: pod.Status.PodIP},
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			out.Status.Conditions = []corev1.PodCondition{{Type: condition.Type, Status: condition.Status}}
		}
	}
	for _, container := range pod.Status.ContainerStatuses {
		out.Status.ContainerStatuses = append(out.Status.ContainerStatuses, corev1.ContainerStatus{RestartCount: container.RestartCount})
	}
	return out
}
