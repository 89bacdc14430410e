package main

import (
	"fmt"
	"math"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/chart"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
)

// goal is one thing that the picker is to achieve.
type goal struct {
	name string
	// got is the figure, and bound the one that it must not exceed, or, where atLeast, not fall short of.
	got, bound float64
	atLeast    bool
	// where says on which study it was got, if there are several, oracle what the oracle gets there, and alone what
	// each call would have for itself; work is the part of the time in which the servers there would have to prefill.
	where         string
	oracle, alone float64
	work          float64
	// hindered says what holds back a goal that is not of several studies.
	hindered string
}

// hindrance says by the run's figures what holds a missed goal back.
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

// figure is a quantity of a run.
type figure func(sim.Summary) float64

func mean(s sim.Summary) float64   { return s.Mean.Seconds() }
func p90(s sim.Summary) float64    { return s.P90.Seconds() }
func cached(s sim.Summary) float64 { return s.Cached }

// traceGoals compare on the real trace; the worst of all fleets counts, and besides the worst of those that are not
// overloaded: where more arrives than can be served, waiting grows for as long as the run lasts, whoever picks.
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

// overloaded is the utilisation from which a fleet is taken to be given more than it can serve. What is left of the time
// is what decoding and the constant part of steps take, a tenth of a step that prefills, and what uneven arrivals need:
// the busiest ten minutes of the real trace have a tenth more than the mean.
const overloaded = 0.8

// worst fills in a goal that bounds the quotient of our figure and another policy's.
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

// heldAt is the TTFT p90 at which a fleet counts as holding its load, in seconds.
const heldAt = 2

// held is the most calls a second that a policy serves with a TTFT p90 within the limit, interpolated between the
// loads that were measured; 0 where it holds not even the least of them.
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

// goal is that ours holds so many times the load that another policy holds.
func (l loadCurve) goal(other string, bound float64) goal {
	ours, theirs, oracle := held(l.curves[policy.Ours.Name]), held(l.curves[other]), held(l.curves[policy.Oracle.Name])
	return goal{
		name: fmt.Sprintf("calls/s held / %s's, %s", other, l.name),
		got:  ours / theirs, bound: bound, atLeast: true,
		hindered: fmt.Sprintf("at %.1f calls/s, as wanted, the oracle has a TTFT p90 of %.1f s, and holds %.2f times what %s does",
			bound*theirs, at(l.curves[policy.Oracle.Name], bound*theirs), oracle/theirs, other),
	}
}

// at is the height of a curve at x, interpolated between its points and level beyond them.
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

// chance is by how much two runs of equal worth may differ.
const chance = 0.01

// patienceGoals are that what our rule has beyond the plain one gains somewhere and loses nowhere. Both sides of the
// comparison know all.
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

// otherGoals are those on the workloads that no trace tells of.
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
