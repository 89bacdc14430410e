// Package apply makes the objects of one owner in the cluster equal to the desired ones: it applies objects that differ,
// deletes objects that are no longer desired, and never touches an object that somebody else made. It must not know what
// the objects contain. A label marks our objects, and an annotation names the owner. Kubernetes owner references cannot do
// that, as an object may be in another namespace than its owner.
package apply

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// FieldOwner is the name under which we own fields in server-side apply.
const FieldOwner = client.FieldOwner("inference-waypoint")

// ownedValue is the value of pool.OwnedLabel.
const ownedValue = "true"

// OwnerIndex is the name of the cache's index of our objects by owner.
const OwnerIndex = "inference-waypoint.owner"

// NotOursError says that an object which we did not make has the name of one of ours.
type NotOursError struct {
	Kind string
	Name types.NamespacedName
}

func (e *NotOursError) Error() string {
	return fmt.Sprintf("%s %s exists and is not ours: it lacks the label %s", e.Kind, e.Name, pool.OwnedLabel)
}

// ContestedError says that another writer undoes our writes of an object, so that we do not write it for a while.
type ContestedError struct {
	Kind string
	Name types.NamespacedName
	Wait time.Duration
}

func (e *ContestedError) Error() string {
	return fmt.Sprintf("another writer changes %s %s again and again; the controller writes it again in %s", e.Kind, e.Name, e.Wait)
}

// Owner is the owner of an object that we made; ok is false for any other object.
func Owner(o client.Object) (types.NamespacedName, bool) {
	if o.GetLabels()[pool.OwnedLabel] != ownedValue {
		return types.NamespacedName{}, false
	}
	namespace, name, ok := cut(o.GetAnnotations()[pool.OwnerAnnotation])
	return types.NamespacedName{Namespace: namespace, Name: name}, ok
}

// OwnerKeys are an object's keys in OwnerIndex.
func OwnerKeys(o client.Object) []string {
	owner, ok := Owner(o)
	if !ok {
		return nil
	}
	return []string{owner.String()}
}

// Set makes objects of some kinds equal to the desired ones. Its client reads from a cache that has OwnerIndex for each of
// the kinds.
type Set struct {
	Client client.Client
	// Kinds are empty lists of every kind that an owner can have.
	Kinds []client.ObjectList
	// Exclusive creates an object only if none of its name exists, even since the cache was read. Server-side apply cannot
	// do that: it would make us a second owner of somebody else's equal object. An object that was created exclusively
	// keeps its first labels and annotations, also when they are no longer desired.
	Exclusive bool
	// Contests slow down the repair of objects that another writer changes again and again. Nil slows down nothing.
	Contests *Contests
}

// Change is a write that was made.
type Change struct {
	Verb string // "applied" or "deleted"
	Kind string
	Name types.NamespacedName
}

// Leaving are objects of an owner that are no longer desired and stay for a while.
type Leaving struct {
	// Last are objects to apply after all desired ones.
	Last []client.Object
	// Stay are the names of objects to leave as they are.
	Stay map[types.NamespacedName]bool
}

// Sync applies, in their order, the desired objects that differ from the cluster's, and deletes all other objects of the
// owner except the leaving ones.
// If nothing differs, it writes nothing. After an error it goes on with objects of the same kind, so that one object's
// fault does not block the others. It does not apply objects of later kinds, which may depend on the failed one. It then
// deletes nothing, as objects in the cluster may still need those that are no longer desired.
// It joins the errors, with a *NotOursError for each name that is taken.
func (s Set) Sync(ctx context.Context, owner types.NamespacedName, desired []client.Object, leaving Leaving) ([]Change, error) {
	keep := map[objectKey]bool{}
	changes, err := s.applyAll(ctx, owner, desired, keep)
	if err != nil {
		return changes, err
	}
	last, err := s.applyAll(ctx, owner, leaving.Last, keep)
	changes = append(changes, last...)
	if err != nil {
		return changes, err
	}
	pruned, err := s.prune(ctx, owner, func(key objectKey) bool { return keep[key] || leaving.Stay[key.name] })
	return append(changes, pruned...), err
}

// applyAll applies objects and notes their keys.
func (s Set) applyAll(ctx context.Context, owner types.NamespacedName, objects []client.Object, keep map[objectKey]bool) ([]Change, error) {
	var changes []Change
	var errs []error
	failed := "" // the kind of the first object that could not be applied
	for _, o := range objects {
		kind, err := s.Client.GroupVersionKindFor(o)
		if err != nil {
			return changes, fmt.Errorf("finding the kind of a %T: %w", o, err)
		}
		key := objectKey{kind.Kind, client.ObjectKeyFromObject(o)}
		keep[key] = true
		if failed != "" && failed != kind.Kind {
			continue
		}
		changed, err := s.apply(ctx, owner, o, kind)
		if err != nil {
			errs = append(errs, err)
			failed = kind.Kind
		} else if changed {
			changes = append(changes, Change{"applied", key.kind, key.name})
		}
	}
	return changes, errors.Join(errs...)
}

type objectKey struct {
	kind string
	name types.NamespacedName
}

func (k objectKey) String() string { return k.kind + " " + k.name.String() }

