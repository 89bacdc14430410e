package main

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/chart"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// study is one workload on one fleet.
type study struct {
	name  string
	fleet sim.Fleet
	calls []workload.Call
	// from excludes the calls before it, where only the end of a run counts.
	from time.Duration
	// window is the time over which busiest is measured; 0 is the whole run.
	window time.Duration
	// policies are those that run it; nil are those that are compared on all studies.
	policies []policy.Policy
	// keep keeps the outcomes.
	keep bool
}

// result is the outcome of one study under one policy.
type result struct {
	sim.Summary
	// busiest is the most calls of any server in a window, as a multiple of the mean.
	busiest float64
	// first is server 0's part of the calls.
	first float64
	// share is the cached part of the prompt tokens, over time in minutes.
	share []chart.Point
	// kept are the outcomes, where the study keeps them.
	kept []sim.Outcome
}

// utilisation is the part of the time in which the servers prefill, if the given part of the prompts is cached.
func (s study) utilisation(cached float64) float64 {
	if len(s.calls) == 0 {
		return 0
	}
	lasts := (s.calls[len(s.calls)-1].At - s.calls[0].At).Seconds()
	return float64(workload.Tokens(s.calls)) * (1 - cached) / s.fleet.Server.PrefillRate / float64(s.fleet.Servers) / lasts
}

// results are indexed by the names of study and policy.
type results map[[2]string]result

func (r results) of(study, policy string) result { return r[[2]string{study, policy}] }

// measure runs each study under its policies, as many at a time as there are processors. The order in which runs end does
// not affect the results.
func measure(studies []study, policies []policy.Policy, seed uint64) (results, error) {
	type job struct {
		study  study
		policy policy.Policy
	}
	var (
		done    = results{}
		failed  []error
		mu      sync.Mutex
		workers sync.WaitGroup
		next    = make(chan job)
	)
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for j := range next {
				outcomes, err := sim.Run(j.study.fleet, j.study.calls, j.policy, seed)
				r := j.study.digest(outcomes)
				mu.Lock()
				if err != nil {
					failed = append(failed, fmt.Errorf("%s under %s: %w", j.study.name, j.policy.Name, err))
				}
				done[[2]string{j.study.name, j.policy.Name}] = r
				mu.Unlock()
			}
		})
	}
	for _, s := range studies {
		own := s.policies
		if own == nil {
			own = policies
		}
		for _, p := range own {
			next <- job{s, p}
		}
	}
	close(next)
	workers.Wait()
	slices.SortFunc(failed, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return done, errors.Join(failed...)
}

// digest extracts from a run what tables and charts need.
func (s study) digest(outcomes []sim.Outcome) result {
	i, _ := slices.BinarySearchFunc(outcomes, s.from, func(o sim.Outcome, t time.Duration) int { return cmp.Compare(o.At, t) })
	outcomes = outcomes[i:]
	r := result{Summary: sim.Summarize(outcomes)}
	if len(outcomes) == 0 {
		return r
	}
	if s.keep {
		r.kept = outcomes
	}
	r.first = sim.Shares(outcomes)[0]
	for _, part := range windows(outcomes, s.window) {
		r.busiest = max(r.busiest, slices.Max(sim.Shares(part))*float64(s.fleet.Servers))
	}
	for _, part := range windows(outcomes, 3*time.Minute) {
		r.share = append(r.share, chart.Point{X: part[0].At.Minutes(), Y: sim.Summarize(part).Cached})
	}
	return r
}

// windows divides outcomes, which are in the order of arrival, by the time of arrival.
func windows(outcomes []sim.Outcome, length time.Duration) [][]sim.Outcome {
	if length == 0 {
		return [][]sim.Outcome{outcomes}
	}
	var out [][]sim.Outcome
	for len(outcomes) > 0 {
		end := (outcomes[0].At/length + 1) * length
		n, _ := slices.BinarySearchFunc(outcomes, end, func(o sim.Outcome, t time.Duration) int { return cmp.Compare(o.At, t) })
		out = append(out, outcomes[:n])
		outcomes = outcomes[n:]
	}
	return out
}
