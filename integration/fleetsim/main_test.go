package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/chart"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// tiny runs all studies in a second.
var tiny = scale{
	sizes: []int{4}, caches: []float64{0.2}, speeds: []float64{1}, loads: []float64{1, 4},
	lasts: 3 * time.Minute, bursts: 1, calls: 300, deaths: 1,
}

// tables measures everything on a trace and returns the printed tables.
func tables(t *testing.T, trace []workload.Call) string {
	t.Helper()
	var out bytes.Buffer
	r := &report{scale: tiny, seed: 1, trace: trace, w: &out}
	if err := r.measure(policy.All()); err != nil {
		t.Fatal(err)
	}
	r.print()
	return out.String()
}

func TestOutputIsTheSameEveryTime(t *testing.T) {
	trace := workload.Documents(1, 50, 3, 2*time.Minute)
	first := tables(t, trace)
	if diff := cmp.Diff(first, tables(t, trace)); diff != "" {
		t.Errorf("a second run prints something else (-first +second):\n%s", diff)
	}
	for _, want := range []string{"1× on 4, caches 20 %", "Calls/s held", burstsName, "TTFT p90 / reference's", "cached share / oracle's", "## Several pickers", "4 pickers, shared, without events", "failover, the next 5 s"} {
		if !strings.Contains(first, want) {
			t.Errorf("%q is not in the output", want)
		}
	}
}

func TestWithoutTrace(t *testing.T) {
	out := tables(t, nil)
	if strings.Contains(out, "The real trace") || !strings.Contains(out, burstsName) {
		t.Errorf("without a trace there should be the synthetic workloads and no others:\n%s", out)
	}
}

func TestRunRefuses(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "trace.jsonl")
	if err := os.WriteFile(broken, []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	if err := run([]string{"-trace", broken}, &bytes.Buffer{}, &stderr); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("run with a broken trace gave %v, want an error that names its line", err)
	}
	if err := run([]string{"-nonsense"}, &bytes.Buffer{}, &stderr); err == nil {
		t.Error("run took an unknown flag")
	}
}

func TestSave(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "quality")
	r := &report{scale: tiny, seed: 1, trace: workload.Documents(1, 50, 3, time.Minute), w: &bytes.Buffer{}}
	if err := r.measure([]policy.Policy{policy.Ours, policy.Oracle}); err != nil {
		t.Fatal(err)
	}
	if err := r.save(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range chartOrder {
		if !strings.Contains(string(text), "("+name+")") {
			t.Errorf("the page does not show %s", name)
		}
		if svg, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Contains(svg, []byte("<polyline")) {
			t.Errorf("%s is no chart with lines: %v", name, err)
		}
	}
}

func TestHeld(t *testing.T) {
	tests := map[string]struct {
		curve []chart.Point
		want  float64
	}{
		"between two loads":     {[]chart.Point{{X: 1, Y: 1}, {X: 3, Y: 1.5}, {X: 5, Y: 2.5}, {X: 7, Y: 1}}, 4},
		"not even the least":    {[]chart.Point{{X: 1, Y: 2.1}, {X: 2, Y: 1}}, 0},
		"all that was measured": {[]chart.Point{{X: 1, Y: 1}, {X: 3, Y: 2}}, 3},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := held(test.curve); got != test.want {
				t.Errorf("held gave %g, want %g", got, test.want)
			}
		})
	}
}

