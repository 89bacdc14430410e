// Package authorization decides, as ztunnel does, which connections a pod accepts. istiod sends it the cluster's
// AuthorizationPolicies, already translated, and which pods each selects, by ztunnel's protocol. It translates no policy
// itself, and accepts no connections.
package authorization

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/istiodclient"
)

const (
	addressType = "type.googleapis.com/istio.workload.Address"
	policyType  = "type.googleapis.com/istio.security.Authorization"

	retryDelay = 200 * time.Millisecond
	// patience is how long a connection waits for istiod to send a pod that is not known yet.
	patience = 5 * time.Second
)

// Connection is a connection to a pod that has not been accepted yet.
type Connection struct {
	// Principal is the caller's identity without spiffe://. It is empty where the caller has none.
	Principal string
	Pod       netip.Addr
	Namespace string // the pod's
	Port      uint16
}

// Authorizer holds what istiod has sent so far.
type Authorizer struct {
	istiod *grpc.ClientConn
	log    *slog.Logger

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each message
	told     bool          // whether istiod has sent policies at all
	policies map[string]policy
	// selected holds the policies that select a pod. Deleted pods stay in it, as no address is given twice.
	selected map[netip.Addr][]string
}

// New makes an Authorizer that knows nothing and has not connected to istiod yet. locate returns istiod's plain-text
// address; each new connection calls it again.
func New(locate func(context.Context) (string, error), log *slog.Logger) (*Authorizer, error) {
	conn, err := istiodclient.New(locate)
	if err != nil {
		return nil, err
	}
	return &Authorizer{istiod: conn, log: log, changed: make(chan struct{}), policies: map[string]policy{}, selected: map[netip.Addr][]string{}}, nil
}

// Run receives from istiod until ctx ends.
func (a *Authorizer) Run(ctx context.Context) {
	defer func() { _ = a.istiod.Close() }()
	for ctx.Err() == nil {
		if err := a.listen(ctx); ctx.Err() == nil {
			a.log.Warn("listening to istiod", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryDelay):
		}
	}
}

// listen returns an error when the stream breaks.
func (a *Authorizer) listen(ctx context.Context) error {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(a.istiod).DeltaAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("opening a stream: %w", err)
	}
	node := &corev3.Node{Id: "ztunnel~10.0.0.1~ztunnel.istio-system~istio-system.svc.cluster.local"}
	for _, kind := range []string{policyType, addressType} {
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: kind, ResourceNamesSubscribe: []string{"*"}}); err != nil {
			return fmt.Errorf("subscribing to %s: %w", kind, err)
		}
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := a.take(response); err != nil {
			return fmt.Errorf("reading %s: %w", response.GetTypeUrl(), err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()}); err != nil {
			return err
		}
	}
}

func (a *Authorizer) take(response *discoveryv3.DeltaDiscoveryResponse) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range response.GetResources() {
		switch response.GetTypeUrl() {
		case policyType:
			p, err := readPolicy(r.GetResource().GetValue())
			if err != nil {
				return err
			}
			a.policies[r.GetName()] = p
		case addressType:
			w, err := readWorkload(r.GetResource().GetValue())
			if err != nil {
				return err
			}
			for _, address := range w.addresses {
				a.selected[address] = w.policies
			}
		}
	}
	if response.GetTypeUrl() == policyType {
		a.told = true
		for _, name := range response.GetRemovedResources() {
			delete(a.policies, name)
		}
	}
	close(a.changed)
	a.changed = make(chan struct{})
	return nil
}

// errUnknown says that istiod has not sent a pod.
var errUnknown = errors.New("istiod has not told of the pod")

// Allow fails where the policies in force deny a connection, or where istiod does not send them in time.
func (a *Authorizer) Allow(ctx context.Context, c Connection) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errUnknown)
	defer cancel()
	for {
		a.mu.Lock()
		selected, known := a.selected[c.Pod]
		known = known && a.told
		var err error
		if known {
			err = a.decide(c, selected)
		}
		changed := a.changed
		a.mu.Unlock()
		if known {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// Revoked returns a channel that is closed once the policies deny a connection which they allowed. ztunnel closes such
// connections. The channel follows the policies until ctx ends.
func (a *Authorizer) Revoked(ctx context.Context, c Connection) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		for {
			a.mu.Lock()
			err := a.decide(c, a.selected[c.Pod])
			changed := a.changed
			a.mu.Unlock()
			if err != nil {
				close(out)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	return out
}

// decide refuses what a policy denies. If a policy in force is an ALLOW policy, one must allow the connection.
func (a *Authorizer) decide(c Connection, selected []string) error {
	allowed, asked := false, false
	for name, p := range a.policies {
		inForce := p.scope == scopeGlobal || p.scope == scopeNamespace && p.namespace == c.Namespace || slices.Contains(selected, name)
		if !inForce || p.dryRun {
			continue
		}
		matches := p.matches(c)
		if !p.allow && matches {
			return fmt.Errorf("policy %s denies it", name)
		}
		asked, allowed = asked || p.allow, allowed || p.allow && matches
	}
	if asked && !allowed {
		return errors.New("no policy allows it")
	}
	return nil
}

func (p policy) matches(c Connection) bool {
	return slices.ContainsFunc(p.groups, func(rules [][]match) bool {
		for _, alternatives := range rules {
			if len(alternatives) > 0 && !slices.ContainsFunc(alternatives, func(m match) bool { return m.matches(c) }) {
				return false
			}
		}
		return true
	})
}

func (m match) matches(c Connection) bool {
	is := func(s string) func(text) bool { return func(t text) bool { return t.matches(s) } }
	return (len(m.principals) == 0 || slices.ContainsFunc(m.principals, is(c.Principal))) &&
		!slices.ContainsFunc(m.notPrincipals, is(c.Principal)) &&
		(len(m.namespaces) == 0 || slices.ContainsFunc(m.namespaces, is(namespaceOf(c.Principal)))) &&
		(len(m.ports) == 0 || slices.Contains(m.ports, uint64(c.Port)))
}

// namespaceOf returns the namespace of the principal <trust domain>/ns/<namespace>/sa/<account>.
func namespaceOf(principal string) string {
	parts := strings.Split(principal, "/")
	if len(parts) != 5 {
		return ""
	}
	return parts[2]
}
