package selection

import (
	"math"
	"slices"
)

const (
	// none is the id of no adapter.
	none = -1
	// longestName bounds an adapter's name in bytes. A longer name is taken for no adapter: its calls are picked for by
	// prefix and load alone.
	longestName = 512
	// mostNames bounds the names that are remembered. Only a name that is not in use is forgotten for a new one.
	mostNames = 4096
	// warmth is the time, in seconds, after which an unused adapter is half as likely to be wanted again.
	warmth = 60
	// maxUnproven is how many calls in flight with one model name keep together while it is not known whether the name is an
	// adapter's. More calls could as well be for a base model, and must be spread.
	maxUnproven = 3
	// never is when a reading listed an adapter that none has listed: before all readings.
	never = -1e300
	// homing is the difference in cost between an adapter's best and worst endpoint by rendezvous hashing, as a multiple
	// of the adapter's load time.
	homing = 1
)

// adapters is what a pool knows of LoRA adapters. A call names its adapter in the field in which other calls name the
// base model, so readings must tell which names are adapters. A name that a reading lists is an adapter, whatever it
// was taken for before. Of the others the name of an endpoint's own model is a base model, and so is a name in flight at
// an endpoint whose reading should list it and does not: a server may go by more names than it reports. Until a reading
// tells, a name counts as an adapter while it has calls in flight, so that the first calls with it go to one endpoint. Such a name takes no slot, rules out no endpoint, and is forgotten with its last call. Where no
// endpoint reports adapter slots, there are no adapters.
//
// A reading should list a call's adapter from the call's first token on. Recent versions of vLLM list it when the front
// end hears from the engine that the call was queued and scheduled, older ones when the call arrives. So a call that
// waits for a slot or its turn, or is being prefilled, is counted and not yet listed.
//
// An adapter was served where a reading listed it as running, or where a call of the picker's own with it was answered
// and its prompt is taken to be prefilled. An adapter that only waits is not known to be loaded: its calls wait as long
// as other adapters use all slots.
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
	holders []int32 // the endpoints where the adapter is resident or has calls, in no order
}

type kind uint8

const (
	unproven kind = iota
	proven
	base
)

// slots are one endpoint's adapter slots: an LRU as in model servers. An adapter with calls stays; of the others the
// least recently used is evicted first.
type slots struct {
	max      int
	resident []resident // in the order in which they came
	read     float64    // when the endpoint was last read
	deferred bool       // calls waited for a slot then
}

type resident struct {
	id    int32
	calls int32
	used  float64
	// served says that the endpoint served the adapter, and listed is when a reading last listed it as running.
	served bool
	listed float64
	// Readings from the time due on should list the adapter for watched of its calls, and from the time latest on for all.
	watched     int32
	due, latest float64
}

// arrival is when a call arrives at an endpoint, and when the endpoint can serve its adapter, in seconds.
type arrival struct {
	at        float64 // when the call arrives
	prefilled float64 // when its first token is expected, if the adapter is resident
	load      float64 // the time to load the adapter
}

// use is a call's claim on an adapter.
type use struct {
	id  int32   // none where the call needs no adapter
	due float64 // the time from which on readings should list the adapter for the call
}

// begin counts a call, and returns from when on readings should list it. The first call waits until the adapter is
// loaded, and no later call is listed before the first.
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

// end removes a call. After a restart of the endpoint the call is not counted any more, so the counts stop at 0.
func (r *resident) end(due float64) {
	r.calls = max(0, r.calls-1)
	if due <= r.due {
		r.watched = max(0, r.watched-1)
	}
	if r.watched == 0 {
		r.watched, r.due = r.calls, r.latest
	}
}

// lists reports whether the endpoint's last reading lists an adapter as running, and is fresh enough to count.
func (s *slots) lists(r *resident, now float64) bool {
	return r.listed == s.read && weight(now-s.read) > 0
}

// busy reports whether an adapter keeps its slot: it has calls of the picker's own or, by the last reading, of others.
func (s *slots) busy(r *resident, now float64) bool { return r.calls > 0 || s.lists(r, now) }

// crowded reports whether calls wait for a slot, by the last reading. A slot that seems free is then theirs.
func (s *slots) crowded(now float64) bool { return s.deferred && weight(now-s.read) > 0 }

func newAdapters() adapters { return adapters{ids: map[string]int32{}} }

