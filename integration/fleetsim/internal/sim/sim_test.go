package sim

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

func agents() []workload.Call { return workload.Agents(1, 0.3, 2*time.Minute) }

// The same run gives the same outcomes to the nanosecond, under every policy.
func TestRunIsDeterministic(t *testing.T) {
	fleet := Fleet{Servers: 4, Server: server.Default(500)}
	several := []policy.Policy{policy.Shared(3, true), policy.Failover(time.Minute, true)}
	for _, p := range append(policy.All(), several...) {
		t.Run(p.Name, func(t *testing.T) {
			first, err := Run(fleet, agents(), p, 7)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Run(fleet, agents(), p, 7)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(first, again, cmp.AllowUnexported(Outcome{})); diff != "" {
				t.Errorf("a second run differs (-first +second):\n%s", diff)
			}
		})
	}
}

func TestChanges(t *testing.T) {
	fleet := Fleet{Servers: 3, Server: server.Default(500), Changes: []Change{
		{At: 30 * time.Second, Server: 0, Kind: Leave},
		{At: 40 * time.Second, Server: 3, Kind: Join},
		{At: 60 * time.Second, Server: 1, Kind: Slow, Slowness: 10},
	}}
	calls := workload.Independent(1, 5, 2*time.Minute)
	for _, p := range policy.All() {
		t.Run(p.Name, func(t *testing.T) {
			outcomes, err := Run(fleet, calls, p, 1)
			if err != nil {
				t.Fatal(err)
			}
			var joined, slow, fast []Outcome
			for _, o := range outcomes {
				switch {
				case o.Server == 0 && o.At > 30*time.Second:
					t.Fatalf("a call at %s went to a server that left at 30s", o.At)
				case o.Server == 3 && o.First < 40*time.Second: // a call that came before may have waited for it
					t.Fatalf("a call at %s had its first token at %s from a server that joins at 40s", o.At, o.First)
				case o.Server == 3:
					joined = append(joined, o)
				case o.Server == 1 && o.At < 60*time.Second:
					fast = append(fast, o)
				case o.Server == 1:
					slow = append(slow, o)
				}
			}
			if len(joined) == 0 {
				t.Error("no call went to the server that joined")
			}
			// Round robin does not notice; other policies send the slow server fewer calls, or only short ones.
			if p.Name == policy.RoundRobin.Name && Summarize(slow).P50 < 3*Summarize(fast).P50 {
				t.Errorf("a server slowed ten times has a median of %s, before it had %s", Summarize(slow).P50, Summarize(fast).P50)
			}
		})
	}
}

// Servers in trouble, under every policy: each call ends once, and no more calls are lost than must be.
func TestTrouble(t *testing.T) {
	calls := workload.Patient(workload.Streamed(workload.Independent(1, 5, time.Minute)), 10*time.Second)
	for name, change := range map[string]Change{
		"fails": {At: 10 * time.Second, Kind: Fail},
		"sheds": {At: 10 * time.Second, Kind: Shed, Most: 1},
		"hangs": {At: 10 * time.Second, Kind: Hang},
	} {
		for _, p := range policy.All() {
			t.Run(name+"/"+p.Name, func(t *testing.T) {
				outcomes, err := Run(Fleet{Servers: 3, Server: server.Default(500), Changes: []Change{change}}, calls, p, 1)
				if err != nil {
					t.Fatal(err)
				}
				var failed, lost int
				for _, o := range outcomes {
					if o.Lost != (o.Lost && o.TTFT() > 0) || o.Last < o.First {
						t.Fatalf("an outcome is %+v", o)
					}
					failed += o.Failed
					if o.Lost {
						lost++
					}
					if change.Kind == Fail && !o.Lost && o.Server == 0 && o.At > change.At {
						t.Errorf("a server that fails answered: %+v", o)
					}
				}
				if (failed > 0) != (change.Kind != Hang) {
					t.Errorf("%d answers with an error", failed)
				}
				if change.Kind == Hang && p.Name == policy.RoundRobin.Name && lost < len(outcomes)/5 {
					t.Errorf("%d of %d calls are lost in round robin, want the third of most of the time", lost, len(outcomes))
				}
				if p.Name == policy.Ours.Name && (lost > len(outcomes)/20 || failed > 60) {
					t.Errorf("ours loses %d calls and meets %d errors", lost, failed)
				}
			})
		}
	}
}

