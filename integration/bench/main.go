// Command bench measures the cost of a pick. In one run one driver puts the same load on the picker, on an ext_proc server
// that does nothing, and on the reference endpoint picker. It prints each one's cost per call, and compares the ratios with
// the project's goals. With -soak it runs the picker alone at full speed for long, and fails if its memory grows or
// anything is left over.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/nothing"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

// nothingCommand makes this program run the do-nothing server.
const nothingCommand = "serve-nothing"

func main() {
	if len(os.Args) == 4 && os.Args[1] == nothingCommand {
		exit(serveNothing(os.Args[2], os.Args[3]))
	}
	mesh.Enter()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveNothing is the program of the do-nothing server.
func serveNothing(address, metrics string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	onStreams, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	onMetrics, err := net.Listen("tcp", metrics)
	if err != nil {
		return err
	}
	return nothing.Serve(ctx, onStreams, onMetrics)
}

// plan says how long and how often to measure.
type plan struct {
	rounds    int           // the median of which counts
	window    time.Duration // of one measurement at full speed
	rateTime  time.Duration // of one measurement at a fixed rate
	rateSizes []int         // of prompts at a fixed rate
	calls     int           // through Envoy, in one round
	prompts   int           // distinct ones, for the heap
	cross     bool          // whether to measure the reference with 10 and 1,000 endpoints too
}

var (
	full  = plan{rounds: 5, window: 700 * time.Millisecond, rateTime: 2 * time.Second, rateSizes: sizes, calls: 12, prompts: 10_000_000, cross: true}
	quick = plan{rounds: 3, window: 150 * time.Millisecond, rateTime: time.Second, rateSizes: []int{64 << 10}, calls: 4, prompts: 2_000_000}
)

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	short := flags.Bool("quick", false, "measure for two minutes and not for ten; the figures are rough")
	soakTime := flags.Duration("soak", 0, "run the picker at full speed for so long instead, and fail if it does not stay as it was")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *soakTime < 0 {
		return fmt.Errorf("%q: want no arguments, and a soak of 0 s or more", flags.Args())
	}
	debug.SetGCPercent(400) // the driver's garbage collection must not take cores from the servers
	b, err := newBench(ctx, os.Stdout)
	if err != nil {
		return err
	}
	defer b.close()
	if *soakTime > 0 {
		return b.soak(ctx, *soakTime)
	}
	b.plan = full
	if *short {
		b.plan = quick
	}
	return b.measureAll(ctx)
}

// measureAll takes all measurements and prints the goals. A missed goal is no error.
func (b *bench) measureAll(ctx context.Context) error {
	began := time.Now()
	b.introduce()
	if err := b.startMesh(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		b.wholeCalls, b.startServers, b.picks, b.growth, b.rates, b.crossReference,
	} {
		if err := step(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	b.stopServers()
	if err := b.heap(ctx); err != nil {
		return err
	}
	b.report.Summary()
	b.report.Say("Measured in %s.", time.Since(began).Round(time.Second))
	return nil
}

// loadAverage returns the kernel's load average of the last minute.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	average, _, _ := strings.Cut(string(text), " ")
	return average
}

func (b *bench) introduce() {
	b.report.Say(`What a pick costs, side by side in one run, each figure the median of %d.

  picker     this project's, one process for all pools
  nothing    an ext_proc server built the ordinary way with grpc-go, which lets everything pass
  reference  the reference endpoint picker of the Gateway API Inference Extension %s: default profile, logging and
             tracing off, and metrics scraped once a second where it would scrape 20 times, so that this is not counted

CPU is the kernel's account of the server's process alone, user and system, less what the process uses while nothing
is asked (of whole calls, with it). Driver and servers share %d cores. A pick is one gRPC stream as Envoy makes it: request headers, a chat body,
answer headers, end. "buffered" is Envoy's BUFFERED without bodies of answers, as our waypoints ask;
"duplex" is FULL_DUPLEX_STREAMED, where every byte is sent back, as endpoint pickers are asked by default.
"warm" prompts repeat (%d of them), of "cold" ones each is new. The machine's load average at the start was %s: above
1, other work blurs the figures, and times of a pick more than CPU.`,
		b.plan.rounds, b.referenceVersion, runtime.NumCPU(), warmPrompts, loadAverage())
}
