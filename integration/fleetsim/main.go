// Fleetsim measures how well the picker picks. It runs the picker's own code against simulated fleets of model servers in
// virtual time, next to simpler pickers, the reference picker and an oracle. It prints tables and the project's goals, and
// draws charts. The same arguments give the same output.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/chart"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "fleetsim:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("fleetsim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	trace := flags.String("trace", "conversation_trace.jsonl", "the real `file` of calls to replay")
	out := flags.String("out", "", "the `directory` for tables and charts; none are written without it")
	small := flags.Bool("quick", false, "a part of everything, in seconds")
	seed := flags.Uint64("seed", 1, "what all chance comes from")
	if err := flags.Parse(args); err != nil {
		return err
	}
	start := time.Now()
	r := &report{scale: whole, seed: *seed, w: stdout}
	if *small {
		r.scale = quick
	}
	var err error
	if r.trace, err = readTrace(*trace); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		fmt.Fprintf(stderr, missingTrace, *trace)
	}
	if err := r.measure(policy.All()); err != nil {
		return err
	}
	r.print()
	fmt.Fprintf(stderr, "took %s\n", time.Since(start).Round(time.Second))
	if *out == "" {
		return nil
	}
	return r.save(*out)
}

const missingTrace = `there is no trace at %s, so only the synthetic workloads are measured.
The trace is conversation_trace.jsonl (12,031 calls in an hour, Apache-2.0) of Mooncake, FAST'25: take it from the
repository github.com/kvcache-ai/Mooncake, where it lies under FAST25-release/traces, and name it with -trace.
`

func readTrace(path string) ([]workload.Call, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the trace: %w", err)
	}
	defer f.Close()
	return workload.ReadTrace(f)
}

func writeCharts(dir string, charts map[string]*chart.Chart) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the directory of charts: %w", err)
	}
	for name, c := range charts {
		if err := os.WriteFile(filepath.Join(dir, name), c.SVG(), 0o644); err != nil {
			return fmt.Errorf("writing a chart: %w", err)
		}
	}
	return nil
}
