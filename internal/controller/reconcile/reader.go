package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// reader reads the cluster for one reconcile, each object once. It records its reads if their events are to trigger the
// next reconcile. After an error it reads no more.
type reader struct {
	ctx      context.Context
	client   client.Reader
	settings translate.Settings
	noted    *reading // nil if reads are not recorded
	known    map[read]any
	err      error
}

func newReader(ctx context.Context, c client.Reader, settings translate.Settings, noted *reading) *reader {
	return &reader{ctx: ctx, client: c, settings: settings, noted: noted, known: map[read]any{}}
}

// once reads something, or returns the result of the first read.
func once[T any](r *reader, what read, from func() T) T {
	if known, ok := r.known[what]; ok {
		return known.(T)
	}
	r.noted.note(what) // before the read, so that no later event is missed
	out := from()
	r.known[what] = out
	return out
}

// object is a pointer to an API type.
type object[T any] interface {
	*T
	client.Object
}

// get reads an object; nil if it does not exist. The caller must not change it.
func get[T any, O object[T]](r *reader, name types.NamespacedName) *T {
	return once(r, readOf[T](byName, name.String()), func() *T {
		if r.err != nil {
			return nil
		}
		out := O(new(T))
		switch err := r.client.Get(r.ctx, name, out); {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			r.err = fmt.Errorf("reading %T %s: %w", out, name, err)
			return nil
		}
		return (*T)(out)
	})
}

// list reads the objects that an index has under a key, in the order of their names. The list is empty for a kind that the
// cluster lacks. The objects belong to the cache: callers must not change them.
func list[T any, O object[T]](r *reader, into client.ObjectList, index, key string) []*T {
	return once(r, readOf[T](index, key), func() []*T {
		if r.err != nil {
			return nil
		}
		by := client.ListOption(client.MatchingFields{index: key})
		if index == byNamespace {
			by = client.InNamespace(key)
		}
		err := r.client.List(r.ctx, into, by, client.UnsafeDisableDeepCopy)
		if err != nil && !meta.IsNoMatchError(err) {
			r.err = fmt.Errorf("listing %T by %s %s: %w", into, index, key, err)
			return nil
		}
		var out []*T
		r.err = eachItem(into, func(o client.Object) { out = append(out, (*T)(o.(O))) })
		slices.SortFunc(out, func(a, b *T) int {
			return cmp.Compare(client.ObjectKeyFromObject(O(a)).String(), client.ObjectKeyFromObject(O(b)).String())
		})
		return out
	})
}

// read identifies one read of the cluster: of an object, or of the objects that an index has under a key. A read of an
// object that does not exist counts too.
type read struct {
	kind       reflect.Type
	index, key string
}

// The ways to read objects other than by the cache's indexes.
const (
	byName      = ""
	byNamespace = "namespace"
)

func readOf[T any](index, key string) read { return read{reflect.TypeFor[T](), index, key} }

// readsOf are the reads whose result contains an object.
func readsOf(o client.Object, indexed []index) []read {
	kind := reflect.TypeOf(o).Elem()
	out := []read{{kind, byName, client.ObjectKeyFromObject(o).String()}, {kind, byNamespace, o.GetNamespace()}}
	for _, i := range indexed {
		if reflect.TypeOf(i.kind).Elem() != kind {
			continue
		}
		for _, key := range i.keys(o) {
			out = append(out, read{kind, i.name, key})
		}
	}
	return out
}
