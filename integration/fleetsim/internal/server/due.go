package server

import "container/heap"

// due says that a decoding call is to be looked at when so many steps have ended. The rest of the time it costs
// nothing: a step takes the same work however many calls decode in it.
type due struct {
	at      int
	request *request
}

// dues are in the order of their steps, and within one in the order of the calls.
type dues struct{ heap dueHeap }

func (d *dues) len() int   { return len(d.heap) }
func (d *dues) first() due { return d.heap[0] }
func (d *dues) push(e due) { heap.Push(&d.heap, e) }
func (d *dues) pop() due   { return heap.Pop(&d.heap).(due) }

type dueHeap []due

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return h[i].request.id < h[j].request.id
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)   { *h = append(*h, x.(due)) }
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	return e
}
