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

// Picking says in a sentence which pickers pick for a pool.
func Picking(by []PickedBy) string {
	if all := AtOnce(by); len(all) > 0 {
		return strings.Join(all, " and ") + " pick for the pool at the same time."
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
