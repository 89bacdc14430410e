package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/conversations"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

const (
	splitHost  = "http://stable.chat.inference.internal"
	splitCalls = 200
	// The canary should get a tenth of the calls: 20 of 200. The limits are five standard deviations of 4.2 to either side.
	splitLeast, splitMost = 1, 41
)

// split labels a namespace, waits until its waypoint and its pools are ready, and measures how an HTTPRoute divides the
// calls to one host between the two pools.
func (d *demo) split(ctx context.Context) error {
	began := time.Now()
	since := func() string { return fmt.Sprintf("%4.1f s", time.Since(began).Seconds()) }
	if err := d.mesh.Apply(ctx, "samples/canary"); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(d.out, "\nA namespace labelled inference-waypoint.io/waypoint=inference, two pools and a route of 90 to 10:\n")
	for _, name := range []string{"inference", "stable", "canary"} {
		if err := d.mesh.AwaitDeployment(ctx, "chat", name); err != nil {
			return err
		}
		what := "the model servers of " + name
		if name == "inference" {
			what = "the waypoint that the controller made"
		}
		_, _ = fmt.Fprintf(d.out, "  %s  %s: ready\n", since(), what)
	}
	reached := map[string]int{}
	ask := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		answer, err := traffic.Chat(ctx, d.callers[conversations.Services[0]].HTTP, splitHost, "chat", []traffic.Message{{Role: "user", Content: "Hello"}}, 1)
		if err != nil {
			return err
		}
		pool, _, _ := strings.Cut(answer.Endpoint, "-")
		reached[pool]++
		return nil
	}
	err := d.mesh.Await(ctx, "a call that the route sends to the canary", func(ctx context.Context) error {
		if err := ask(ctx); err != nil {
			return err
		}
		if reached["canary"] == 0 {
			return errors.New("none yet")
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(d.out, "  %s  the pools and the route: in force\n", since())
	clear(reached)
	for range splitCalls {
		if err := ask(ctx); err != nil {
			return fmt.Errorf("a call to %s: %w", splitHost, err)
		}
	}
	_, _ = fmt.Fprintf(d.out, "  of %d calls to %s: stable %d, canary %d\n", splitCalls, splitHost, reached["stable"], reached["canary"])
	if n := reached["canary"]; n < splitLeast || n > splitMost {
		return fmt.Errorf("the canary had %d of %d calls, want a tenth", n, splitCalls)
	}
	return nil
}
