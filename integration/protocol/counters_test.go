package protocol

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
)

// TestCountersTellOfPicks reads Envoy's counters as the controller does, with each door as a pool. They show picked calls,
// not the streams that a killed picker breaks, and within ten seconds that calls are no longer picked.
func TestCountersTellOfPicks(t *testing.T) {
	doors := []string{"waypoint counted open", "waypoint counted closed"}
	host, portText, err := net.SplitHostPort(the.envoy.Admin)
	must(t, err)
	port, err := strconv.Atoi(portText)
	must(t, err)
	at := waypointwatch.Waypoint{Name: types.NamespacedName{Namespace: "protocol", Name: "waypoint"}, Pods: []waypointwatch.Pod{{UID: "envoy", Address: netip.MustParseAddr(host)}}}
	for _, d := range append(doors, "none of the doors") {
		at.Pools = append(at.Pools, waypointwatch.Pool{Name: types.NamespacedName{Namespace: "protocol", Name: d}})
	}
	watch := waypointwatch.New(port,
		func(context.Context) ([]waypointwatch.Waypoint, error) { return []waypointwatch.Waypoint{at}, nil },
		func(context.Context, types.NamespacedName) {}, func(error) {})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		watch.Run(ctx, time.Second)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	of := func(door string) (waypointwatch.Verdict, waypointwatch.Counts) {
		return watch.Verdict(waypointwatch.Place{Pool: types.NamespacedName{Namespace: "protocol", Name: door}, Waypoint: at.Name})
	}
	await := func(want waypointwatch.Verdict) {
		t.Helper()
		start := time.Now()
		for _, d := range doors {
			eventually(t, fmt.Sprintf("verdict %+v on %s", want, d), func() bool { got, _ := of(d); return got == want })
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("verdict %+v took %s", want, took)
		}
	}

	await(waypointwatch.Verdict{State: waypointwatch.NotCalled})
	for range 20 {
		for _, d := range doors {
			if a := call(t, d, ask(d)); a.status != http.StatusOK {
				t.Errorf("%s: the answer is %d: %s", d, a.status, a.body)
			}
		}
	}
	await(waypointwatch.Verdict{State: waypointwatch.Picked})

	long := answering(t, doors[0], doors[0], doors[0], doors[0], doors[0], doors[0])
	time.Sleep(2 * time.Second) // counters are read while their streams are open
	the.pickers["counted"].Stop()
	for _, c := range long {
		c.ends(t)
	}
	time.Sleep(3 * time.Second)
	if verdict, counts := of(doors[0]); verdict.State != waypointwatch.Picked || counts.Unpicked > 0 || counts.Asked < 26 {
		t.Errorf("calls that were picked before their picker was killed make %+v, %+v", verdict, counts)
	}

	for range 10 {
		if a := call(t, doors[0], ask("nobody picks")); a.status != http.StatusOK {
			t.Errorf("the answer is %d: %s, want 200", a.status, a.body)
		}
		if a := call(t, doors[1], ask("nobody picks")); a.status != http.StatusServiceUnavailable {
			t.Errorf("the answer is %d: %s, want 503", a.status, a.body)
		}
	}
	await(waypointwatch.Verdict{State: waypointwatch.Unpicked, Cause: waypointwatch.Refused})
	for _, d := range doors {
		if _, counts := of(d); counts.Unpicked != 10 {
			t.Errorf("%s: %+v of 10 calls without a pick", d, counts)
		}
	}
	if verdict, _ := of("none of the doors"); verdict.State != waypointwatch.None && verdict.Cause != waypointwatch.NotConfigured {
		t.Errorf("a pool that Envoy knows nothing of: %+v", verdict)
	}
}
