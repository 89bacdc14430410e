package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/load"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/report"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/server"
)

const (
	// soakReadings is the number of readings of the picker during a soak.
	soakReadings = 30
	// flatWithin is the highest ratio of the memory in the last third to that in the third before. Once everything with a
	// bound has reached it, the rest is the garbage collector's rhythm.
	flatWithin = 1.1
	// abandonEvery: one client in so many vanishes in the middle of its call.
	abandonEvery = 50
)

// Metrics of the picker that must be back at 0 once no call is in flight.
var gauges = []string{"inference_waypoint_streams_in_flight", "inference_waypoint_requests_in_flight"}

// soakReading is one reading of the picker during a soak.
type soakReading struct {
	picks            int
	rss, heap        float64
	goroutines, busy float64
}

// soak runs the picker at full speed: all sizes, both modes, warm and cold prompts, and clients that vanish.
func (b *bench) soak(ctx context.Context, length time.Duration) error {
	var err error
	if b.picker, err = b.startPicker(ctx); err != nil {
		return err
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	before, err := b.look(ctx, nil)
	if err != nil {
		return err
	}
	b.report.Say("The picker at full speed for %s: prompts of 1 to 512 KB, buffered and duplex, warm and cold, one client in %d vanishes.", length, abandonEvery)
	during, err := b.soakLoad(ctx, length)
	if err != nil {
		return err
	}
	if err := pause(ctx, 3*time.Second); err != nil {
		return err
	}
	after, err := b.look(ctx, nil)
	if err != nil {
		return err
	}
	b.report.Say("Before: %.0f goroutines, RSS %s. After: %.0f goroutines, RSS %s, %.0f calls in flight.",
		before.goroutines, report.Megabytes(before.rss), after.goroutines, report.Megabytes(after.rss), after.busy)
	return judgeSoak(before, during, after)
}

// soakLoad drives all kinds of load at once and prints a line for each reading.
func (b *bench) soakLoad(ctx context.Context, length time.Duration) ([]soakReading, error) {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var drivers []*load.Driver
	failed := make(chan error, 4)
	for _, mode := range []load.Mode{load.Buffered, load.Duplex} {
		for _, warm := range []bool{true, false} {
			l := b.loadOf(b.picker, usualFleet, mode, 0, warm)
			l.Bodies, l.Streams, l.AbandonEvery = nil, streams/4, abandonEvery
			for _, size := range sizes {
				l.Bodies = append(l.Bodies, b.bodies[size])
			}
			d, err := load.New(l)
			if err != nil {
				return nil, err
			}
			defer d.Close()
			drivers = append(drivers, d)
			go func() { failed <- d.Closed(ctx) }()
		}
	}
	readings, err := b.watch(ctx, length/soakReadings, drivers)
	cancel()
	for range drivers {
		err = errors.Join(err, <-failed)
	}
	return readings, err
}

// watch reads the picker at even intervals until ctx ends.
func (b *bench) watch(ctx context.Context, interval time.Duration, drivers []*load.Driver) ([]soakReading, error) {
	var out []soakReading
	begin, last := time.Now(), soakReading{}
	b.report.Say("%8s  %8s  %9s  %9s  %10s", "time", "picks/s", "RSS", "heap", "goroutines")
	for pause(ctx, interval) == nil {
		r, err := b.look(ctx, drivers)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return out, err
		}
		b.report.Say("%8s  %8.0f  %9s  %9s  %10.0f", time.Since(begin).Round(time.Second), float64(r.picks-last.picks)/interval.Seconds(),
			report.Megabytes(r.rss), report.Megabytes(r.heap), r.goroutines)
		out, last = append(out, r), r
	}
	return out, nil
}

func (b *bench) look(ctx context.Context, drivers []*load.Driver) (soakReading, error) {
	if err := b.picker.Running(); err != nil {
		return soakReading{}, err
	}
	rss, err := b.picker.RSS()
	if err != nil {
		return soakReading{}, err
	}
	values, err := b.picker.Values(ctx)
	if err != nil {
		return soakReading{}, err
	}
	r := soakReading{rss: float64(rss), heap: values[server.HeapBytes], goroutines: values[server.Goroutines]}
	for _, d := range drivers {
		r.picks += d.Ended()
	}
	for _, g := range gauges {
		v, known := values[g]
		if !known {
			return r, fmt.Errorf("the picker tells no %s", g)
		}
		r.busy += v
	}
	return r, nil
}

// judgeSoak fails if memory grew in the last third of a soak, or if anything is left over after it.
func judgeSoak(before soakReading, during []soakReading, after soakReading) error {
	if len(during) < 6 {
		return fmt.Errorf("%d readings are too few to tell growth: soak for longer", len(during))
	}
	third := len(during) / 3
	most := func(of []soakReading) float64 {
		return slices.MaxFunc(of, func(a, b soakReading) int { return int(a.rss - b.rss) }).rss
	}
	var wrong []error
	middle, end := most(during[third:2*third]), most(during[2*third:])
	if end > flatWithin*middle {
		wrong = append(wrong, fmt.Errorf("memory grows: at most %s in the middle third, %s in the last", report.Megabytes(middle), report.Megabytes(end)))
	}
	if after.goroutines > before.goroutines {
		wrong = append(wrong, fmt.Errorf("%.0f goroutines are left over", after.goroutines-before.goroutines))
	}
	if after.busy != 0 {
		wrong = append(wrong, fmt.Errorf("%.0f calls are still counted as in flight", after.busy))
	}
	return errors.Join(wrong...)
}
