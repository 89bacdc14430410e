package server

import "container/heap"

// due says that a decoding call must be looked at once a number of steps have ended. Before that the call costs no time: a
// step takes the same work however many calls decode in it.
type due struct {
	at      int
	request *request
}

// dues are ordered by step, and within a step by call.
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
