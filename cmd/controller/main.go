// Command controller makes Istio waypoints serve InferencePools. Its flags are in docs/reference/flags.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/reconcile"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "controller:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	logger := logr.FromSlogHandler(telemetry.NewLogger(stderr, o.level).Handler())
	ctrl.SetLogger(logger)
	klog.SetLogger(logger) // leader election and the API client
	if o.uninstall {
		return o.runUninstall(ctx)
	}
	manager, err := o.manager()
	if err != nil {
		return err
	}
	settings := o.settings()
	if settings.Key, err = o.key(ctx, manager); err != nil {
		return err
	}
	if err := awaitKinds(manager); err != nil {
		return err
	}
	if err := reconcile.Add(ctx, manager, settings, o.times(), o.watches()); err != nil {
		return fmt.Errorf("adding the pool controller: %w", err)
	}
	return manager.Start(ctx)
}
