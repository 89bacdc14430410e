package admission

import (
	"math"
	"math/bits"
	"time"
)

const (
	// classes is the number of sizes by which arrivals are told apart: class i has the calls of less than 2^i tokens of work and at
	// least half of that.
	classes = 24
	// arrivalMemory is the time after which an arrival weighs 1/e, in seconds.
	arrivalMemory = 30
	// never is a time that no caller waits for, in seconds.
	never = 1e6
)

// arrivals are the calls that came of late, as the sums of their work by class, which decay.
type arrivals struct {
	work [classes]float64
	at   time.Duration
}

func classOf(work float64) int { return min(bits.Len(uint(max(0, work))), classes-1) }

func (a *arrivals) add(now time.Duration, work float64) {
	a.decay(now)
	a.work[classOf(work)] += work
}

func (a *arrivals) decay(now time.Duration) {
	keep := math.Exp(-max(0, now-a.at).Seconds() / arrivalMemory)
	for i := range a.work {
		a.work[i] *= keep
	}
	a.at = max(a.at, now)
}

// pace returns the work that came in a second, in tokens, in calls of classes below the given one.
func (a *arrivals) pace(now time.Duration, below int) float64 {
	sum := 0.0
	for _, w := range a.work[:below] {
		sum += w
	}
	return sum * math.Exp(-max(0, now-a.at).Seconds()/arrivalMemory) / arrivalMemory
}

// Forecast returns how long a call would wait in the line that comes at the time of the last Tick, until servers that together prefill
// so many tokens a second have done what goes before it: what waits, and, as long as it is not overtaken by age, what is still
// to come.
func (l *Line) Forecast(c *Call, speed float64) time.Duration {
	ahead, share := 0.0, speed
	for _, v := range l.levels {
		if v.priority > c.Priority {
			share -= v.came.pace(l.at, classes)
			for _, t := range v.tenants.waiting {
				ahead += t.work
			}
		}
	}
	v := l.level(c.Priority)
	own, weights := v.tenants.all[c.Tenant], c.Weight
	for _, t := range v.tenants.waiting {
		if t != own {
			weights += t.weight
		}
	}
	part := c.Weight / weights
	share = max(share*part, speed/never)
	ahead += v.ahead(own, c, l.aged)
	pace := func(int) float64 { return 0 }
	if own != nil {
		pace = func(below int) float64 { return own.came.pace(l.at, below) }
	}
	// What is ahead of the call in its own tenant's share of the servers. Others' calls take their own shares.
	seconds := min(until(ahead*part, share, c.Work, l.ageing, pace), never)
	return time.Duration(max(seconds, ahead/speed) * float64(time.Second))
}

// until returns the time, in seconds, in which servers of a speed do the work that is ahead and that of later calls which overtake a
// call of this work. After t seconds calls with less work than that less t·ageing do. Where nothing ages, all later shorter ones do.
func until(ahead, speed, work, ageing float64, pace func(below int) float64) float64 {
	t := 0.0
	for class := classOf(work); class > 0; class-- {
		least := math.Ldexp(0.5, class) // the class's least work
		lasts := never
		if ageing > 0 {
			lasts = max(0, (work-least)/ageing-t)
		}
		left := speed - pace(class)
		if left > 0 && ahead <= left*lasts {
			return t + ahead/left
		}
		ahead -= left * lasts
		t += lasts
	}
	return t + ahead/speed
}

// ahead returns the work, in tokens, of calls of the level that goes before a call of a tenant, if no other comes. Other tenants' calls do
// until those tenants have had as much as the call's own.
func (v *level) ahead(own *tenant, c *Call, aged float64) float64 {
	before, had := 0.0, v.tenants.virtual
	if own != nil {
		before, had = own.ahead(c, aged), max(own.had, had)
	}
	sum := before
	for _, t := range v.tenants.waiting {
		if t != own {
			sum += min(t.work, max(0, t.weight*(had+before/c.Weight-t.had)))
		}
	}
	return sum
}

// ahead returns the work of the tenant's calls that goes before a call of one of its callers.
func (t *tenant) ahead(c *Call, aged float64) float64 {
	before, had := 0.0, t.flows.virtual
	own := t.flows.all[c.Flow]
	if own != nil {
		before, had = own.calls.ahead(c.Work+aged), max(own.had, had)
	}
	sum := before
	for _, f := range t.flows.waiting {
		if f != own {
			sum += min(f.calls.work, max(0, f.weight*(had+before/c.Weight-f.had)))
		}
	}
	return sum
}
