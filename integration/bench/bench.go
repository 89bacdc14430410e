package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/load"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/prompt"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/report"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

const (
	// namespace holds the pools that the driver's streams name.
	namespace = "bench"
	// warmPrompts is the number of repeated prompts of a size in a warm load.
	warmPrompts = 32
	// streams is the number of calls in flight at full speed.
	streams = 16
	// modelPort is the port of the stand-in for all model servers, on every pod's address.
	modelPort = 8100
)

// sizes are the lengths of prompts, in bytes.
var sizes = []int{1 << 10, 8 << 10, 64 << 10, 512 << 10}

// fleetSizes are the pools' numbers of endpoints. Most measurements use the middle one.
var fleetSizes = []int{10, 100, 1000}

const usualFleet = 100

// bench is one run: the processes that it has started, and its report.
type bench struct {
	plan             plan
	report           *report.Report
	root, logs       string
	referenceVersion string
	bodies           map[int][]byte // by size

	mesh      *mesh.Mesh
	models    *http.Server
	picker    *contender
	nothing   *contender
	reference *contender

	// referenceRate is the reference's calls per second at full speed with warm prompts, by size.
	referenceRate map[int]float64
}

// contender is a server under measurement.
type contender struct {
	*server.Process
	// idle is how much of a core the process uses without calls.
	idle float64
}

func newBench(ctx context.Context, out io.Writer) (*bench, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("finding the checkout: %w", err)
	}
	b := &bench{report: report.New(out), root: root, logs: "/run/bench", bodies: map[int][]byte{}, referenceRate: map[int]float64{}}
	if err := os.MkdirAll(b.logs, 0o755); err != nil {
		return nil, fmt.Errorf("making a directory for logs: %w", err)
	}
	if _, err := os.Stat(filepath.Join(root, "integration", "tools", "reference-epp", "go.mod")); err != nil {
		return nil, errors.New("run it at the top of the checkout")
	}
	version, err := output(ctx, root, "integration/tools/install.sh", "--version", "reference-epp")
	if err != nil {
		return nil, err
	}
	b.referenceVersion = version
	build := exec.CommandContext(ctx, "go", "build", "-o", "bin/", "./cmd/picker")
	build.Dir = root
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the picker: %w: %s", err, text)
	}
	for _, size := range sizes {
		b.bodies[size] = prompt.Chat(size)
	}
	return b, b.serveModels()
}

// output runs a command in a directory and returns its output.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("running %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

func (b *bench) close() {
	b.stopServers()
	if b.mesh != nil {
		b.mesh.Close()
	}
	_ = b.models.Close()
}

func (b *bench) stopServers() {
	for _, c := range []**contender{&b.picker, &b.nothing, &b.reference} {
		if *c != nil {
			(*c).Stop()
			*c = nil
		}
	}
}

// startMesh starts a mesh: the reference needs its API server, and whole calls need its waypoint.
func (b *bench) startMesh(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(b.root, ".tools", "reference-epp")); err != nil {
		return errors.New("the tool reference-epp is missing: run make bench, which builds it")
	}
	var err error
	b.mesh, err = mesh.Start(ctx, mesh.Options{Root: b.root, Progress: os.Stderr})
	return err
}

// startServers starts all three contenders with the driver's pools.
func (b *bench) startServers(ctx context.Context) error {
	var err error
	if b.nothing, err = b.startNothing(ctx); err != nil {
		return err
	}
	if b.picker, err = b.startPicker(ctx); err != nil {
		return err
	}
	if err := b.makePools(ctx); err != nil {
		return err
	}
	if b.reference, err = b.startReference(ctx, usualFleet); err != nil {
		return err
	}
	return b.rest(ctx, b.nothing, b.picker, b.reference)
}

func (b *bench) startNothing(ctx context.Context) (*contender, error) {
	const address, metrics = "127.0.0.1:29002", "127.0.0.1:29090"
	p, err := server.Start(ctx, server.Command{
		Name: "nothing", Path: "/proc/self/exe", Args: []string{nothingCommand, address, metrics},
		Address: address, Metrics: "http://" + metrics + "/metrics",
	}, b.logs)
	return &contender{Process: p}, err
}

func (b *bench) startPicker(ctx context.Context) (*contender, error) {
	const address, metrics = "127.0.0.1:9002", "127.0.0.1:9090"
	file := filepath.Join(b.logs, "pools.yaml")
	if err := os.WriteFile(file, []byte(staticPools()), 0o600); err != nil {
		return nil, fmt.Errorf("writing the picker's pools: %w", err)
	}
	p, err := server.Start(ctx, server.Command{
		Name: "picker", Path: filepath.Join(b.root, "bin", "picker"), Args: []string{
			"--static=" + file, "--extproc-address=" + address, "--health-address=127.0.0.1:9003", "--metrics-address=" + metrics, "--debug-address=127.0.0.1:0",
			"--drain-delay=0s", "--log-level=warn",
		},
		Address: address, Metrics: "http://" + metrics + "/metrics",
	}, b.logs)
	return &contender{Process: p}, err
}

// staticPools returns the pools of all fleet sizes, for a picker without Kubernetes.
func staticPools() string {
	var out strings.Builder
	out.WriteString("pools:\n")
	for _, n := range fleetSizes {
		fmt.Fprintf(&out, "- name: %s\n  endpoints:\n", poolOf(n))
		for i := range n {
			fmt.Fprintf(&out, "  - %s\n", net.JoinHostPort(podAddress(n, i), fmt.Sprint(modelPort)))
		}
	}
	return out.String()
}

// poolOf names the pool of so many endpoints.
func poolOf(endpoints int) string { return fmt.Sprintf("%s/pool-%d", namespace, endpoints) }

// podAddress is the address of a pool's pod: outside the addresses that the mesh gives, and different in each pool.
func podAddress(pool, i int) string {
	block := map[int]int{10: 100, 100: 110, 1000: 120}[pool]
	return fmt.Sprintf("10.244.%d.%d", block+i/200, 1+i%200)
}

// rest measures what the servers use without calls.
func (b *bench) rest(ctx context.Context, all ...*contender) error {
	const settle, length = 500 * time.Millisecond, time.Second
	if err := pause(ctx, settle); err != nil {
		return err
	}
	before := make([]time.Duration, len(all))
	begin := time.Now()
	for i, c := range all {
		var err error
		if before[i], err = c.CPU(); err != nil {
			return err
		}
	}
	if err := pause(ctx, length); err != nil {
		return err
	}
	for i, c := range all {
		after, err := c.CPU()
		if err != nil {
			return err
		}
		c.idle = float64(after-before[i]) / float64(time.Since(begin))
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// loadOf is the load of one prompt size in one mode.
func (b *bench) loadOf(c *contender, endpoints int, mode load.Mode, size int, warm bool) load.Load {
	l := load.Load{
		Address: c.Address, Pool: poolOf(endpoints), Mode: mode, Bodies: [][]byte{b.bodies[size]}, Streams: streams, Picks: c != b.nothing,
	}
	if warm {
		l.Warm = warmPrompts
	}
	return l
}
