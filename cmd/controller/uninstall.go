package main

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/reconcile"
)

// runUninstall deletes what the controller wrote. It holds the controllers' lease meanwhile, so that no controller writes
// again. It waits until the last controller has released the lease.
func (o *options) runUninstall(ctx context.Context) error {
	o.leaderElect = true
	o.metricsAddress, o.healthAddress = "0", "0" // a Job that soon ends needs neither
	m, err := o.manager()
	if err != nil {
		return err
	}
	c, err := direct(m)
	if err != nil {
		return err
	}
	ctx, done := context.WithCancel(ctx)
	defer done()
	uninstalled := false
	err = m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		if err := o.takeBack(ctx, c); err != nil {
			return err
		}
		uninstalled = true
		done()
		return nil
	}))
	if err != nil {
		return fmt.Errorf("adding the uninstallation: %w", err)
	}
	if err := m.Start(ctx); err != nil {
		return err
	}
	if !uninstalled {
		return fmt.Errorf("ended before it was uninstalled: %w", context.Cause(ctx))
	}
	return nil
}

// takeBack deletes what a controller with the same flags wrote.
func (o *options) takeBack(ctx context.Context, c client.Client) error {
	if err := reconcile.Uninstall(ctx, c, o.pickerNamespace(), o.drain); err != nil {
		return fmt.Errorf("uninstalling: %w", err)
	}
	return nil
}
