package selection

import (
	"math"
	"slices"
)

const (
	// none is the id of no adapter.
	none = -1
	// longestName bounds an adapter's name in bytes. A longer one is a call's own idea: it is picked for by prefix
	// and load alone.
	longestName = 512
	// mostNames bounds the names that are remembered. Only those in no use are given up for new ones.
	mostNames = 4096
	// warmth is the time after which an adapter that is not used is taken to be wanted no more, in seconds.
	warmth = 60
	// maxUnproven is how many calls in flight with one model name keep together while it is not known whether the name is an
	// adapter's. More calls could as well be for a base model, and must be spread.
	maxUnproven = 3
	// homing is how much an adapter is drawn to its place by rendezvous hashing, between the best and the worst of
	// the endpoints, as a multiple of its load time.
	homing = 1
)

// adapters is what a pool knows of LoRA adapters. A call names its adapter in the same field in which others name the
// base model. Which names are adapters is learned from readings: a name that one lists is one, whatever it was taken for
// before; a name that is in flight at an endpoint whose reading ought to list it if it were one, and does not, is a base
// model. Until either is seen, a name is an adapter as long as it has calls in flight, so that the first calls with it
// meet; it holds no slot, is kept from none, and leaves with the last of them. Where no endpoint tells of slots for
// adapters, there are none.
//
// A call's adapter ought to be listed from the call's first token on. In recent versions of vLLM that is when the front
// end, which writes the list, first hears from the engine that the call was queued and scheduled; older ones list it from
// its arrival. So a call that waits, for a slot or its turn, or has its prompt prefilled, is counted and yet on no list.
type adapters struct {
	ids   map[string]int32
	names []adapter // by id
	free  []int32
	slots []slots // by endpoint number
	with  int     // endpoints that have slots
}

type adapter struct {
	name    string
	kind    kind
	used    float64
	calls   int32
	holders []int32 // the endpoints where it is resident or has calls, in no order
}

type kind uint8

const (
	unproven kind = iota
	proven
	base
)

// slots are one endpoint's: an LRU as model servers have it. What has calls stays; of the rest the least recently used
// goes first.
type slots struct {
	max      int
	resident []resident
}

type resident struct {
	id    int32
	calls int32
	used  float64
	// Readings from the moment due on ought to list watched of the calls, and from latest on all of them.
	watched     int32
	due, latest float64
}

// arrival is what the coming of a call to an endpoint has to do with its adapter, in seconds.
type arrival struct {
	at        float64 // when it comes
	prefilled float64 // when it is taken to have its first token, if the adapter is there
	load      float64 // the time to load the adapter
}

// use is what a call holds of an adapter.
type use struct {
	id  int32   // none where the call needs no adapter
	due float64 // the moment from which on readings ought to list the adapter for the call
}

// begin counts a call, and returns from when on readings ought to list it. The first one waits for the adapter to be
// loaded, and none that comes later is listed before it.
func (r *resident) begin(c arrival) (due float64) {
	if r.calls == 0 {
		due = c.prefilled + c.load
		r.due = due
	} else {
		due = max(r.latest, c.prefilled)
	}
	r.calls++
	r.latest = due
	if due == r.due {
		r.watched++
	}
	return due
}

// end takes away a call. A restart in between has forgotten it.
func (r *resident) end(due float64) {
	r.calls = max(0, r.calls-1)
	if due <= r.due {
		r.watched = max(0, r.watched-1)
	}
	if r.watched == 0 {
		r.watched, r.due = r.calls, r.latest
	}
}

func newAdapters() adapters { return adapters{ids: map[string]int32{}} }

func (a *adapters) grow() { a.slots = append(a.slots, slots{}) }

// find is the id of the adapter that a model's name is taken to mean; none where it is taken for no adapter.
func (a *adapters) find(model string) int32 {
	if a.with == 0 || model == "" || len(model) > longestName {
		return none
	}
	id, known := a.ids[model]
	if !known {
		return none
	}
	switch n := &a.names[id]; {
	case n.kind == base, n.kind == unproven && (len(n.holders) == 0 || n.calls >= maxUnproven):
		return none
	}
	return id
}