func (a *adapters) grow() { a.slots = append(a.slots, slots{}) }

// find returns the id of the adapter that a model's name stands for, or none if the name is taken for no adapter.
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

// giveUp forgets the name that is unused for the longest time and resident nowhere.
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

// wanted returns the id of what may be the adapter of a call with a model; none where the call needs no adapter.
func (a *adapters) wanted(model string, now float64) int32 {
	if a.with == 0 || model == "" || len(model) > longestName {
		return none
	}
	id := a.intern(model, now)
	if id == none || a.names[id].kind == base {
		return none
	}
	return id
}

// hold notes a call with an adapter at endpoint n, which holds the adapter there until the call ends.
func (a *adapters) hold(n, id int32, c arrival) use {
	if id == none {
		return use{id: none}
	}
	a.names[id].calls++
	a.names[id].used = c.at
	due := a.touch(n, id, c.at).begin(c)
	a.evict(n, c.at)
	return use{id: id, due: due}
}

// loaded reports whether endpoint n is known to have an adapter loaded, or a call needs none.
func (a *adapters) loaded(n, id int32) bool {
	if id == none || a.names[id].kind != proven {
		return true
	}
	i := a.slots[n].index(id)
	return i >= 0 && a.slots[n].resident[i].served
}

// release notes the end of a call at endpoint n. An adapter that was never served there leaves with its last call, and
// so does a name that is not proven to be an adapter's; then there may be no id any more.
func (a *adapters) release(n int32, u use, now float64, served bool) (id int32) {
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
		r.served = r.served || served
		if r.calls == 0 {
			r.listed = never // the last reading may have listed the adapter for this call alone
		}
		if r.calls == 0 && (name.kind != proven || !r.served) {
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

// touch notes that an adapter is held at endpoint n, and used now.
func (a *adapters) touch(n, id int32, now float64) *resident {
	s := &a.slots[n]
	i := s.index(id)
	if i < 0 {
		i = len(s.resident)
		s.resident = append(s.resident, resident{id: id, listed: never})
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
func (a *adapters) evict(n int32, now float64) {
	for {
		free, victim := a.spare(n, now)
		if free >= 0 || victim < 0 {
			return
		}
		a.remove(n, victim)
	}
}

// spare returns the number of endpoint n's free slots, negative where there are more adapters than slots. It also
// returns the idle adapter that would be evicted next, -1 where all adapters have calls, of the picker's own or others'.
func (a *adapters) spare(n int32, now float64) (free, victim int) {
	s := &a.slots[n]
	free, victim = s.max, -1
	for i := range s.resident {
		r := &s.resident[i]
		if a.names[r.id].kind != proven {
			continue
		}
		free--
		if !s.busy(r, now) && (victim < 0 || r.used < s.resident[victim].used) {
			victim = i
		}
	}
	return free, victim
}

// waits reports whether a call for an adapter that is held at endpoint n would wait for a slot there: other adapters use
// all slots, and this one has none. An adapter that was not served yet gets its slot after those that came before it.
func (a *adapters) waits(n, id int32, now float64) bool {
	s := &a.slots[n]
	at := s.index(id)
	if at < 0 || s.max == 0 {
		return false
	}
	if r := &s.resident[at]; r.served && s.busy(r, now) {
		return false
	}
	if s.crowded(now) {
		return true
	}
	before := 0
	for i := range s.resident {
		r := &s.resident[i]
		if i != at && (i < at || r.served) && a.proven(r.id) && s.busy(r, now) {
			before++
		}
	}
	return before >= s.max
}

// forget empties endpoint n.
func (a *adapters) forget(n int32) {
	for last := len(a.slots[n].resident) - 1; last >= 0; last-- {
		a.remove(n, last)
	}
	a.slots[n].read, a.slots[n].deferred = 0, false
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

// observe takes in what a reading of endpoint n, taken at the time at, says of adapters.
func (a *adapters) observe(n int32, now, at float64, r *Reading) {
	if r.MaxAdapters <= 0 {
		return
	}
	a.setMax(n, r.MaxAdapters)
	s := &a.slots[n]
	s.read = at
	// Calls are deferred for other reasons than adapters too. Those that wait for a slot wait for running adapters.
	s.deferred = r.Deferred > 0 && len(r.RunningAdapters) > 0
	for _, name := range r.WaitingAdapters {
		a.prove(name, now)
	}
	for _, name := range r.RunningAdapters {
		if id := a.prove(name, now); id != none {
			held := a.touch(n, id, at)
			held.served = true
			if held.calls > 0 || held.used <= at { // else a call of the picker's own has ended since, and explains it
				held.listed = at
			}
		}
	}
	a.doubtServed(n, at)
	a.noteBase(r.Model, now)
	a.exposeBases(n, at, r)
	a.evict(n, now)
}

// prove notes that a reading lists a name, and returns its id; none where the name cannot be remembered.
func (a *adapters) prove(name string, now float64) int32 {
	if name == "" || len(name) > longestName {
		return none
	}
	id := a.intern(name, now)
	if id != none {
		a.names[id].kind = proven
	}
	return id
}

// noteBase notes the name of an endpoint's own model. Calls with it may be too short for exposeBases.
func (a *adapters) noteBase(name string, now float64) {
	if name == "" || len(name) > longestName {
		return
	}
	if id := a.intern(name, now); id != none && a.names[id].kind == unproven {
		a.setBase(id)
	}
}

// setBase makes a name that of a base model, which is resident everywhere.
func (a *adapters) setBase(id int32) {
	name := &a.names[id]
	name.kind = base
	for len(name.holders) > 0 {
		holder := name.holders[0]
		a.remove(holder, a.slots[holder].index(id))
	}
}

// doubtServed finds the adapters that endpoint n has evicted since it served them: calls wait for a slot, and the
// reading should list the adapter and does not.
func (a *adapters) doubtServed(n int32, at float64) {
	s := &a.slots[n]
	if !s.deferred {
		return
	}
	for i := range s.resident {
		if r := &s.resident[i]; r.watched > 0 && r.due < at && r.listed != at {
			r.served = false
		}
	}
}

// mayBeDeferred reports whether a call for an adapter may be one of those that endpoint n deferred at its last reading:
// the adapter is known to be one, and the reading does not list it as running.
func (a *adapters) mayBeDeferred(n, id int32) bool {
	if id == none || !a.proven(id) {
		return false
	}
	s := &a.slots[n]
	i := s.index(id)
	return i < 0 || s.resident[i].listed != s.read
}

// exposeBases finds the names in flight at endpoint n that its reading should list if they were adapters. It skips a
// reading with deferred calls or whose adapters use all slots, as others may wait, and one without running calls, which
// is outdated.
func (a *adapters) exposeBases(n int32, at float64, reading *Reading) {
	if reading.Running == 0 || reading.Deferred > 0 || len(reading.RunningAdapters) >= reading.MaxAdapters {
		return
	}
	for i := len(a.slots[n].resident) - 1; i >= 0; i-- {
		r := a.slots[n].resident[i]
		name := &a.names[r.id]
		if name.kind == unproven && r.watched > 0 && r.due < at { // the names that the reading lists are proven by now
			a.setBase(r.id)
			return // the next reading finds the others
		}
	}
}

// cost is what it costs, in seconds, to serve an adapter at an endpoint where it is not resident: the time to load it,
// and the time to load the evicted adapter again, as far as that one is still wanted. full says that all slots are in
// use, or that other calls wait for the next one.
func (a *adapters) cost(n int32, now, loadTime float64) (cost float64, full bool) {
	free, victim := a.spare(n, now)
	switch {
	case a.slots[n].crowded(now):
		return 2 * loadTime, true
	case free > 0:
		return loadTime, false
	case victim >= 0:
		idle := max(0, now-a.slots[n].resident[victim].used)
		return loadTime * (1 + warmth/(warmth+idle)), false
	}
	return 2 * loadTime, true
}

// proven says whether an id is known to be an adapter's.
func (a *adapters) proven(id int32) bool { return a.names[id].kind == proven }

// rendezvous maps a name and an endpoint's key to a number from 0 to 1, evenly, and to the same number in every replica
// of the picker. The endpoint with the highest number is the name's home.
func rendezvous(name, key uint64) float64 {
	x := (name ^ key) * 0x9e3779b97f4a7c15 // the finaliser of splitmix64
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64(x^x>>31) / math.MaxUint64
}

// Hash is FNV-1a with 64 bits. It gives a name or a session the same number in every replica.
func Hash(text string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	return h
}
