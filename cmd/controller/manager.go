package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/reconcile"
	"github.com/inference-waypoint/inference-waypoint/internal/poolkey"
)

// leaseName is the lease that the replicas of the controller share.
const leaseName = "inference-waypoint-controller"

// manager connects to the API server and serves health and metrics.
func (o *options) manager() (manager.Manager, error) {
	config, err := o.restConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the API server: %w", err)
	}
	scheme, err := reconcile.Scheme()
	if err != nil {
		return nil, err
	}
	m, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         reconcile.CacheOptions(o.settings()),
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress:        o.healthAddress,
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.leaseNamespace,
		LeaderElectionReleaseOnCancel: true, // the process ends with the manager
	})
	if err != nil {
		return nil, fmt.Errorf("building the manager: %w", err)
	}
	if err := m.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, fmt.Errorf("adding the health check: %w", err)
	}
	if err := m.AddReadyzCheck("caches", cachesFilled(m.GetCache())); err != nil {
		return nil, fmt.Errorf("adding the readiness check: %w", err)
	}
	return m, nil
}

// key reads or creates the key for the tokens of pools; it is nil if there is no default picker. The manager stops once
// the Secret has another key.
func (o *options) key(ctx context.Context, m manager.Manager) (*poolkey.Key, error) {
	if o.picker == nil {
		return nil, nil
	}
	c, err := direct(m)
	if err != nil {
		return nil, err
	}
	key, err := poolkey.Ensure(ctx, c, o.pickerNamespace(), time.Now())
	if err != nil {
		return nil, err
	}
	return &key, keepKey(m, c, o.pickerNamespace(), key)
}

func keepKey(m manager.Manager, c client.Client, namespace string, key poolkey.Key) error {
	// A replica without the lease has read the key too, and would make tokens of an old one as soon as it leads.
	return m.Add(reconcile.EveryReplica(func(ctx context.Context) error { return poolkey.Keep(ctx, c, namespace, key) }))
}

// awaitKinds stops the manager once the cluster has a kind that it lacks now. A replica without the lease has looked for
// kinds too, and would lack the watch of a new one as soon as it leads.
func awaitKinds(m manager.Manager) error {
	return m.Add(reconcile.EveryReplica(reconcile.AwaitKinds(m.GetRESTMapper(), m.GetScheme())))
}

// direct makes a client that reads from the API server. The manager's own client reads from a cache, which would keep
// every object of a kind in memory for a single read.
func direct(m manager.Manager) (client.Client, error) {
	c, err := client.New(m.GetConfig(), client.Options{Scheme: m.GetScheme(), HTTPClient: m.GetHTTPClient()})
	if err != nil {
		return nil, fmt.Errorf("making the client of the API server: %w", err)
	}
	return c, nil
}

// cachesFilled is a check that fails until the caches are synced with the API server. It does not require the lease: a
// replica that waits for the lease is ready.
func cachesFilled(c cache.Cache) healthz.Checker {
	return func(request *http.Request) error {
		ctx, cancel := context.WithTimeout(request.Context(), time.Second)
		defer cancel()
		if !c.WaitForCacheSync(ctx) {
			return errors.New("the caches are not filled yet")
		}
		return nil
	}
}

func (o *options) restConfig() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // the API server's priority and fairness limits us; a client's own limit only adds delay
	config.UserAgent = "inference-waypoint-controller"
	return config, nil
}
