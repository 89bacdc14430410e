package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/brokenoff"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/debug"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/endpointmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/extproc"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/page"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/review"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/sources"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/poolkey"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

const (
	// fileInterval is how often files are looked at: reading a few kilobytes a second costs nothing to speak of.
	fileInterval = time.Second
	// tracesTimeout is how long the end waits for the last spans to be taken.
	tracesTimeout = 2 * time.Second
)

// source tells the fleet of pools until its context ends. It calls synced once, when all is known that was there at
// the start.
type source interface {
	Run(ctx context.Context, synced func())
}

// several are sources that run side by side.
type several []source

func (s several) Run(ctx context.Context, synced func()) {
	var running sync.WaitGroup
	var missing atomic.Int32
	missing.Store(int32(len(s)))
	for _, each := range s {
		running.Go(func() {
			each.Run(ctx, func() {
				if missing.Add(-1) == 0 {
					synced()
				}
			})
		})
	}
	running.Wait()
}

// run is the whole program: it serves until ctx ends, then drains. Logs go to stderr.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(stderr, o.LogLevel)
	klog.SetSlogLogger(log) // what the Kubernetes client tells
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := telemetry.NewMetrics(registry)
	pools := poolstate.New(poolstate.Options{Metrics: metrics, Seed: rand.Uint64(), Log: log, MaxIndexBytes: int64(o.MaxIndexBytes)})
	live := func() livestate.State { return debug.LiveState(pools) }
	registry.MustRegister(endpointmetrics.New(live))
	scraper, err := modelmetrics.New(modelmetrics.DefaultOptions(), pools)
	if err != nil {
		return err
	}
	defer scraper.Close()
	pools.ReadBy(scraper)
	from, admits, err := newSources(o, pools, log)
	if err != nil {
		return err
	}
	tracer, stopTracing, err := telemetry.NewTracer(ctx, "inference-picker", log)
	if err != nil {
		return err
	}
	picker := extproc.New(pools, extproc.Options{
		Metrics: metrics, Log: log, Tracer: tracer, MaxStreams: o.MaxStreams, MaxHeldBytes: o.MaxHeldBytes, Admits: admits,
	})
	broken := brokenoff.New(pools, brokenoff.Options{Metrics: metrics, Log: log, Admits: admits})
	forOperators, err := debugHandler(o, pools, live)
	if err != nil {
		return err
	}
	s, err := listen(o, picker, broken, telemetry.Handler(registry, o.Profiles), forOperators, log)
	if err != nil {
		return err
	}
	// What the limit is belongs into the log of a program that was killed for memory.
	log.Info("starting", "processors", runtime.GOMAXPROCS(0), "memoryLimit", limitMemory(memlimit.FromCgroup, log))
	err = s.serve(ctx, from)
	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracesTimeout)
	defer cancel()
	return errors.Join(err, stopTracing(flushing))
}

// memoryShare is the part of the container's memory that Go's collector keeps to. The rest is for what it does not count,
// such as the kernel's buffers of sockets, and for what is allocated while it collects.
const memoryShare = 0.85

// limitMemory has Go collect garbage more eagerly near the container's limit, unless GOMEMLIMIT says where, and returns
// where.
func limitMemory(container memlimit.Provider, log *slog.Logger) int64 {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(container))
	if err != nil {
		log.Info("the container's memory limit cannot be read; set GOMEMLIMIT where there is one", "error", err)
	}
	return limit
}

// debugHandler serves the pools as they are now, for people and for programs, and why a call would go where it would. It
// tells of endpoints, and what is cached of a text, so the API server is asked who may know; without one everybody who
// reaches it is told.
func debugHandler(o Options, pools *poolstate.Fleet, live func() livestate.State) (http.Handler, error) {
	explain, state := fewAtATime(debug.ExplainHandler(pools)), debug.LiveStateHandler(pools)
	shown := page.Handler(live)
	if o.Static == "" {
		config, err := clusterConfig(o.Kubeconfig)
		if err != nil {
			return nil, err
		}
		reviewer, err := review.New(config)
		if err != nil {
			return nil, err
		}
		explain = reviewer.Handler(toNamed("create", "explain"), explain)
		state = reviewer.Handler(toNamed("get", "state"), state)
		shown = reviewer.Handler(func(*http.Request) authorizationv1.ResourceAttributes { return right("get", "state") }, shown)
	}
	mux := http.NewServeMux()
	mux.Handle("/", shown)
	mux.Handle("POST /debug/explain", explain)
	mux.Handle("GET /debug/pools", state)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // a client that is gone is no fault to report
	})
	return mux, nil
}

// right is to a subresource of all pools. The API server knows no such subresources: they are names for rights.
func right(verb, subresource string) authorizationv1.ResourceAttributes {
	return authorizationv1.ResourceAttributes{Verb: verb, Group: inferencev1.GroupName, Resource: "inferencepools", Subresource: subresource}
}

// toNamed is the right that a request needs: to the pool that it names, or to all where it names none.
func toNamed(verb, subresource string) func(*http.Request) authorizationv1.ResourceAttributes {
	return func(r *http.Request) authorizationv1.ResourceAttributes {
		out := right(verb, subresource)
		name, _ := pool.ParseName(r.URL.Query().Get("pool"))
		out.Namespace, out.Name = name.Namespace, name.Name
		return out
	}
}

// few is how many explanations are made at once: each reads a body, and holds a pool's lock for its endpoints.
const few = 4

// fewAtATime has requests wait for each other.
func fewAtATime(next http.Handler) http.Handler {
	turns := make(chan struct{}, few)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case turns <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		defer func() { <-turns }()
		next.ServeHTTP(w, r)
	})
}

// newSources makes what tells of pools, and of who may ask about them: nil where everybody may who reaches the picker.
func newSources(o Options, pools *poolstate.Fleet, log *slog.Logger) (source, func(pool, token string) bool, error) {
	if o.Static != "" {
		file, err := sources.OpenFile(o.Static, fileInterval, pools, log)
		return file, nil, err
	}
	config, err := clusterConfig(o.Kubeconfig)
	if err != nil {
		return nil, nil, fmt.Errorf("reaching Kubernetes (--static FILE works without it): %w", err)
	}
	config.UserAgent = "inference-waypoint-picker"
	pods, inferencePools, err := sources.Watches(config)
	if err != nil {
		return nil, nil, err
	}
	cluster, err := sources.NewCluster(pods, inferencePools, pools, o.Serves, log)
	if err != nil {
		return nil, nil, err
	}
	ring, err := poolkey.NewRing(config, ownNamespace(), pools.SetSeed, log)
	if err != nil {
		return nil, nil, err
	}
	return several{cluster, ring}, ring.Admits, nil
}

func clusterConfig(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules() // $KUBECONFIG, else ~/.kube/config, else the pod's account
	rules.ExplicitPath = kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
}
