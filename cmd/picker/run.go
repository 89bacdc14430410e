package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/brokenoff"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/debug"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/endpointmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/extproc"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/kvevents"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/page"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/sources/file"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/tokenizer"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

const (
	// fileInterval is how often files are checked for changes: reading a few kilobytes a second costs almost nothing.
	fileInterval = time.Second
	// tracesTimeout is how long the shutdown waits until the last spans are sent.
	tracesTimeout = 2 * time.Second
)

// source keeps the fleet's pools up to date until its context ends. It calls synced once, when the fleet has all pools
// of the start.
type source interface {
	Run(ctx context.Context, synced func())
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
	klog.SetSlogLogger(log) // the Kubernetes client's log
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := telemetry.NewMetrics(registry)
	name := ownName()
	others := newPeers(o, name, registry, log)
	tokenizer := tokenizer.New(tokenizer.Options{Metrics: metrics, Log: log})
	defer tokenizer.Close()
	pools := poolstate.New(poolstate.Options{
		Metrics: metrics, Seed: rand.Uint64(), Log: log, MaxIndexBytes: int64(o.MaxIndexBytes), MaxWaitingBytes: int64(o.MaxWaitingBytes),
		Tokenizer: tokenizer,
		Teller:    others.teller(),
	})
	told := debug.Picker{Fleet: pools, Name: name, Others: others.known()}
	registry.MustRegister(endpointmetrics.New(told.LiveState))
	scraper, err := modelmetrics.New(modelmetrics.DefaultOptions(), pools)
	if err != nil {
		return err
	}
	defer scraper.Close()
	pools.ReadBy(scraper)
	subscriber := kvevents.New(kvevents.DefaultOptions(), pools)
	defer subscriber.Close()
	pools.HeardBy(subscriber)
	from, admits, err := newSources(o, pools, others, log)
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
	shown, err := debugHandler(o, told)
	if err != nil {
		return err
	}
	s, err := listen(o, picker, broken, others, telemetry.Handler(registry, o.Profiles), shown, log)
	if err != nil {
		return err
	}
	// The log of a program that was killed for its memory must show its limit.
	log.Info("starting", "processors", runtime.GOMAXPROCS(0), "memoryLimit", limitMemory(memlimit.FromCgroup, log))
	err = s.serve(ctx, from)
	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracesTimeout)
	defer cancel()
	return errors.Join(err, stopTracing(flushing))
}

// memoryShare is the part of the container's memory that is Go's limit. The rest is for memory that Go does not count,
// such as the kernel's socket buffers, and for what is allocated during a collection.
const memoryShare = 0.85

// limitMemory makes Go collect garbage more eagerly near the container's limit, unless GOMEMLIMIT is set, and returns
// the limit.
func limitMemory(container memlimit.Provider, log *slog.Logger) int64 {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(container))
	if err != nil {
		log.Info("reading the container's memory limit failed; if it has one, set GOMEMLIMIT", "error", err)
	}
	return limit
}

// forOperators are the handlers for operators: where a call would go, and the live state as JSON and as a page.
type forOperators struct{ explain, state, page http.Handler }

// debugHandler serves the pools' live state and explanations of picks, for people and programs. They reveal endpoints
// and which texts are cached, so the API server reviews who may read them. With --static everybody may who reaches the
// address.
func debugHandler(o Options, told debug.Picker) (http.Handler, error) {
	answers := forOperators{explain: fewAtATime(debug.ExplainHandler(told.Fleet)), state: told.LiveStateHandler(), page: page.Handler(told.LiveState)}
	if o.Static == "" {
		var err error
		if answers, err = toReaders(o, answers); err != nil {
			return nil, err
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/", answers.page)
	mux.Handle("POST /debug/explain", answers.explain)
	mux.Handle("GET /debug/pools", answers.state)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // it is no error that a client is gone
	})
	return mux, nil
}

// few is how many explanations are made at once: each reads a body and holds a pool's lock for a while.
const few = 4

// fewAtATime lets few requests run at once; the others wait.
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

// newSources makes the source of pools, and the check of which proxies may ask about them: nil admits every proxy.
func newSources(o Options, pools *poolstate.Fleet, others *others, log *slog.Logger) (source, func(pool, token string) bool, error) {
	if o.Static != "" {
		static, err := file.Open(o.Static, fileInterval, pools, log)
		return static, nil, err
	}
	return fromCluster(o, pools, others, log)
}