// intern gives a name an id; none if there is no room.
func (a *adapters) intern(model string, now float64) int32 {
	if id, known := a.ids[model]; known {
		return id
	}
	if len(a.ids) >= mostNames && !a.giveUp() {
		return none
	}
	var id int32
	if last := len(a.free) - 1; last >= 0 {
		id, a.free = a.free[last], a.free[:last]
	} else {
		id = int32(len(a.names))
		a.names = append(a.names, adapter{})
	}
	a.names[id] = adapter{name: model, used: now, holders: a.names[id].holders[:0]}
	a.ids[model] = id
	return id
}

// giveUp forgets the name that is unused for longest and nowhere resident.
func (a *adapters) giveUp() bool {
	oldest := int32(none)
	for _, id := range a.ids {
		n := &a.names[id]
		if n.calls == 0 && len(n.holders) == 0 && (oldest == none || n.used < a.names[oldest].used) {
			oldest = id
		}
	}
	if oldest != none {
		a.drop(oldest)
	}
	return oldest != none
}

func (a *adapters) drop(id int32) {
	delete(a.ids, a.names[id].name)
	a.names[id].name = ""
	a.free = append(a.free, id)
}

// reserve notes a call with a model at endpoint n.
func (a *adapters) reserve(n int32, c arrival, model string) use {
	if a.with == 0 || model == "" || len(model) > longestName {
		return use{id: none}
	}
	id := a.intern(model, c.at)
	if id == none || a.names[id].kind == base {
		return use{id: none}
	}
	return a.hold(n, id, c)
}

// hold notes a call with an adapter at endpoint n, which makes it resident there.
func (a *adapters) hold(n, id int32, c arrival) use {
	if id == none {
		return use{id: none}
	}
	a.names[id].calls++
	a.names[id].used = c.at
	due := a.touch(n, id, c.at).begin(c)
	a.evict(n)
	return use{id: id, due: due}
}

// release notes the end of a call at endpoint n. A name that is not proven to be an adapter's leaves with its last
// call; then there is no id any more.
func (a *adapters) release(n int32, u use, now float64) (id int32) {
	if u.id == none {
		return none
	}
	name := &a.names[u.id]
	name.calls--
	name.used = now
	if i := a.slots[n].index(u.id); i >= 0 {
		r := &a.slots[n].resident[i]
		r.end(u.due)
		r.used = now
		if r.calls == 0 && name.kind != proven {
			a.remove(n, i)
		}
	}
	if name.calls == 0 && name.kind == unproven && len(name.holders) == 0 {
		a.drop(u.id)
		return none
	}
	return u.id
}

func (s *slots) index(id int32) int {
	return slices.IndexFunc(s.resident, func(r resident) bool { return r.id == id })
}

// touch makes an adapter resident at endpoint n, and used now.
func (a *adapters) touch(n, id int32, now float64) *resident {
	s := &a.slots[n]
	i := s.index(id)
	if i < 0 {
		i = len(s.resident)
		s.resident = append(s.resident, resident{id: id})
		a.names[id].holders = append(a.names[id].holders, n)
	}
	s.resident[i].used = max(s.resident[i].used, now)
	return &s.resident[i]
}

func (a *adapters) remove(n int32, i int) {
	s := &a.slots[n]
	name := &a.names[s.resident[i].id]
	if at := slices.Index(name.holders, n); at >= 0 {
		name.holders = slices.Delete(name.holders, at, at+1)
	}
	s.resident = slices.Delete(s.resident, i, i+1)
}

// evict brings endpoint n back to its number of slots, as far as idle adapters allow.
func (a *adapters) evict(n int32) {
	for {
		free, victim := a.spare(n)
		if free >= 0 || victim < 0 {
			return
		}
		a.remove(n, victim)
	}
}

