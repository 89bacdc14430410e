package admission

import (
	"math"
	"slices"
)

// chunkCalls bounds the calls in a chunk of an order. Of n calls, adding one and asking for the work before one take about
// n/chunkCalls + chunkCalls steps.
const chunkCalls = 256

// order holds calls by their keys, the least first, and knows how much work is before a key. The zero value is empty.
type order struct {
	chunks []chunk
	calls  int
	work   float64
}

type chunk struct {
	calls []*Call
	work  float64
}

// before reports whether a call goes before another.
func (c *Call) before(other *Call) bool {
	return c.key < other.key || c.key == other.key && c.number < other.number
}

// place returns the chunk that a call is in, or is to be in.
func (o *order) place(c *Call) int {
	i, _ := slices.BinarySearchFunc(o.chunks, c, func(k chunk, c *Call) int {
		if k.calls[len(k.calls)-1].before(c) {
			return -1
		}
		return 1
	})
	return min(i, len(o.chunks)-1)
}

// in returns the place of a call among sorted calls.
func in(calls []*Call, c *Call) (at int, found bool) {
	return slices.BinarySearchFunc(calls, c, func(x, c *Call) int {
		switch {
		case x == c:
			return 0
		case x.before(c):
			return -1
		}
		return 1
	})
}

func (o *order) add(c *Call) {
	o.calls++
	o.work += c.Work
	if len(o.chunks) == 0 {
		o.chunks = append(o.chunks, chunk{calls: []*Call{c}, work: c.Work})
		return
	}
	i := o.place(c)
	k := &o.chunks[i]
	at, _ := in(k.calls, c)
	k.calls = slices.Insert(k.calls, at, c)
	k.work += c.Work
	if len(k.calls) > chunkCalls {
		half := len(k.calls) / 2
		upper := chunk{calls: slices.Clone(k.calls[half:])}
		for _, x := range upper.calls {
			upper.work += x.Work
		}
		clear(k.calls[half:])
		k.calls, k.work = k.calls[:half], k.work-upper.work
		o.chunks = slices.Insert(o.chunks, i+1, upper)
	}
}

func (o *order) remove(c *Call) {
	i := o.place(c)
	k := &o.chunks[i]
	at, found := in(k.calls, c)
	if !found {
		return
	}
	k.calls = slices.Delete(k.calls, at, at+1)
	k.work -= c.Work
	o.calls--
	o.work -= c.Work
	if len(k.calls) == 0 {
		o.chunks = slices.Delete(o.chunks, i, i+1)
	}
	if o.calls == 0 {
		o.work = 0 // without what rounding left
	}
}

// ahead returns the work of the calls that go before a new one with this key.
func (o *order) ahead(key float64) float64 {
	sum := 0.0
	for i := range o.chunks {
		k := &o.chunks[i]
		if k.calls[len(k.calls)-1].key <= key {
			sum += k.work
			continue
		}
		for _, x := range k.calls {
			if x.key > key {
				break
			}
			sum += x.Work
		}
		break
	}
	return math.Max(0, sum)
}

// last returns the call that goes last, nil where there is none.
func (o *order) last() *Call {
	if o.calls == 0 {
		return nil
	}
	k := &o.chunks[len(o.chunks)-1]
	return k.calls[len(k.calls)-1]
}

// each calls a function with the calls, the first first, until it returns false.
func (o *order) each(f func(*Call) bool) {
	for i := range o.chunks {
		for _, c := range o.chunks[i].calls {
			if !f(c) {
				return
			}
		}
	}
}
