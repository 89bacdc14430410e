package extproc

import "google.golang.org/grpc/mem"

// heldBody joins the chunks of a body's head in one buffer. Buffers are reused: a new one for each call cost, for a
// body of 512 KB, as much as all other work on it.
type heldBody struct {
	room *[]byte // a buffer from joined; nil where nothing is held
}

// bytes returns the held bytes, valid until the next add or take.
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

// take returns all held bytes, which the caller must free, and holds nothing any more.
func (h *heldBody) take() mem.Buffer {
	if h.len() == 0 {
		return mem.SliceBuffer(nil)
	}
	b := mem.NewBuffer(h.room, &joined)
	h.room = nil
	return b
}
