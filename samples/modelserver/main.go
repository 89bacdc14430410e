// Command modelserver stands in for a vLLM server where there is no GPU. It has
// vLLM's HTTP API and metrics. Its queue, prefix cache and LoRA slots are real.
// Its words mean nothing, and their timing is computed. See README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/api"
	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/metrics"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "modelserver:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, and then until the running requests have ended or
// the shutdown timeout is over.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	opts, err := parseOptions(args, stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	listener, err := net.Listen("tcp", opts.address)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	e := engine.New(opts.engine)
	server := newHTTPServer(api.New(opts.name, opts.loraModules, e, metrics.New(opts.engine.Model, e), log).Handler(), log)

	// The engine outlives ctx, as it has to finish the running requests.
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	var engineDone sync.WaitGroup
	engineDone.Go(func() { e.Run(engineCtx) })
	defer engineDone.Wait()
	defer stopEngine()

	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.Info("serving", "address", listener.Addr().String(), "name", opts.name, "model", opts.engine.Model,
		"contextLength", opts.engine.ContextLength(), "timeScale", opts.engine.TimeScale)
	select {
	case err := <-served:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	log.Info("draining", "running", e.Stats().Running, "waiting", e.Stats().Waiting, "timeout", opts.shutdownTimeout)
	return drain(server, opts.shutdownTimeout)
}

func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           handler,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// drain accepts no new requests and waits for the running ones.
func drain(server *http.Server, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		// The remaining requests end as their connections close.
		return errors.Join(fmt.Errorf("requests were still running after %v: %w", timeout, err), server.Close())
	}
	return nil
}
