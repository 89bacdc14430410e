package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// severalStudy is a workload under one picker and under several.
type severalStudy struct {
	study
	title string
	// deaths are the same workload up to a moment after its picker dies, at different times.
	deaths []study
}

const (
	// mostPickers is the number of pickers, and shards the number of parts of a pool, for the goals.
	mostPickers, shards = 10, 4
	// soonAfter and after are for how long calls count after a picker's death.
	soonAfter, after = 5 * time.Second, 30 * time.Second
)

// fewAndMost are the numbers of pickers that are compared with one.
var fewAndMost = []int{2, 4, mostPickers}

// severalPolicies are those of a severalStudy, one picker first.
func severalPolicies(counts []int) []policy.Policy {
	all := []policy.Policy{policy.Unheld}
	for _, n := range counts {
		all = append(all, policy.Pinned(n))
	}
	for _, n := range counts {
		all = append(all, policy.Shared(n, true))
	}
	for _, n := range counts {
		all = append(all, policy.Shared(n, false))
	}
	return append(all, policy.Split(shards), policy.SplitUnevenly(shards))
}

// severalStudies are the real trace on the largest fleet, with caches of 20 %, and two synthetic workloads. As recorded, many
// calls of the trace come at the same instant, and replicas cannot hear of each other's in time however short the delay is. So
// it is also measured with calls spread over their 3 s.
func severalStudies(s scale, seed uint64, trace []workload.Call) []severalStudy {
	var all []severalStudy
	add := func(title string, fleet sim.Fleet, calls []workload.Call, counts ...int) {
		one := severalStudy{title: title, study: study{name: "several pickers: " + title, fleet: fleet, calls: calls, policies: severalPolicies(counts)}}
		for k := range s.deaths {
			one.deaths = append(one.deaths, one.withDeath(float64(k+1)/float64(s.deaths+1)))
		}
		all = append(all, one)
	}
	if len(trace) > 0 {
		n := slices.Max(s.sizes)
		fleet := fleetOf(n, 0.2, trace)
		add(traceName(1, n, 0.2), fleet, trace, fewAndMost...)
		add(traceName(2, n, 0.2), fleet, workload.Faster(trace, 2), mostPickers)
		add(traceName(2, n, 0.2)+", spread", fleet, workload.Faster(workload.Spread(seed, trace, 3*time.Second), 2), mostPickers)
	}
	add("chats", plain(8, 1000), workload.Chats(seed, 6, s.lasts), fewAndMost...)
	add("documents", plain(8, 1000), workload.Documents(seed, 400, 8, s.lasts), fewAndMost...)
	return all
}

// withDeath is the study in which the picker dies after a part of the time, 0 to 1. Only the calls after that count, and those
// that come long after are left out.
func (s study) withDeath(part float64) study {
	dies := time.Duration(part * float64(s.calls[len(s.calls)-1].At))
	n, _ := slices.BinarySearchFunc(s.calls, dies+after, func(c workload.Call, t time.Duration) int { return cmp.Compare(c.At, t) })
	return study{
		name:     fmt.Sprintf("%s, a picker dies at %s", s.name, dies),
		fleet:    s.fleet,
		calls:    s.calls[:n],
		from:     dies,
		keep:     true,
		policies: []policy.Policy{policy.Unheld, policy.Failover(dies, true), policy.Failover(dies, false)},
	}
}

// followed summarises the calls that came within a time after each death, under one policy.
func (s severalStudy) followed(r results, policy string, within time.Duration) sim.Summary {
	var calls []sim.Outcome
	for _, d := range s.deaths {
		for _, o := range r.of(d.name, policy).kept {
			if o.At < d.from+within {
				calls = append(calls, o)
			}
		}
	}
	return sim.Summarize(calls)
}

// severalRow is what calls had under several pickers, and the same calls under one.
type severalRow struct {
	name     string
	got, one sim.Summary
}

func (s severalStudy) rows(r results) []severalRow {
	one := r.of(s.name, policy.Unheld.Name).Summary
	rows := []severalRow{{"1 picker", one, one}}
	for _, p := range s.policies[1:] {
		rows = append(rows, severalRow{p.Name, r.of(s.name, p.Name).Summary, one})
	}
	for _, told := range []bool{true, false} {
		name := policy.Failover(0, told).Name
		for _, within := range []time.Duration{soonAfter, after} {
			rows = append(rows, severalRow{
				name: fmt.Sprintf("%s, the next %.0f s", name, within.Seconds()),
				got:  s.followed(r, name, within), one: s.followed(r, policy.Unheld.Name, within),
			})
		}
	}
	return rows
}

// table has a row for each number of pickers and how calls are divided among them.
func (s severalStudy) table(r results) [][]string {
	table := [][]string{{s.title, "TTFT p90, s", "/ one's", "TTFT mean, s", "/ one's", "Cached share", "/ one's"}}
	for _, row := range s.rows(r) {
		cells := []string{row.name}
		for _, f := range []struct {
			figure figure
			format string
		}{{p90, "%.2f"}, {mean, "%.2f"}, {cached, "%.3f"}} {
			got := f.figure(row.got)
			cells = append(cells, fmt.Sprintf(f.format, got), fmt.Sprintf("%.3f", got/f.figure(row.one)))
		}
		table = append(table, cells)
	}
	return table
}

// severalGoals are the goals of several pickers against one.
func severalGoals(studies []severalStudy, r results) []goal {
	pinned, split := policy.Pinned(mostPickers).Name, policy.Split(shards).Name
	ratio := func(f figure, of string) func(severalStudy) float64 {
		return func(s severalStudy) float64 {
			return f(r.of(s.name, of).Summary) / f(r.of(s.name, policy.Unheld.Name).Summary)
		}
	}
	return []goal{
		worstOf(studies, goal{name: pinned + ": TTFT p90 / one picker's", bound: 1.03}, ratio(p90, pinned)),
		worstOf(studies, goal{name: pinned + ": cached share / one picker's", bound: 0.97, atLeast: true}, ratio(cached, pinned)),
		worstOf(studies, goal{name: split + ": TTFT p90 / one picker's", bound: 1.1}, ratio(p90, split)),
		worstOf(studies, goal{name: split + ": cached share / one picker's", bound: 0.95, atLeast: true}, ratio(cached, split)),
		worstOf(studies, goal{name: "failover: cached share of the next 5 s / one picker's", bound: 0.95, atLeast: true}, func(s severalStudy) float64 {
			return s.followed(r, policy.Failover(0, true).Name, soonAfter).Cached / s.followed(r, policy.Unheld.Name, soonAfter).Cached
		}),
	}
}

// worstOf completes a goal by the study that misses it by most, or meets it by least.
func worstOf(studies []severalStudy, g goal, figure func(severalStudy) float64) goal {
	g.got = math.Inf(-1)
	if g.atLeast {
		g.got = math.Inf(1)
	}
	for _, s := range studies {
		if q := figure(s); g.atLeast == (q < g.got) {
			g.got, g.hindered = q, "on "+s.title
		}
	}
	return g
}
