package main

import (
	"fmt"
	"math"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/chart"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
)

// goal is a goal for the picker.
type goal struct {
	name string
	// got is the figure. bound is its upper limit or, with atLeast, its lower limit.
	got, bound float64
	atLeast    bool
	// where names the study of the figure, if there are several. oracle is the oracle's figure there, and alone that of the
	// function alone. work is the part of the time in which the servers would have to prefill.
	where         string
	oracle, alone float64
	work          float64
	// hindered says what holds back a goal that is not about several studies.
	hindered string
}

// hindrance says, with the run's figures, what holds a missed goal back.
func (g goal) hindrance() string {
	switch {
	case g.met():
		return ""
	case g.where == "":
		return g.hindered
	case !g.atLeast && g.alone > g.bound:
		return fmt.Sprintf("no picker can: an idle server with all before in its cache, for each call, has %.2f", g.alone)
	case g.work >= overloaded:
		return fmt.Sprintf("overload: with the oracle's cached share servers would prefill %.2f of the time, so waiting grows as long as the run lasts", g.work)
	case g.oracle >= g.bound && !g.atLeast:
		return fmt.Sprintf("the oracle has %.2f, an idle server for each call %.2f", g.oracle, g.alone)
	}
	return fmt.Sprintf("ours alone: the oracle has %.2f", g.oracle)
}

func (g goal) met() bool {
	if g.atLeast {
		return g.got >= g.bound
	}
	return g.got <= g.bound
}

func (g goal) verdict() string {
	if g.met() {
		return "met"
	}
	return "**MISSED**"
}

func (g goal) limit() string {
	if g.atLeast {
		return fmt.Sprintf("≥ %.2f", g.bound)
	}
	return fmt.Sprintf("≤ %.2f", g.bound)
}

// figure is a quantity in a run's summary.
type figure func(sim.Summary) float64

func mean(s sim.Summary) float64   { return s.Mean.Seconds() }
func p90(s sim.Summary) float64    { return s.P90.Seconds() }
func cached(s sim.Summary) float64 { return s.Cached }

// traceGoals are the goals on the real trace. The worst fleet counts, and separately the worst that is not overloaded: in
// overload, waiting grows for as long as the run lasts, whatever the picker.
func traceGoals(studies []traceStudy, r results) []goal {
	var all, held []traceStudy
	for _, s := range studies {
		if !goalSpeeds[s.speed] {
			continue
		}
		all = append(all, s)
		if s.utilisation(r.of(s.name, policy.Oracle.Name).Cached) < overloaded {
			held = append(held, s)
		}
	}
	reference, least, oracle := policy.Reference.Name, policy.LeastRequest.Name, policy.Oracle.Name
	var goals []goal
	for _, fleets := range []struct {
		name    string
		studies []traceStudy
	}{{"", all}, {", not overloaded", held}} {
		goals = append(goals,
			worst(fleets.studies, r, goal{name: "TTFT p90 / reference's" + fleets.name, bound: 0.35}, p90, reference),
			worst(fleets.studies, r, goal{name: "TTFT mean / reference's" + fleets.name, bound: 0.35}, mean, reference),
			worst(fleets.studies, r, goal{name: "TTFT p90 / least request's" + fleets.name, bound: 0.45}, p90, least),
			worst(fleets.studies, r, goal{name: "TTFT mean / least request's" + fleets.name, bound: 0.45}, mean, least),
			worst(fleets.studies, r, goal{name: "TTFT p90 / oracle's" + fleets.name, bound: 1.05}, p90, oracle),
			worst(fleets.studies, r, goal{name: "cached share / oracle's" + fleets.name, bound: 0.97, atLeast: true}, cached, oracle))
	}
	return goals
}

// overloaded is the utilisation from which a fleet counts as overloaded. Decoding and the constant part of steps take a
// tenth of a step that prefills. The rest is for uneven arrivals: the busiest ten minutes of the real trace have a tenth
// more calls than the mean.
const overloaded = 0.8

// worst completes a goal that bounds the ratio of our figure to another policy's.
func worst(studies []traceStudy, r results, g goal, f figure, other string) goal {
	g.got = math.Inf(-1)
	if g.atLeast {
		g.got = math.Inf(1)
	}
	for _, s := range studies {
		base := f(r.of(s.name, other).Summary)
		q := f(r.of(s.name, policy.Ours.Name).Summary) / base
		if g.atLeast == (q < g.got) {
			g.got, g.where = q, s.name
			g.alone = f(s.alone) / base
			g.work = s.utilisation(r.of(s.name, policy.Oracle.Name).Cached)
			g.oracle = f(r.of(s.name, policy.Oracle.Name).Summary) / base
		}
	}
	return g
}

// heldAt is the TTFT p90 up to which a fleet holds its load, in seconds.
const heldAt = 2

// held returns the most calls a second that a policy serves with a TTFT p90 within the limit, interpolated between the
// measured loads; 0 if it does not hold even the least load.
func held(curve []chart.Point) float64 {
	last := chart.Point{}
	for i, p := range curve {
		if p.Y > heldAt {
			if i == 0 {
				return 0
			}
			return last.X + (heldAt-last.Y)/(p.Y-last.Y)*(p.X-last.X)
		}
		last = p
	}
	return last.X
}

