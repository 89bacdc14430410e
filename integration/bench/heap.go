package main

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/prompt"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// heap measures the picker's memory after very many different prompts. It runs the picker's packages in this process, from
// the body's bytes to the reservation's release. Real streams would take ten times as long and keep nothing more.
func (b *bench) heap(ctx context.Context) error {
	const readings = 10
	pools := poolstate.New(poolstate.Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1})
	name := types.NamespacedName{Namespace: namespace, Name: "heap"}
	endpoints := make([]pool.Endpoint, usualFleet)
	for i := range endpoints {
		endpoints[i].Address = netip.AddrPortFrom(netip.MustParseAddr(podAddress(usualFleet, i)), modelPort)
	}
	pools.SetPool(pool.Pool{Name: name}, endpoints)

	body := slices.Clone(b.bodies[1<<10])
	serial := body[prompt.SerialAt(body):][:prompt.SerialLength]
	before := liveHeap()
	var (
		facts       request.Facts
		reservation poolstate.Reservation
		rows        [][]string
		held        []float64
	)
	begin := time.Now()
	for n := range b.plan.prompts {
		prompt.SetSerial(serial, uint64(n))
		facts.Read(request.Head{Path: "/v1/chat/completions"}, body)
		if _, err := pools.Pool(name).Pick(&poolstate.Call{Facts: &facts}, &reservation); err != nil {
			return fmt.Errorf("picking for the heap: %w", err)
		}
		reservation.Release(poolstate.Answered)
		if (n+1)%(b.plan.prompts/readings) == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			now := float64(liveHeap()) - float64(before)
			held = append(held, now)
			rows = append(rows, []string{fmt.Sprintf("%.1f million", float64(n+1)/1e6), fmt.Sprintf("%.1f MB", now/1e6)})
		}
	}
	runtime.KeepAlive(pools)
	// The first half of the prompts fills everything that has a bound.
	b.report.Goal("heap after %.0f million distinct prompts, against half of them", held[len(held)-1]/held[len(held)/2-1], 1.05, float64(b.plan.prompts)/1e6)
	b.report.Table(fmt.Sprintf("Heap that the picker's memory of prompts holds after so many distinct prompts of 1 KB; %d endpoints, in process, %.0f prompts/s",
		usualFleet, float64(b.plan.prompts)/time.Since(begin).Seconds()), []string{"prompts", "heap"}, rows)
	return nil
}

// liveHeap returns the bytes reachable now.
func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
