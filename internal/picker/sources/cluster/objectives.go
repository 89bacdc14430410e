package cluster

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// objectiveVersions are the API groups of InferenceObjectives, the older first. Where both have one of a name, the newer counts.
var objectiveVersions = []schema.GroupVersion{
	{Group: "inference.networking.x-k8s.io", Version: "v1alpha2"},
	{Group: "llm-d.ai", Version: "v1alpha2"},
}

// askAgain is how often a cluster is asked whether it has an API that it did not have before.
const askAgain = 30 * time.Second

// Objective is an InferenceObjective, as far as a picker reads it. Both API groups have these fields.
type Objective struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Priority int `json:"priority"` // 0 where it is not set
		PoolRef  struct {
			Group string `json:"group"`
			Kind  string `json:"kind"`
			Name  string `json:"name"`
		} `json:"poolRef"`
	} `json:"spec"`
}

// DeepCopyObject copies the object, all of whose own fields are values.
func (o *Objective) DeepCopyObject() runtime.Object {
	out := *o
	o.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// ObjectiveList is a list of InferenceObjectives.
type ObjectiveList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Objective `json:"items"`
}

// DeepCopyObject copies the list.
func (l *ObjectiveList) DeepCopyObject() runtime.Object {
	out := &ObjectiveList{TypeMeta: l.TypeMeta, ListMeta: *l.DeepCopy()}
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopyObject().(*Objective))
	}
	return out
}

// Objectives gives pools the priorities of their InferenceObjectives.
type Objectives struct {
	fleet   *poolstate.Fleet
	apis    []objectiveAPI // as objectiveVersions
	changed chan struct{}
}

// objectiveAPI is one API group's objectives.
type objectiveAPI struct {
	informer cache.SharedIndexInformer
	exists   func(context.Context) bool
}

// NewObjectives watches the InferenceObjectives of a cluster, which need not have their API.
func NewObjectives(config *rest.Config, f *poolstate.Fleet) (*Objectives, error) {
	o := &Objectives{fleet: f, changed: make(chan struct{}, 1)}
	for _, version := range objectiveVersions {
		api, err := o.watch(config, version)
		if err != nil {
			return nil, err
		}
		o.apis = append(o.apis, api)
	}
	return o, nil
}

func (o *Objectives) watch(config *rest.Config, version schema.GroupVersion) (objectiveAPI, error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypeWithName(version.WithKind("InferenceObjective"), &Objective{})
	scheme.AddKnownTypeWithName(version.WithKind("InferenceObjectiveList"), &ObjectiveList{})
	metav1.AddToGroupVersion(scheme, version)
	config = rest.CopyConfig(config)
	config.APIPath = "/apis"
	const resource = "inferenceobjectives"
	watch, err := watchOf(config, scheme, version, resource, metav1.NamespaceAll, "")
	if err != nil {
		return objectiveAPI{}, err
	}
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return objectiveAPI{}, fmt.Errorf("making the client for %s: %w", resource, err)
	}
	informer := cache.NewSharedIndexInformer(watch, &Objective{}, 0, cache.Indexers{})
	_, err = informer.AddEventHandler(signals(o.changed))
	return objectiveAPI{informer: informer, exists: func(ctx context.Context) bool {
		err := client.Get().Resource(resource).Param("limit", "1").Do(ctx).Error()
		return !apierrors.IsNotFound(err) // any other error may go away, and the watch tells of it
	}}, err
}

// Run gives pools their objectives until the context ends. It calls synced at once: calls need not wait for priorities.
func (o *Objectives) Run(ctx context.Context, synced func()) {
	synced()
	var running sync.WaitGroup
	defer running.Wait()
	for _, api := range o.apis {
		running.Go(func() { api.run(ctx) })
	}
	given := map[types.NamespacedName]map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.changed:
		}
		given = o.give(given)
	}
}

// run watches the objects once the cluster has their API.
func (a *objectiveAPI) run(ctx context.Context) {
	for !a.exists(ctx) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(askAgain):
		}
	}
	a.informer.RunWithContext(ctx)
}

// give gives pools what has changed, and returns what all have.
func (o *Objectives) give(before map[types.NamespacedName]map[string]int) map[types.NamespacedName]map[string]int {
	now := map[types.NamespacedName]map[string]int{}
	for _, api := range o.apis {
		for _, object := range api.informer.GetStore().List() {
			objective := object.(*Objective)
			if !objective.ofPool() {
				continue
			}
			name := types.NamespacedName{Namespace: objective.Namespace, Name: objective.Spec.PoolRef.Name}
			if now[name] == nil {
				now[name] = map[string]int{}
			}
			now[name][objective.Name] = min(max(objective.Spec.Priority, -picksettings.MostPriority), picksettings.MostPriority)
		}
	}
	for name := range before {
		if now[name] == nil {
			o.fleet.SetObjectives(name, nil)
		}
	}
	for name, objectives := range now {
		if !maps.Equal(before[name], objectives) {
			o.fleet.SetObjectives(name, objectives)
		}
	}
	return now
}

// ofPool reports whether the objective is of an InferencePool of the kind that this project serves.
func (o *Objective) ofPool() bool {
	ref := o.Spec.PoolRef
	return (ref.Kind == "" || ref.Kind == "InferencePool") && (ref.Group == "" || ref.Group == inferencev1.GroupName)
}