func (s Set) apply(ctx context.Context, owner types.NamespacedName, o client.Object, kind schema.GroupVersionKind) (changed bool, err error) {
	key := objectKey{kind.Kind, client.ObjectKeyFromObject(o)}
	want, err := desiredFields(o, kind, owner)
	if err != nil {
		return false, fmt.Errorf("encoding %s %s: %w", key.kind, key.name, err)
	}
	live := reflect.New(reflect.TypeOf(o).Elem()).Interface().(client.Object)
	switch err := s.Client.Get(ctx, key.name, live); {
	case apierrors.IsNotFound(err):
		return true, s.create(ctx, key, want)
	case err != nil:
		return false, fmt.Errorf("reading %s %s: %w", key.kind, key.name, err)
	}
	if who, ours := Owner(live); !ours || who != owner {
		return false, &NotOursError{key.kind, key.name}
	}
	return s.repair(ctx, key, want, live)
}

// create applies without force. If somebody has made an object of that name since the cache was read, its fields conflict
// with ours, and the object stays as it is.
func (s Set) create(ctx context.Context, key objectKey, want *unstructured.Unstructured) error {
	var err error
	if s.Exclusive {
		err = s.Client.Create(ctx, want, FieldOwner)
	} else {
		err = s.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(want), FieldOwner)
	}
	if err != nil {
		return fmt.Errorf("creating %s %s: %w", key.kind, key.name, err)
	}
	return nil
}

// repair applies the desired object if the live one differs. An apply keeps fields that another writer added to the spec,
// such as a port in a list. If the spec still differs after the apply, repair replaces the spec.
func (s Set) repair(ctx context.Context, key objectKey, want *unstructured.Unstructured, live client.Object) (bool, error) {
	same, err := matches(live, want.Object)
	if err != nil {
		return false, fmt.Errorf("encoding %s %s: %w", key.kind, key.name, err)
	}
	if same {
		return false, nil
	}
	wrote, err := s.contested(key, want)
	if err != nil {
		return false, err
	}
	applied := want.DeepCopy()
	applied.SetUID(live.GetUID()) // fails if the object was deleted and created again meanwhile
	err = s.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(applied), FieldOwner, client.ForceOwnership)
	if err != nil {
		return false, fmt.Errorf("applying %s %s: %w", key.kind, key.name, err)
	}
	wrote()
	if reflect.DeepEqual(applied.Object["spec"], want.Object["spec"]) {
		return true, nil
	}
	if err := s.replaceSpec(ctx, applied, want.Object["spec"]); err != nil {
		return true, fmt.Errorf("replacing the spec of %s %s: %w", key.kind, key.name, err)
	}
	return true, nil
}

// contested fails if the object must not be repaired yet. The caller calls wrote after a repair that succeeded; a write
// that the API server refused is not a contest.
func (s Set) contested(key objectKey, want *unstructured.Unstructured) (wrote func(), err error) {
	if s.Contests == nil {
		return func() {}, nil
	}
	raw, err := want.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encoding %s %s: %w", key.kind, key.name, err)
	}
	what := fmt.Sprintf("%x", sha256.Sum256(raw))
	if wait := s.Contests.Wait(key.String(), what); wait > 0 {
		return nil, &ContestedError{key.kind, key.name, wait}
	}
	return func() { s.Contests.Wrote(key.String(), what) }, nil
}

func (s Set) forget(key objectKey) {
	if s.Contests != nil {
		s.Contests.Forget(key.String())
	}
}

func (s Set) prune(ctx context.Context, owner types.NamespacedName, keep func(objectKey) bool) ([]Change, error) {
	var changes []Change
	var errs []error
	for _, kind := range s.Kinds {
		owned, err := s.list(ctx, owner, kind)
		if err != nil {
			errs = append(errs, err)
		}
		for _, o := range owned {
			gvk, err := s.Client.GroupVersionKindFor(o)
			key := objectKey{gvk.Kind, client.ObjectKeyFromObject(o)}
			if err == nil && (keep(key) || o.GetDeletionTimestamp() != nil) {
				continue
			}
			if err == nil {
				err = s.remove(ctx, o)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("deleting %s %s: %w", key.kind, key.name, err))
				continue
			}
			s.forget(key)
			changes = append(changes, Change{"deleted", key.kind, key.name})
		}
	}
	return changes, errors.Join(errs...)
}

// remove deletes the object with this UID. It is no error if the object is already gone.
func (s Set) remove(ctx context.Context, o client.Object) error {
	uid := o.GetUID()
	return client.IgnoreNotFound(s.Client.Delete(ctx, o, client.Preconditions{UID: &uid}))
}

// desiredFields is the object to apply, with our label and the owner's annotation.
func desiredFields(o client.Object, kind schema.GroupVersionKind, owner types.NamespacedName) (*unstructured.Unstructured, error) {
	content, err := fields(o)
	if err != nil {
		return nil, err
	}
	delete(content, "status")
	out := &unstructured.Unstructured{Object: content}
	out.SetGroupVersionKind(kind)
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	out.SetLabels(with(out.GetLabels(), pool.OwnedLabel, ownedValue))
	out.SetAnnotations(with(out.GetAnnotations(), pool.OwnerAnnotation, owner.String()))
	return out, nil
}
