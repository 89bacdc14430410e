package poolstate

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/kvevents"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// ears note whom they are to hear, and how often they began anew.
type ears struct {
	heard map[string]string // tenants by address
	began map[string]int
}

func (e *ears) Update(targets map[netip.AddrPort]kvevents.Target, gone []netip.AddrPort) {
	for _, a := range gone {
		delete(e.heard, a.String())
	}
	for a, t := range targets {
		if e.heard[a.String()] != t.Tenant {
			e.heard[a.String()] = t.Tenant
			e.began[a.String()]++
		}
	}
}

// Servers are heard as long as a pool asks for it, and anew for each pool that begins to ask: it does not know what was told before.
func TestWhoIsHeard(t *testing.T) {
	f, _ := newFleet(t)
	e := &ears{heard: map[string]string{}, began: map[string]int{}}
	f.HeardBy(e)
	events := picksettings.Defaults()
	events.PrefixEvents = true
	other := named("other/llama")
	const first, second = "10.0.0.1:8000", "10.0.0.2:8000"
	for _, step := range []struct {
		what string
		do   func()
		want map[string]string
		anew []string
	}{
		{"a pool that does not ask", func() { f.SetPool(pool.Pool{Name: llama}, numbered(1)) }, map[string]string{}, nil},
		{"it asks", func() { f.Configure(llama, events) }, map[string]string{first: "models"}, []string{first}},
		{"nothing changes", func() { f.Configure(llama, events) }, map[string]string{first: "models"}, nil},
		{"an endpoint joins", func() { f.SetPool(pool.Pool{Name: llama}, numbered(2)) }, map[string]string{first: "models", second: "models"}, []string{second}},
		{"another server takes its address", func() {
			f.SetPool(pool.Pool{Name: llama}, append(numbered(1), server("10.0.0.2:8000", "another")))
		}, map[string]string{first: "models", second: "models"}, []string{second}},
		{"another pool has it, too", func() { f.SetPool(pool.Pool{Name: other}, numbered(1)) }, map[string]string{first: "models", second: "models"}, nil},
		{"and asks", func() { f.Configure(other, events) }, map[string]string{first: "models", second: "models"}, []string{first}},
		{"an endpoint leaves", func() { f.SetPool(pool.Pool{Name: llama}, numbered(1)) }, map[string]string{first: "models"}, nil},
		{"and another comes", func() { f.SetPool(pool.Pool{Name: llama}, numbered(2)) }, map[string]string{first: "models", second: "models"}, []string{second}},
		{"the first pool is removed", func() { f.RemovePool(llama) }, map[string]string{first: "other"}, []string{first}},
		{"nobody asks any more", func() { f.Configure(other, picksettings.Defaults()) }, map[string]string{}, nil},
	} {
		clear(e.began)
		step.do()
		if diff := cmp.Diff(step.want, e.heard); diff != "" {
			t.Errorf("%s: heard are (-want +got):\n%s", step.what, diff)
		}
		if got := slices.Sorted(maps.Keys(e.began)); !slices.Equal(got, step.anew) {
			t.Errorf("%s: heard anew are %v, want %v", step.what, got, step.anew)
		}
	}
}
