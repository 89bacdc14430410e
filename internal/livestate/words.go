package livestate

import (
	"fmt"
	"strings"
)

// String says how far the picker that tells the state knows what the other one decides.
func (o Other) String() string {
	if o.Silent == nil {
		return fmt.Sprintf("It does not follow %s.", o.Picker)
	}
	return fmt.Sprintf("It knows what %s decided until %.1f s ago.", o.Picker, *o.Silent)
}

// Together returns the names of pickers that pick for the pool at the same time, although it is not split.
func (p Pool) Together() []string {
	if p.Split {
		return nil
	}
	return AtOnce(p.PickedBy)
}

// Picking says in a sentence which pickers pick for a pool.
func (p Pool) Picking() string {
	by := p.PickedBy
	if all := AtOnce(by); len(all) > 0 {
		how := " at the same time."
		if p.Split {
			how = ", each for a part of its callers."
		}
		return strings.Join(all, " and ") + " pick for the pool" + how
	}
	if len(by) == 0 {
		return "No picker has picked for the pool in the last 10 s."
	}
	last := by[0]
	for _, p := range by[1:] {
		if p.Until < last.Until {
			last = p
		}
	}
	return fmt.Sprintf("%s picks for the pool, last %.1f s ago.", last.Picker, last.Until)
}

// String says in a sentence what waits; "" where nothing does.
func (l Line) String() string {
	if l.Calls == 0 {
		return ""
	}
	calls := "calls wait"
	if l.Calls == 1 {
		calls = "call waits"
	}
	return fmt.Sprintf("%d %s at the picker for a server that would begin soon, the first for %.1f s.", l.Calls, calls, l.Oldest)
}

// Waiting says for each caller how many of its calls wait, in the order of the list.
func (l Line) Waiting() []string {
	var out []string
	for _, c := range l.Callers {
		who := c.Caller
		if who == "" {
			who = "callers without an identity"
		}
		out = append(out, fmt.Sprintf("%s: %d of priority %d and weight %g, the first for %.1f s", who, c.Calls, c.Priority, c.Weight, c.Oldest))
	}
	return out
}
