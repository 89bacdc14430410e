package pickerwatch

import "time"

// outcome is the outcome of a try.
type outcome int

const (
	unknown outcome = iota // the try says nothing of the picker
	silence
	sound
)

// history is what is known of a picker.
type history struct {
	// heard says that the picker has answered since it was first seen, or since it was last withdrawn. A picker that the
	// controller cannot reach at all is so never withdrawn, and one that its kubelet insists on is withdrawn once.
	heard bool
	// silent is the number of tries in a row without an answer, and since is when the first of them began.
	silent int
	since  time.Time
	// answers is the number of tries in a row with an answer.
	answers int
	// withdrawn is how often the picker was withdrawn, and trusted the time of its first answer after the last time.
	withdrawn int
	trusted   time.Time
}

func (h *history) add(o outcome, now time.Time) {
	if o != silence {
		h.silent = 0
	}
	if o != sound {
		h.answers = 0
	}
	switch o {
	case sound:
		if !h.heard {
			h.heard, h.trusted = true, now
		}
		h.answers++
	case silence:
		if h.silent == 0 {
			h.since = now.Add(-askTimeout)
		}
		h.silent++
	}
}

// trustedAgain reports whether a picker that was withdrawn before has answered for long enough since.
func (h *history) trustedAgain(now time.Time) bool {
	return h.withdrawn == 0 || !now.Before(h.trusted.Add(probation<<min(h.withdrawn-1, mostDoublings)))
}