// Callers who leave end their calls at that time, with what they had by then.
func TestCallersLeave(t *testing.T) {
	calls := workload.Leaving(1, workload.Streamed(workload.Independent(1, 5, time.Minute)), 0.5, time.Second)
	for _, p := range policy.All() {
		t.Run(p.Name, func(t *testing.T) {
			outcomes, err := Run(Fleet{Servers: 3, Server: server.Default(500)}, calls, p, 1)
			if err != nil {
				t.Fatal(err)
			}
			left, lost := 0, 0
			for i, o := range outcomes {
				if o.Left != (calls[i].Patience > 0 && o.Last == o.At+calls[i].Patience) {
					t.Fatalf("call %+v ended as %+v", calls[i], o)
				}
				if o.Left {
					left++
				}
				if o.Lost {
					lost++
				}
			}
			if left < 50 || lost < 5 || lost >= left {
				t.Errorf("of %d callers %d left, %d of them without a token", len(calls), left, lost)
			}
		})
	}
}

// In overload a picker that holds calls serves most of them soon, refuses the others, and ends each once, also of callers who leave while
// their calls wait.
func TestOverload(t *testing.T) {
	fleet := Fleet{Servers: 2, Server: server.Default(500)}
	calls := workload.Independent(1, 8, time.Minute) // twice what two servers can do
	unheld, err := Run(fleet, calls, policy.Unheld, 1)
	if err != nil {
		t.Fatal(err)
	}
	held, err := Run(fleet, calls, policy.Ours, 1)
	if err != nil {
		t.Fatal(err)
	}
	before, after := Summarize(unheld), Summarize(held)
	if before.Refused != 0 || after.Refused < 0.05 || after.Refused > 0.4 || after.P50 > before.P50/3 {
		t.Errorf("held, %.2f are refused and the median is %s; sent at once, %.2f and %s", after.Refused, after.P50, before.Refused, before.P50)
	}
	leaving := workload.Leaving(1, workload.Streamed(calls), 0.5, 2*time.Second)
	left, err := Run(fleet, leaving, policy.Ours, 1)
	if err != nil {
		t.Fatal(err)
	}
	waited := 0
	for i, o := range left {
		if o.Left && o.Last != o.At+leaving[i].Patience {
			t.Fatalf("call %+v ended as %+v", leaving[i], o)
		}
		if o.Left && !o.submitted {
			waited++
		}
	}
	if waited < 10 {
		t.Errorf("%d callers left while their calls waited", waited)
	}
}

// A foreign client's calls load the servers and are no outcomes.
func TestForeignClient(t *testing.T) {
	calls := workload.Independent(1, 3, time.Minute)
	fleet := Fleet{Servers: 3, Server: server.Default(500)}
	alone, err := Run(fleet, calls, policy.Ours, 1)
	if err != nil {
		t.Fatal(err)
	}
	fleet.Foreign = workload.Independent(2, 4, time.Minute)
	beside, err := Run(fleet, calls, policy.Ours, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(beside) != len(calls) {
		t.Fatalf("%d outcomes of %d calls", len(beside), len(calls))
	}
	if a, b := Summarize(alone).Mean, Summarize(beside).Mean; b < a*5/4 {
		t.Errorf("calls have their first token after %s beside a foreign client and %s without", b, a)
	}
	fleet.Foreign[0].Prompt = 1 << 30
	if _, err := Run(fleet, calls, policy.Ours, 1); err == nil || !strings.Contains(err.Error(), "foreign call 0") {
		t.Errorf("Run gave %v, want an error that names the foreign call", err)
	}
}

func TestRunRefusesWhatCannotBeServed(t *testing.T) {
	calls := []workload.Call{{Prompt: 10000, Output: 1}}
	_, err := Run(Fleet{Servers: 1, Server: server.Default(10)}, calls, policy.Random, 1)
	if err == nil || !strings.Contains(err.Error(), "needs 20 blocks of a cache of 10") {
		t.Errorf("Run gave %v, want an error that tells of the blocks", err)
	}
}

func TestSummarize(t *testing.T) {
	var outcomes []Outcome
	for i := range 10 {
		outcomes = append(outcomes, Outcome{
			First: time.Duration(i+1) * time.Second, Prompt: 100, Cached: 10 * (i % 2), Resident: i == 0, Server: i % 3,
		})
	}
	want := Summary{
		Calls: 10, Mean: 5500 * time.Millisecond, P50: 5 * time.Second, P90: 9 * time.Second, P99: 10 * time.Second,
		Cached: 0.05, Resident: 0.1,
	}
	if diff := cmp.Diff(want, Summarize(outcomes)); diff != "" {
		t.Errorf("Summarize differs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]float64{0.4, 0.3, 0.3}, Shares(outcomes), cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Errorf("Shares differ (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Summary{}, Summarize(nil)); diff != "" {
		t.Errorf("the summary of nothing differs (-want +got):\n%s", diff)
	}
}
