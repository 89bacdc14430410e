package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// fields encodes an object as JSON values, to compare a desired object with a live one. Both go through the same encoding,
// so that equal numbers and durations compare equal. Integers become int64, as in the API server's answers.
func fields(o client.Object) (map[string]any, error) {
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := utiljson.Unmarshal(raw, &out); err != nil {
		return nil, err
	}
	return out, nil
}

// matches reports whether a live object has the desired spec, all desired labels and annotations, and none that we set
// earlier and no longer desire. It ignores labels and annotations of other writers.
func matches(live client.Object, want map[string]any) (bool, error) {
	got, err := fields(live)
	if err != nil {
		return false, err
	}
	if !reflect.DeepEqual(got["spec"], want["spec"]) {
		return false, nil
	}
	for _, part := range []string{"labels", "annotations"} {
		wanted := section(want, "metadata", part)
		present := section(got, "metadata", part)
		for key, value := range wanted {
			if present[key] != value {
				return false, nil
			}
		}
		for _, key := range ownedKeys(live, part) {
			if _, ok := wanted[key]; !ok {
				return false, nil
			}
		}
	}
	return true, nil
}

// ownedKeys are the keys of an object's labels or annotations that we set by server-side apply.
func ownedKeys(o client.Object, part string) []string {
	var out []string
	for _, entry := range o.GetManagedFields() {
		owned, ours := ownedFields(entry)
		if !ours {
			continue
		}
		keys := section(owned, "f:metadata", "f:"+part)
		for key := range keys {
			if name, ok := strings.CutPrefix(key, "f:"); ok {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Strip is a cache transform that shortens an object's managedFields, which are about as long as the object itself. It
// keeps only the part that this package reads: which labels and annotations are ours.
func Strip(object any) (any, error) {
	o, is := object.(metav1.Object)
	if !is {
		return object, nil
	}
	var kept []metav1.ManagedFieldsEntry
	for _, entry := range o.GetManagedFields() {
		if owned, ours := ownedMetadata(entry); ours {
			entry.FieldsV1 = owned
			kept = append(kept, entry)
		}
	}
	o.SetManagedFields(kept)
	return object, nil
}

// ownedMetadata is the part of a managedFields entry about labels and annotations that we set by server-side apply. It is
// false for another manager's entry.
func ownedMetadata(entry metav1.ManagedFieldsEntry) (*metav1.FieldsV1, bool) {
	owned, ours := ownedFields(entry)
	if !ours {
		return nil, false
	}
	parts := map[string]any{}
	for _, part := range []string{"f:labels", "f:annotations"} {
		if keys := section(owned, "f:metadata", part); keys != nil {
			parts[part] = keys
		}
	}
	raw, err := json.Marshal(map[string]any{"f:metadata": parts})
	if err != nil {
		return nil, false
	}
	return metav1.NewFieldsV1(string(raw)), true
}

// ownedFields are the fields that we set by server-side apply; ours is false for another manager's entry.
func ownedFields(entry metav1.ManagedFieldsEntry) (owned map[string]any, ours bool) {
	if entry.Manager != string(FieldOwner) || entry.Operation != metav1.ManagedFieldsOperationApply || entry.FieldsV1 == nil {
		return nil, false
	}
	err := json.Unmarshal(entry.FieldsV1.GetRawBytes(), &owned)
	return owned, err == nil
}

// section is the map at a path; nil if there is none.
func section(in map[string]any, path ...string) map[string]any {
	for _, key := range path {
		in, _ = in[key].(map[string]any)
	}
	return in
}

func with(m map[string]string, key, value string) map[string]string {
	out := maps.Clone(m)
	if out == nil {
		out = map[string]string{}
	}
	out[key] = value
	return out
}

func cut(owner string) (namespace, name string, ok bool) {
	namespace, name, ok = strings.Cut(owner, "/")
	return namespace, name, ok && namespace != "" && name != ""
}

// replaceSpec replaces an object's spec by the desired one, if the object has not changed since our apply. From then on we
// own the spec also by an Update, so removing a field from it takes an apply and another replacement. That is rare: an
// admission policy keeps other writers from our objects.
func (s Set) replaceSpec(ctx context.Context, applied *unstructured.Unstructured, spec any) error {
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/resourceVersion", "value": applied.GetResourceVersion()},
		{"op": "replace", "path": "/spec", "value": spec},
	})
	if err != nil {
		return err
	}
	return s.Client.Patch(ctx, applied, client.RawPatch(types.JSONPatchType, patch), FieldOwner)
}

// list reads an owner's objects of one kind.
func (s Set) list(ctx context.Context, owner types.NamespacedName, kind client.ObjectList) ([]client.Object, error) {
	list := kind.DeepCopyObject().(client.ObjectList)
	if err := s.Client.List(ctx, list, client.MatchingFields{OwnerIndex: owner.String()}); err != nil {
		return nil, fmt.Errorf("listing %T of %s: %w", list, owner, err)
	}
	var out []client.Object
	err := meta.EachListItem(list, func(o runtime.Object) error {
		if c, ok := o.(client.Object); ok {
			out = append(out, c)
		}
		return nil
	})
	return out, err
}