func loadGoals(l loadCurve) []goal {
	return []goal{l.goal(policy.Reference.Name, 1.5), l.goal(policy.LeastRequest.Name, 2)}
}

// goal is the goal that ours holds a multiple of the load that another policy holds.
func (l loadCurve) goal(other string, bound float64) goal {
	ours, theirs, oracle := held(l.curves[policy.Ours.Name]), held(l.curves[other]), held(l.curves[policy.Oracle.Name])
	return goal{
		name: fmt.Sprintf("calls/s held / %s's, %s", other, l.name),
		got:  ours / theirs, bound: bound, atLeast: true,
		hindered: fmt.Sprintf("at %.1f calls/s, as wanted, the oracle has a TTFT p90 of %.1f s, and holds %.2f times what %s does",
			bound*theirs, at(l.curves[policy.Oracle.Name], bound*theirs), oracle/theirs, other),
	}
}

// at returns the height of a curve at x, interpolated between its points and level beyond them.
func at(curve []chart.Point, x float64) float64 {
	for i, p := range curve {
		if x > p.X {
			continue
		}
		if i == 0 {
			return p.Y
		}
		last := curve[i-1]
		return last.Y + (x-last.X)/(p.X-last.X)*(p.Y-last.Y)
	}
	return curve[len(curve)-1].Y
}

// chance is the difference that two equally good runs may have.
const chance = 0.01

// patienceGoals require that our rule's addition to the plain rule gains in one study and loses in none. Both compared
// policies know the servers' true state.
func patienceGoals(studies []study, r results) []goal {
	best := goal{name: "beyond the greedy rule: TTFT p90 or mean / the plain rule's, where best", got: math.Inf(1), bound: 0.9}
	worst := goal{name: "beyond the greedy rule: the same, where worst", got: math.Inf(-1), bound: 1 + chance}
	for _, s := range studies {
		plain, patient := r.of(s.name, policy.Oracle.Name), r.of(s.name, policy.Patient.Name)
		for _, f := range []figure{p90, mean} {
			q := f(patient.Summary) / f(plain.Summary)
			if q < best.got {
				best.got = q
			}
			if q > worst.got {
				worst.got, worst.hindered = q, "on "+s.name
			}
		}
	}
	return []goal{best, worst}
}

// otherGoals are the goals on the synthetic workloads.
func otherGoals(r results) []goal {
	ours := func(study string) result { return r.of(study, policy.Ours.Name) }
	const others = 7
	proportion := (1.0 / 3) / (others + 1.0/3)
	return []goal{
		{name: "bursts: busiest server / mean", got: ours(burstsName).busiest, bound: 2},
		{name: "bursts: cached share / oracle's", got: ours(burstsName).Cached / r.of(burstsName, policy.Oracle.Name).Cached, bound: 0.8, atLeast: true},
		{name: "15 adapters: calls that find theirs resident", got: ours(fewAdapters).Resident, bound: 0.95, atLeast: true},
		{name: "slowed server: its share / in proportion, from 10 s on", got: ours(slowedName).first / proportion, bound: 1.1},
		{name: "slowed server: TTFT p90 / without it", got: p90(ours(slowedName).Summary) / p90(ours(withoutName).Summary), bound: 1.3},
	}
}

// harderGoals are the goals with servers and callers that misbehave.
func harderGoals(r results) []goal {
	ours := func(study string) result { return r.of(study, policy.Ours.Name) }
	oracle := func(study string) result { return r.of(study, policy.Oracle.Name) }
	told := func(study string) result { return r.of(study, policy.Precise.Name) }
	speeds := goal{name: "unknown speeds: TTFT p90 / oracle's, where worst", bound: 1.1}
	for _, name := range []string{slowFleet, fastFleet, mixedFleet} {
		if q := p90(ours(name).Summary) / p90(oracle(name).Summary); q > speeds.got {
			speeds.got, speeds.hindered = q, "on "+name
		}
	}
	return []goal{
		speeds,
		{name: "callers who leave: cached share / oracle's", got: ours(leaveName).Cached / oracle(leaveName).Cached, bound: 0.98, atLeast: true},
		{name: "one server fails: answers with an error, a call", got: ours(failName).Failed, bound: 0.01},
		{name: "one server hangs: TTFT p90 / without it", got: p90(ours(hangName).Summary) / p90(ours(lackName).Summary), bound: 1.1},
		{name: "one server hangs: calls that end without a token / least request's", got: ours(hangName).Lost / r.of(hangName, policy.LeastRequest.Name).Lost, bound: 0.1},
		{name: "a foreign client, with events: cached share / oracle's", got: told(foreign).Cached / oracle(foreign).Cached, bound: 0.98, atLeast: true},
		{name: "one with the same documents, with events: cached share / oracle's", got: told(sameName).Cached / oracle(sameName).Cached, bound: 0.98, atLeast: true},
		{name: "a foreign client: cached share / oracle's", got: ours(foreign).Cached / oracle(foreign).Cached, bound: 0.98, atLeast: true},
	}
}
