// Command scale measures the cost of many pools. It makes a thousand pools behind a hundred waypoints, with ten thousand
// pods, on a real API server with a real istiod, and compares the controller's work with the project's goals. It measures
// the control plane alone: no pod and no waypoint runs a program. A stand-in serves the counters of the waypoints, which
// get no calls.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

// plan says how much to measure.
type plan struct {
	waypoints int // each in a namespace of its own
	pools     int // at each waypoint
	pods      int // of each pool
	changes   int // of a pool, one after the other; the time to the EnvoyFilter counts
	rest      time.Duration
	shared    []int // numbers of pools at one waypoint, for istiod's cost
}

var (
	full  = plan{waypoints: 100, pools: 10, pods: 10, changes: 200, rest: time.Minute, shared: []int{1, 10, 100}}
	quick = plan{waypoints: 10, pools: 10, pods: 10, changes: 100, rest: 15 * time.Second, shared: []int{1, 10}}
)

func main() {
	mesh.Enter()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "scale: %v\n", err)
		os.Exit(1)
	}
}

// run takes all measurements and prints them. A missed goal is no error.
func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	short := flags.Bool("quick", false, "measure a tenth of the pools, in a minute")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q: want no arguments", flags.Args())
	}
	p := full
	if *short {
		p = quick
	}
	w, err := newWorld(ctx, p, os.Stdout)
	if err != nil {
		return err
	}
	defer w.Close()
	for _, step := range []func(context.Context) error{
		w.putUpWaypoints, w.putUpPods, w.putUpPools, w.watchRest, w.changePools, w.askIstiod,
	} {
		if err := step(ctx); err != nil {
			w.ShowLogs(os.Stderr, 10)
			return err
		}
	}
	w.table.print(os.Stdout)
	return nil
}
