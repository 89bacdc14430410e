package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Tenants of the overload studies.
const (
	meek = 1 // sends half of its share
	hog  = 2 // sends ten times its share
)

// Names of the overload studies.
const (
	twice     = "trace 2× on 8"
	fourTimes = "trace 4× on 8"
	serverOff = "trace 2× on 8, then 7"
	meekAlone = "a tenant with half of its share, alone"
	besideHog = "beside one that sends ten times its share"
	besideLow = "beside such a one of a negative priority"
	lowAlone  = "the one of a negative priority, alone"
)

// lowRules give the hog's calls a negative priority.
var lowRules = policy.Ruled(policy.Namespace(hog) + "/* priority=-1")

// soon is the time within which calls should be served.
const soon = 10 * time.Second

// overloadStudies are more calls than the fleet can serve: of the trace, and of two tenants, of whom one floods.
func overloadStudies(s scale, seed uint64, trace []workload.Call) []study {
	var all []study
	if len(trace) > 0 {
		fleet := fleetOf(8, 0.2, trace)
		two, four := workload.Faster(trace, 2), workload.Faster(trace, 4)
		lost := fleet
		lost.Changes = []sim.Change{{At: two[len(two)/2].At, Server: 0, Kind: sim.Leave}}
		both := []policy.Policy{policy.Reference, policy.Unheld, policy.Ours}
		all = append(all,
			study{name: twice, fleet: fleet, calls: two, policies: both, keep: true},
			study{name: fourTimes, fleet: fleet, calls: four, policies: both, keep: true},
			study{name: serverOff, fleet: lost, calls: two, policies: both, keep: true})
	}
	lasts := min(s.lasts, 10*time.Minute)
	own := workload.By(meek, workload.Independent(seed, 4, lasts)) // 8 servers prefill 16 of them a second, and answer 13
	flood := workload.By(hog, workload.Independent(seed+1, 65, lasts))
	together := workload.Merged(own, flood)
	fleet := plain(8, 1000)
	return append(all,
		study{name: meekAlone, fleet: fleet, calls: own, policies: []policy.Policy{policy.Ours}, keep: true},
		study{name: besideHog, fleet: fleet, calls: together, policies: []policy.Policy{policy.Unheld, policy.Ours}, keep: true},
		study{name: besideLow, fleet: fleet, calls: together, policies: []policy.Policy{lowRules}, keep: true},
		study{name: lowAlone, fleet: fleet, calls: flood, policies: []policy.Policy{lowRules}, keep: true})
}

// served is what an overloaded fleet served of some calls.
type served struct {
	part, soon, late float64 // parts of the calls: served, served soon, refused after a second or more
	p90              float64 // seconds, of the served ones
	tokens, computed float64 // a second, of prompts and answers, and of prompts that were prefilled
}

// servedOf sums up the outcomes of the calls of a tenant, or of all for 0. Tokens count up to the last call's arrival: what is served later
// did not take the servers' time from other calls.
func servedOf(calls []workload.Call, outcomes []sim.Outcome, tenant int) served {
	var out served
	var times []float64
	end := calls[len(calls)-1].At
	n := 0.0
	for i := range calls {
		c, o := &calls[i], &outcomes[i]
		if tenant != 0 && c.Tenant != tenant {
			continue
		}
		n++
		if o.Refused {
			if o.TTFT() >= time.Second {
				out.late++
			}
			continue
		}
		out.part++
		times = append(times, o.TTFT().Seconds())
		if o.TTFT() <= soon {
			out.soon++
		}
		if o.First <= end {
			out.computed += float64(o.Prompt - o.Cached)
		}
		if o.Last <= end {
			out.tokens += float64(c.Prompt + c.Output)
		}
	}
	slices.Sort(times)
	if len(times) > 0 {
		out.p90 = times[(len(times)*9+9)/10-1]
	}
	out.part, out.soon, out.late = out.part/n, out.soon/n, out.late/n
	out.tokens, out.computed = out.tokens/end.Seconds(), out.computed/end.Seconds()
	return out
}

// overloadRow is what one policy served of a study's calls.
type overloadRow struct {
	study, policy string
	tenant        int
}

func (r *report) servedIn(row overloadRow) served {
	for _, s := range r.overload {
		if s.name == row.study {
			return servedOf(s.calls, r.results.of(row.study, row.policy).kept, row.tenant)
		}
	}
	return served{}
}

func (r *report) overloadTable() {
	r.heading("More calls than can be served", fmt.Sprintf("On 8 servers, the trace with caches of 20 %%. The picker holds calls until a server would begin with them soon, lets the shortest go first and callers share what calls cost, and refuses those whose turn would come after %s; next to the same picker that sends all calls at once, as the others do. One tenant sends half of what it could have, the other ten times that. Tokens are those of prompts and answers.", 30*time.Second))
	rows := [][]string{{"", "Picker", "Served", fmt.Sprintf("Within %s", soon), "TTFT p90 of those, s", "Tokens/s", "Prefilled tokens/s", "Refused after waiting"}}
	for _, s := range r.overload {
		for _, p := range s.policies {
			tenants := []int{0}
			if s.name == besideHog || s.name == besideLow {
				tenants = []int{meek, hog}
			}
			for _, t := range tenants {
				x := r.servedIn(overloadRow{s.name, p.Name, t})
				rows = append(rows, []string{s.name + [...]string{"", ": the one", ": the other"}[t], p.Name, fmt.Sprintf("%.3f", x.part), fmt.Sprintf("%.3f", x.soon),
					fmt.Sprintf("%.2f", x.p90), fmt.Sprintf("%.0f", x.tokens), fmt.Sprintf("%.0f", x.computed), fmt.Sprintf("%.3f", x.late)})
			}
		}
	}
	writeTable(r.w, rows)
}

// overloadGoals are the goals in overload, and that nothing waits without need where there is none.
func (r *report) overloadGoals() []goal {
	of := func(study string, p policy.Policy, tenant int) served {
		return r.servedIn(overloadRow{study, p.Name, tenant})
	}
	var goals []goal
	if len(r.trace) > 0 {
		before, now := of(twice, policy.Unheld, 0), of(twice, policy.Ours, 0)
		goals = append(goals,
			goal{name: "overload, trace 2× on 8: TTFT p90 of what is served / without holding", got: now.p90 / before.p90, bound: 0.5},
			goal{name: "overload, trace 2× on 8: served within 10 s / without holding", got: now.soon / before.soon, bound: 1.3, atLeast: true},
			goal{name: "overload, trace 2× on 8: tokens / without holding", got: now.tokens / before.tokens, bound: 1, atLeast: true})
	}
	alone, beside := of(meekAlone, policy.Ours, 0), of(besideHog, policy.Ours, meek)
	low, left := of(besideLow, lowRules, meek), of(lowAlone, lowRules, 0).computed-alone.computed
	const atWork = "servers do not stop a prefill for another call, and each takes the next prompts into one step with it; a server that is kept free for some would idle for others"
	return append(goals,
		goal{name: "two tenants, one floods: the other's TTFT p90 / alone", got: beside.p90 / alone.p90, bound: 1.2, hindered: atWork},
		goal{name: "a flood of a negative priority: the others' TTFT p90 / alone", got: low.p90 / alone.p90, bound: 1.15, hindered: atWork},
		goal{name: "a flood of a negative priority: its prefill / what the others leave", got: of(besideLow, lowRules, hog).computed / left, bound: 0.9, atLeast: true})
}
