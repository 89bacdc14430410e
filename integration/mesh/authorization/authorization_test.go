package authorization

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

// field appends a field of bytes.
func field(b []byte, number protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), content)
}

// number appends a field of a number.
func number(b []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

const (
	deny     = 1
	selector = 2 // the scope of a policy that selects pods
)

// encode makes a policy with one group, in which each match is a rule of its own.
func encode(scope, action uint64, matches ...[]byte) []byte {
	var group []byte
	for _, m := range matches {
		group = field(group, groupRules, field(nil, rulesMatches, m))
	}
	p := field(nil, policyName, []byte("policy"))
	p = field(p, policyNamespace, []byte("ours"))
	return field(number(number(p, policyScope, scope), policyAction, action), policyGroups, group)
}

func principals(kind protowire.Number, s string) []byte {
	return field(nil, matchPrincipals, field(nil, kind, []byte(s)))
}

func port(n uint64) []byte {
	return field(nil, matchPorts, protowire.AppendVarint(nil, n)) // packed, as protobuf writes it
}

var pod = netip.MustParseAddr("10.244.0.9")

// told makes an Authorizer that knows the pod and one policy. If selected is set, the policy ours/policy selects the pod.
func told(t *testing.T, policy []byte, selected bool) *Authorizer {
	t.Helper()
	a, err := New(func(context.Context) (string, error) { return "", nil }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := field(nil, workloadAddresses, pod.AsSlice())
	if selected {
		w = field(w, workloadPolicies, []byte("ours/policy"))
	}
	for kind, content := range map[string][]byte{addressType: field(nil, addressWorkload, w), policyType: policy} {
		response := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: kind}
		if content != nil {
			response.Resources = []*discoveryv3.Resource{{Name: "ours/policy", Resource: &anypb.Any{TypeUrl: kind, Value: content}}}
		}
		if err := a.take(response); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestAllow(t *testing.T) {
	waypoint := "cluster.local/ns/models/sa/waypoint"
	tests := map[string]struct {
		policy    []byte
		elsewhere bool // the policy does not select the pod
		principal string
		port      uint16
		wantError string
	}{
		"no policy":                        {principal: "", port: 1},
		"allowed":                          {policy: encode(selector, actionAllow, principals(suffix, "/sa/waypoint"), port(9002)), principal: waypoint, port: 9002},
		"another account":                  {policy: encode(selector, actionAllow, principals(suffix, "/sa/waypoint"), port(9002)), principal: "cluster.local/ns/shop/sa/checkout", port: 9002, wantError: "no policy allows"},
		"another port":                     {policy: encode(selector, actionAllow, principals(suffix, "/sa/waypoint"), port(9002)), principal: waypoint, port: 9003, wantError: "no policy allows"},
		"no identity":                      {policy: encode(selector, actionAllow, principals(presence, "")), port: 9002, wantError: "no policy allows"},
		"a policy of another pod":          {policy: encode(selector, actionAllow, port(1)), elsewhere: true, port: 9002},
		"a policy of the namespace":        {policy: encode(scopeNamespace, actionAllow, port(1)), elsewhere: true, port: 9002, wantError: "no policy allows"},
		"a policy of all":                  {policy: encode(scopeGlobal, actionAllow, port(1)), elsewhere: true, port: 9002, wantError: "no policy allows"},
		"denied":                           {policy: encode(selector, deny, principals(prefix, "cluster.local/ns/shop/")), principal: "cluster.local/ns/shop/sa/checkout", wantError: "denies"},
		"not denied":                       {policy: encode(selector, deny, principals(exact, waypoint)), principal: "cluster.local/ns/shop/sa/checkout"},
		"a dry run":                        {policy: number(encode(selector, actionAllow, port(1)), policyDryRun, 1), port: 9002},
		"of a namespace":                   {policy: encode(selector, actionAllow, field(nil, matchNamespaces, field(nil, exact, []byte("models")))), principal: waypoint},
		"of another namespace":             {policy: encode(selector, actionAllow, field(nil, matchNamespaces, field(nil, exact, []byte("shop")))), principal: waypoint, wantError: "no policy allows"},
		"of those that are not an account": {policy: encode(selector, deny, field(nil, matchNotPrincipals, field(nil, suffix, []byte("/sa/waypoint")))), principal: "", wantError: "denies"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := told(t, tt.policy, !tt.elsewhere).Allow(t.Context(), Connection{Principal: tt.principal, Pod: pod, Namespace: "ours", Port: tt.port})
			if tt.wantError == "" && err != nil || tt.wantError != "" && (err == nil || !strings.Contains(err.Error(), tt.wantError)) {
				t.Errorf("got %v, want %q", err, tt.wantError)
			}
		})
	}
}

// A new policy that denies an open connection revokes it.
func TestRevoked(t *testing.T) {
	a := told(t, encode(selector, actionAllow, port(9002)), true)
	allowed, other := a.Revoked(t.Context(), Connection{Pod: pod, Port: 9002}), a.Revoked(t.Context(), Connection{Pod: pod, Port: 1})
	<-other
	select {
	case <-allowed:
		t.Error("a connection that is allowed is told that it is not")
	default:
	}
	a.mu.Lock()
	p := a.policies["ours/policy"]
	p.allow = false
	a.policies["ours/policy"] = p
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	<-allowed
}

// A pod that istiod has not sent accepts no connection, a removed policy is no longer in force, and a policy that cannot be
// read is an error.
func TestWhatIsTold(t *testing.T) {
	a := told(t, encode(selector, actionAllow, port(1)), true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := a.Allow(ctx, Connection{Pod: netip.MustParseAddr("10.244.0.10")}); err == nil {
		t.Error("a pod that is not known took a connection")
	}
	if err := a.take(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: policyType, RemovedResources: []string{"ours/policy"}}); err != nil {
		t.Fatal(err)
	}
	if err := a.Allow(t.Context(), Connection{Pod: pod, Port: 9002}); err != nil {
		t.Errorf("a policy that is gone refuses: %v", err)
	}
	for name, content := range map[string][]byte{
		"a field that is not known": encode(selector, actionAllow, field(nil, 13, nil)),
		"a piece of a message":      encode(selector, actionAllow)[:3],
	} {
		if _, err := readPolicy(content); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
