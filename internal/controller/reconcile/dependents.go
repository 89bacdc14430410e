package reconcile

import (
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// dependents record which reads each object made when it was last reconciled. An event of something that was read
// reconciles its readers again. The zero value is ready, and its methods may be called from several goroutines.
type dependents struct {
	mu    sync.Mutex
	by    map[read][]types.NamespacedName
	reads map[types.NamespacedName]map[read]bool
}

// reading records the reads of one reconcile. A nil reading records nothing.
type reading struct {
	of   *dependents
	name types.NamespacedName
	now  map[read]bool
}

// begin starts the record of a reconcile. There is at most one reconcile of a name at a time.
func (d *dependents) begin(name types.NamespacedName) *reading {
	return &reading{of: d, name: name, now: map[read]bool{}}
}

// note records a read before it is made.
func (r *reading) note(what read) {
	if r == nil || r.now[what] {
		return
	}
	r.now[what] = true
	r.of.add(r.name, what)
}

// end drops reads of the previous reconcile that this one did not make. This one must have made all reads it depends on.
func (r *reading) end() {
	d := r.of
	d.mu.Lock()
	defer d.mu.Unlock()
	for what := range d.reads[r.name] {
		if !r.now[what] {
			d.remove(r.name, what)
		}
	}
}

// forget drops all reads of an object that is gone.
func (r *reading) forget() {
	r.now = nil
	r.end()
}

func (d *dependents) add(name types.NamespacedName, what read) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.reads[name][what] {
		return
	}
	if d.reads == nil {
		d.by, d.reads = map[read][]types.NamespacedName{}, map[types.NamespacedName]map[read]bool{}
	}
	if d.reads[name] == nil {
		d.reads[name] = map[read]bool{}
	}
	d.reads[name][what] = true
	d.by[what] = append(d.by[what], name)
}

func (d *dependents) remove(name types.NamespacedName, what read) {
	delete(d.reads[name], what)
	if len(d.reads[name]) == 0 {
		delete(d.reads, name)
	}
	d.by[what] = slices.DeleteFunc(d.by[what], func(of types.NamespacedName) bool { return of == name })
	if len(d.by[what]) == 0 {
		delete(d.by, what)
	}
}

// of are the names that depend on any of the reads.
func (d *dependents) of(reads []read) names {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := names{}
	for _, what := range reads {
		for _, name := range d.by[what] {
			out[name] = true
		}
	}
	return out
}