// spare is the number of endpoint n's free slots, negative where there are more adapters than slots, and the idle
// adapter that would be the next to go, -1 where all have calls.
func (a *adapters) spare(n int32) (free, victim int) {
	s := &a.slots[n]
	free, victim = s.max, -1
	for i, r := range s.resident {
		if a.names[r.id].kind != proven {
			continue
		}
		free--
		if r.calls == 0 && (victim < 0 || r.used < s.resident[victim].used) {
			victim = i
		}
	}
	return free, victim
}

// forget empties endpoint n.
func (a *adapters) forget(n int32) {
	for last := len(a.slots[n].resident) - 1; last >= 0; last-- {
		a.remove(n, last)
	}
	a.setMax(n, 0)
}

func (a *adapters) setMax(n int32, most int) {
	if most > 0 && a.slots[n].max == 0 {
		a.with++
	}
	if most <= 0 && a.slots[n].max > 0 {
		a.with--
	}
	a.slots[n].max = max(0, most)
}

// observe takes in what a reading of endpoint n says of adapters.
func (a *adapters) observe(n int32, now float64, r *Reading) {
	if r.MaxAdapters <= 0 {
		return
	}
	a.setMax(n, r.MaxAdapters)
	at := r.At.Seconds()
	for _, names := range [...][]string{r.WaitingAdapters, r.RunningAdapters} {
		for _, name := range names {
			a.prove(n, name, now, at)
		}
	}
	a.exposeBases(n, at, r)
	a.evict(n)
}

// prove notes that a reading of endpoint n, taken at a moment, lists a name.
func (a *adapters) prove(n int32, name string, now, at float64) {
	if name == "" || len(name) > longestName {
		return
	}
	if id := a.intern(name, now); id != none {
		a.names[id].kind = proven
		a.touch(n, id, at)
	}
}

// exposeBases finds the names in flight at endpoint n that its reading ought to list if they were adapters'. Where listed
// adapters use all slots, others may be waiting for one; and a reading without any running call is older than the calls.
func (a *adapters) exposeBases(n int32, at float64, told *Reading) {
	if told.Running == 0 || len(told.RunningAdapters) >= told.MaxAdapters {
		return
	}
	for i := len(a.slots[n].resident) - 1; i >= 0; i-- {
		r := a.slots[n].resident[i]
		name := &a.names[r.id]
		if name.kind == unproven && r.watched > 0 && r.due < at { // what the reading lists is proven by now
			name.kind = base
			for len(name.holders) > 0 {
				holder := name.holders[0]
				a.remove(holder, a.slots[holder].index(r.id))
			}
			return // others are found by the next reading
		}
	}
}

// cost is what it costs, in seconds, to serve an adapter at an endpoint where it is not resident: the time to
// load it, once for this call and, as far as the adapter that goes for it is still wanted, once more for that one.
// Full says that no slot can be had, since all are in use.
func (a *adapters) cost(n int32, now, loadTime float64) (cost float64, full bool) {
	free, victim := a.spare(n)
	switch {
	case free > 0:
		return loadTime, false
	case victim >= 0:
		idle := max(0, now-a.slots[n].resident[victim].used)
		return loadTime * (1 + warmth/(warmth+idle)), false
	}
	return 2 * loadTime, true
}

// proven says that an id is known to be an adapter's.
func (a *adapters) proven(id int32) bool { return a.names[id].kind == proven }

// rendezvous maps a name and an endpoint's key to a number from 0 to 1, evenly and the same in every replica of the
// picker: the endpoint with the highest is the name's home.
func rendezvous(name, key uint64) float64 {
	x := (name ^ key) * 0x9e3779b97f4a7c15 // the finaliser of splitmix64
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64(x^x>>31) / math.MaxUint64
}

// Hash is FNV-1a with 64 bits, which gives names and sessions the same number in every replica.
func Hash(text string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	return h
}
