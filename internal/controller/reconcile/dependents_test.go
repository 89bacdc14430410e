package reconcile

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestDependents(t *testing.T) {
	var d dependents
	service, other := readOf[corev1.Service](byName, "models/epp"), readOf[corev1.Namespace](byName, "models")
	a, b := types.NamespacedName{Namespace: "models", Name: "a"}, types.NamespacedName{Namespace: "models", Name: "b"}
	want := func(what string, names ...types.NamespacedName) {
		t.Helper()
		got := d.of([]read{service})
		wanted := map[types.NamespacedName]bool{}
		for _, n := range names {
			wanted[n] = true
		}
		if diff := cmp.Diff(wanted, map[types.NamespacedName]bool(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	want("nothing was read")
	first := d.begin(a)
	first.note(service)
	want("while it is read, before it is known what else is", a)
	first.note(other)
	first.end()
	second := d.begin(b)
	second.note(service)
	second.end()
	want("two read it", a, b)
	again := d.begin(a)
	again.note(other)
	want("one that reads no more of it does so until all is read", a, b)
	again.end()
	want("one reads it no more", b)
	d.begin(b) // and fails
	want("a reconcile that did not end drops nothing", b)
	d.begin(a).forget()
	d.begin(b).forget()
	if len(d.by) > 0 || len(d.reads) > 0 {
		t.Errorf("%v and %v are kept of what is gone", d.by, d.reads)
	}
}