func TestTraceGoalsTakeTheWorstFleet(t *testing.T) {
	calls := []workload.Call{{Prompt: 8000}, {At: time.Second, Prompt: 8000}}
	studies := []traceStudy{
		{study: study{name: "light", fleet: plain(8, 100), calls: calls}, speed: 1},
		{study: study{name: "heavy", fleet: plain(1, 100), calls: calls}, speed: 2},
		{study: study{name: "beyond the goals", fleet: plain(1, 100), calls: calls}, speed: 4},
	}
	r := results{}
	for i, s := range studies {
		for _, p := range policy.All() {
			sum := sim.Summary{Mean: time.Second, P90: 10 * time.Second, Cached: 0.5}
			if p.Name == policy.Ours.Name {
				sum = sim.Summary{Mean: 200 * time.Millisecond, P90: time.Duration(i+2) * time.Second, Cached: 0.5 - 0.1*float64(i)}
			}
			r[[2]string{s.name, p.Name}] = result{Summary: sum}
		}
	}
	got := map[string]float64{}
	where := map[string]string{}
	for _, g := range traceGoals(studies, r) {
		got[g.name], where[g.name] = g.got, g.where
	}
	for name, want := range map[string]float64{
		"TTFT p90 / reference's":                  0.3,
		"TTFT p90 / reference's, not overloaded":  0.2,
		"TTFT mean / least request's":             0.2,
		"cached share / oracle's":                 0.8,
		"cached share / oracle's, not overloaded": 1,
	} {
		if !cmp.Equal(got[name], want, cmpopts.EquateApprox(0, 1e-9)) {
			t.Errorf("%s is %g, want %g", name, got[name], want)
		}
	}
	if where["TTFT p90 / reference's"] != "heavy" {
		t.Errorf("the worst p90 is on %q, want heavy", where["TTFT p90 / reference's"])
	}
}

func TestHindrance(t *testing.T) {
	for name, test := range map[string]struct {
		goal goal
		want string
	}{
		"met":                      {goal{got: 0.3, bound: 0.35, where: "x", alone: 0.5}, ""},
		"beyond any picker":        {goal{got: 0.5, bound: 0.35, where: "x", alone: 0.4, oracle: 0.5}, "no picker can: "},
		"more than can be served":  {goal{got: 0.5, bound: 0.35, where: "x", alone: 0.1, oracle: 0.5, work: 1.4}, "overload: "},
		"the oracle misses it too": {goal{got: 0.5, bound: 0.35, where: "x", alone: 0.1, oracle: 0.5, work: 0.5}, "the oracle has 0.50, "},
		"the oracle does not":      {goal{got: 0.5, bound: 0.35, where: "x", alone: 0.1, oracle: 0.3, work: 0.5}, "ours alone: the oracle has 0.30"},
		"too little of something":  {goal{got: 0.9, bound: 0.97, atLeast: true, where: "x", oracle: 1, alone: 2}, "ours alone: the oracle has 1.00"},
		"of one curve":             {goal{got: 1.3, bound: 1.5, atLeast: true, hindered: "this"}, "this"},
	} {
		if got := test.goal.hindrance(); !strings.HasPrefix(got, test.want) || (test.want == "") != (got == "") {
			t.Errorf("%s: held back by %q, want %q", name, got, test.want)
		}
	}
}

func TestAt(t *testing.T) {
	curve := []chart.Point{{X: 1, Y: 1}, {X: 3, Y: 2}}
	for x, want := range map[float64]float64{0: 1, 1: 1, 2: 1.5, 3: 2, 5: 2} {
		if got := at(curve, x); got != want {
			t.Errorf("at %g the curve is %g high, want %g", x, got, want)
		}
	}
}

func TestGoalVerdicts(t *testing.T) {
	for name, test := range map[string]struct {
		goal goal
		want string
	}{
		"below an upper bound": {goal{got: 0.3, bound: 0.35}, "met"},
		"above an upper bound": {goal{got: 0.4, bound: 0.35}, "**MISSED**"},
		"above a lower bound":  {goal{got: 0.98, bound: 0.97, atLeast: true}, "met"},
		"below a lower bound":  {goal{got: 0.96, bound: 0.97, atLeast: true}, "**MISSED**"},
	} {
		if got := test.goal.verdict(); got != test.want {
			t.Errorf("%s: verdict is %s, want %s", name, got, test.want)
		}
	}
}
