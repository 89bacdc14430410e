package extproc

import "google.golang.org/grpc/mem"

// heldBody is the head of a body that comes in chunks, in one piece. Its rooms are used again: made anew for each call,
// those of a body of 512 KB cost as much as all else that is done with it.
type heldBody struct {
	room *[]byte // of joined; nil where nothing is held
}

// bytes are valid until the next add or take.
func (h *heldBody) bytes() []byte {
	if h.room == nil {
		return nil
	}
	return *h.room
}

func (h *heldBody) len() int { return len(h.bytes()) }

// add copies a chunk.
func (h *heldBody) add(chunk []byte) {
	n := h.len()
	if need := n + len(chunk); h.room == nil || need > cap(*h.room) {
		larger := joined.Get(need)
		copy(*larger, h.bytes())
		h.take().Free()
		h.room = larger
	}
	*h.room = append((*h.room)[:n], chunk...)
}

// take gives all that is held away, to be freed, and holds nothing any more.
func (h *heldBody) take() mem.Buffer {
	if h.len() == 0 {
		return mem.SliceBuffer(nil)
	}
	b := mem.NewBuffer(h.room, &joined)
	h.room = nil
	return b
}
