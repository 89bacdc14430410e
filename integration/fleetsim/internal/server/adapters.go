package server

import "slices"

// adapters are the slots for LoRA adapters on the device, the least recently used first.
type adapters struct {
	slots  int
	loaded []slot
}

type slot struct {
	name    string
	running int // calls of the batch that use it
}

// admit makes room for a call of an adapter and says whether it was there already. It fails where all slots are used
// by running calls of other adapters.
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

// possible says whether admit would succeed.
func (a *adapters) possible(name string) bool {
	return name == "" || len(a.loaded) < a.slots ||
		slices.ContainsFunc(a.loaded, func(s slot) bool { return s.running == 0 || s.name == name })
}

// leave says that a call of an adapter runs no more.
func (a *adapters) leave(name string) {
	if i := a.find(name); i >= 0 {
		a.loaded[i].running--
	}
}

func (a *adapters) find(name string) int {
	return slices.IndexFunc(a.loaded, func(s slot) bool { return s.name == name })
}
