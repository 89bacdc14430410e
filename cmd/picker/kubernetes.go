//go:build !standalone

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/review"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/sources/cluster"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/poolkey"
)

// several runs sources concurrently, as one source.
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

// fromCluster makes the source of a cluster's pools, and the check of which proxies may ask about them.
func fromCluster(o Options, pools *poolstate.Fleet, others *others, log *slog.Logger) (source, func(pool, token string) bool, error) {
	config, err := clusterConfig(o.Kubeconfig)
	if err != nil {
		return nil, nil, fmt.Errorf("reading how to reach Kubernetes (with --static FILE the picker needs none): %w", err)
	}
	config.UserAgent = "inference-waypoint-picker"
	pods, inferencePools, err := cluster.Watches(config)
	if err != nil {
		return nil, nil, err
	}
	fromObjects, err := cluster.New(pods, inferencePools, pools, o.Serves, log)
	if err != nil {
		return nil, nil, err
	}
	ring, err := poolkey.NewRing(config, ownNamespace(), pools.SetSeed, log)
	if err != nil {
		return nil, nil, err
	}
	objectives, err := cluster.NewObjectives(config, pools)
	if err != nil {
		return nil, nil, err
	}
	from := several{fromObjects, objectives, ring}
	if others == nil {
		return from, ring.Admits, nil
	}
	members, err := cluster.MembersOf(config, o.Serves.Services[0], others.port)
	if err != nil {
		return nil, nil, err
	}
	return others.after(from, members, ring.Peers, pools), ring.Admits, nil
}

func clusterConfig(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules() // $KUBECONFIG, else ~/.kube/config, else the pod's account
	rules.ExplicitPath = kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
}

// toReaders has the API server review who may read the answers.
func toReaders(o Options, answers forOperators) (forOperators, error) {
	config, err := clusterConfig(o.Kubeconfig)
	if err != nil {
		return forOperators{}, err
	}
	reviewer, err := review.New(config)
	if err != nil {
		return forOperators{}, err
	}
	return forOperators{
		explain: reviewer.Handler(toNamed("create", "explain"), answers.explain),
		state:   reviewer.Handler(toNamed("get", "state"), answers.state),
		page:    reviewer.Handler(func(*http.Request) authorizationv1.ResourceAttributes { return right("get", "state") }, answers.page),
	}, nil
}

// right is a right to a subresource of all pools. The API server has no such subresources; they only name rights.
func right(verb, subresource string) authorizationv1.ResourceAttributes {
	return authorizationv1.ResourceAttributes{Verb: verb, Group: inferencev1.GroupName, Resource: "inferencepools", Subresource: subresource}
}

// toNamed returns the right that a request needs: to the pool that it names, or to all pools where it names none.
func toNamed(verb, subresource string) func(*http.Request) authorizationv1.ResourceAttributes {
	return func(r *http.Request) authorizationv1.ResourceAttributes {
		out := right(verb, subresource)
		name, _ := pool.ParseName(r.URL.Query().Get("pool"))
		out.Namespace, out.Name = name.Namespace, name.Name
		return out
	}
}
