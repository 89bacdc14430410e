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

// reader reads the cluster for one reconcile, each object once, and notes what it reads where the events of that are to
// bring the next one. After an error it reads no more.
type reader struct {
	ctx      context.Context
	client   client.Reader
	settings translate.Settings
	noted    *reading // nil where nothing is noted
	known    map[read]any
	err      error
}

func newReader(ctx context.Context, c client.Reader, settings translate.Settings, noted *reading) *reader {
	return &reader{ctx: ctx, client: c, settings: settings, noted: noted, known: map[read]any{}}
}

// once reads what was not read before.
func once[T any](r *reader, what read, from func() T) T {
	if known, ok := r.known[what]; ok {
		return known.(T)
	}
	r.noted.note(what) // first: an event that comes from here on is about what is not read yet
	out := from()
	r.known[what] = out
	return out
}

// object is a pointer to an API type.
type object[T any] interface {
	*T
	client.Object
}

// get reads an object, nil where it does not exist. It is the reader's own.
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

// list reads the objects that an index has under a key, in the order of their names; none of a kind that the cluster lacks.
// They are the cache's own: nobody may change them.
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

// read is one thing that is read of the cluster: an object, or the objects that an index has under a key. Objects that do
// not exist are read too.
type read struct {
	kind       reflect.Type
	index, key string
}

// What objects are read by beside the cache's indexes.
const (
	byName      = ""
	byNamespace = "namespace"
)

func readOf[T any](index, key string) read { return read{reflect.TypeFor[T](), index, key} }

// readsOf are the reads that an object is the answer to, or a part of.
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
