package server

import "slices"

// adapters holds the loaded LoRA adapters, the least recently used first, in a limited number of slots.
type adapters struct {
	slots  int
	loaded []slot
}

type slot struct {
	name    string
	running int // calls of the batch with this adapter
}

// admit loads the adapter of a call and reports whether it was resident already. It fails if running calls of other
// adapters use all slots.
func (a *adapters) admit(name string) (resident, ok bool) {
	if name == "" {
		return true, true
	}
	i := a.find(name)
	if i >= 0 {
		s := a.loaded[i]
		s.running++
		a.loaded = append(slices.Delete(a.loaded, i, i+1), s)
		return true, true
	}
	if len(a.loaded) == a.slots {
		idle := slices.IndexFunc(a.loaded, func(s slot) bool { return s.running == 0 })
		if idle < 0 {
			return false, false
		}
		a.loaded = slices.Delete(a.loaded, idle, idle+1)
	}
	a.loaded = append(a.loaded, slot{name: name, running: 1})
	return false, true
}

// possible reports whether admit would succeed.
func (a *adapters) possible(name string) bool {
	return name == "" || len(a.loaded) < a.slots ||
		slices.ContainsFunc(a.loaded, func(s slot) bool { return s.running == 0 || s.name == name })
}

// leave notes that a call of an adapter has left the batch.
func (a *adapters) leave(name string) {
	if i := a.find(name); i >= 0 {
		a.loaded[i].running--
	}
}

func (a *adapters) find(name string) int {
	return slices.IndexFunc(a.loaded, func(s slot) bool { return s.name == name })
}
