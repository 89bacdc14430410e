package envoypatch

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Route sends the calls that it matches to destinations, redirects them, or answers them with a status, whichever of To,
// Redirect and Status is set.
type Route struct {
	// Name is for people, and is in the access log.
	Name  string
	Match Match

	To       []Destination
	Redirect *Redirect
	Status   uint32

	Request, Response HeaderChanges
	Rewrite           Rewrite
	Mirrors           []Mirror
	// Timeout bounds the whole call and TryTimeout each try. Zero is no bound, as a long answer takes minutes, and an
	// answer that is not streamed sends nothing until its end.
	Timeout, TryTimeout time.Duration
	// Retry is nil for the default: two retries of calls that got no byte of an answer.
	Retry *Retry
}

// Destination is one of the clusters that share a route's calls.
type Destination struct {
	// Cluster is empty for a cluster that does not exist; calls to it are answered with status 500.
	Cluster string
	// Weight divided by the sum of all weights is the destination's share of the calls.
	Weight uint32
	// Picker is nil where the waypoint asks no picker.
	Picker            *Picker
	Request, Response HeaderChanges
}

// Check reports what Envoy would refuse in a route.
func (r Route) Check() error {
	_, err := r.build(Front{Host: "check", Port: 80}, Picker{}, all)
	return err
}

// noCluster is the name of a cluster that does not exist.
const noCluster = "inference|nowhere"

// build makes Envoy's route for a part of the route's calls.
func (r Route) build(at Front, own Picker, part calls) (*routev3.Route, error) {
	match, err := r.Match.build()
	if err != nil {
		return nil, err
	}
	match.Headers = append(match.Headers, part.headers...)
	out := &routev3.Route{
		Name:      r.Name,
		Match:     match,
		Decorator: &routev3.Decorator{Operation: fmt.Sprintf("%s:%d/*", at.Host, at.Port)},
	}
	if err := errors.Join(r.Request.check(), r.Response.check()); err != nil {
		return nil, err
	}
	if part.buffer > 0 {
		out.RequestBodyBufferLimit = wrapperspb.UInt64(part.buffer)
	}
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = r.Request.build()
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = r.Response.build()
	switch {
	case r.Redirect != nil:
		out.Action = &routev3.Route_Redirect{Redirect: r.Redirect.build(r.Match.Path)}
		out.TypedPerFilterConfig, err = pickerOverride(nil, own, part)
	case len(r.To) == 0:
		out.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: r.Status}}
		out.TypedPerFilterConfig, err = pickerOverride(nil, own, part)
	default:
		var action *routev3.RouteAction
		action, err = r.action(own, part)
		out.Action = &routev3.Route_Route{Route: action}
	}
	if err != nil {
		return nil, err
	}
	if err := out.ValidateAll(); err != nil {
		return nil, fmt.Errorf("validating: %w", err)
	}
	return out, nil
}

func (r Route) action(own Picker, part calls) (*routev3.RouteAction, error) {
	out := &routev3.RouteAction{
		ClusterNotFoundResponseCode: routev3.RouteAction_INTERNAL_SERVER_ERROR,
		Timeout:                     durationpb.New(r.Timeout),
		IdleTimeout:                 durationpb.New(0),
	}
	if r.Retry != nil || r.TryTimeout > 0 { // else the virtual host's
		retry, err := r.Retry.build(r.TryTimeout)
		if err != nil {
			return nil, err
		}
		out.RetryPolicy = retry
	}
	clusters, err := r.weighted(own, part)
	if err != nil {
		return nil, err
	}
	out.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: clusters}
	if r.Rewrite.Host != "" {
		out.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: r.Rewrite.Host}
	}
	out.PrefixRewrite, out.RegexRewrite = r.Rewrite.Path.build(r.Match.Path)
	for _, m := range r.Mirrors {
		out.RequestMirrorPolicies = append(out.RequestMirrorPolicies, m.build())
	}
	return out, nil
}

// weighted makes the weighted clusters, also for a single destination, as the settings of a destination belong there.
func (r Route) weighted(own Picker, part calls) (*routev3.WeightedCluster, error) {
	out := &routev3.WeightedCluster{}
	for _, d := range r.To {
		if err := errors.Join(d.Request.check(), d.Response.check()); err != nil {
			return nil, err
		}
		cluster := &routev3.WeightedCluster_ClusterWeight{Name: d.Cluster, Weight: wrapperspb.UInt32(d.Weight)}
		if d.Cluster == "" {
			cluster.Name = noCluster
		}
		cluster.RequestHeadersToAdd, cluster.RequestHeadersToRemove = d.Request.build()
		cluster.ResponseHeadersToAdd, cluster.ResponseHeadersToRemove = d.Response.build()
		var err error
		if cluster.TypedPerFilterConfig, err = pickerOverride(r.bounded(d.Picker), own, part); err != nil {
			return nil, err
		}
		out.Clusters = append(out.Clusters, cluster)
	}
	return out, nil
}

// bounded returns the settings of a picker with which it holds no call for longer than the route lets a call take.
func (r Route) bounded(p *Picker) *Picker {
	if r.Timeout == 0 || p == nil || p.Metadata[pool.HoldHeader] == "" {
		return p
	}
	out := *p
	out.Metadata = maps.Clone(p.Metadata)
	out.Metadata[pool.HoldHeader] = min(r.Timeout, pool.MostHold).String()
	return &out
}

// pickerOverride overrides the virtual host's picker settings for a part of the calls: where the destination has another picker
// or none, or where the picker gets the bodies of these calls in another mode or not at all.
func pickerOverride(picker *Picker, own Picker, part calls) (map[string]*anypb.Any, error) {
	if picker == nil {
		return overridePicker(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Disabled{Disabled: true}})
	}
	overrides := &extprocv3.ExtProcOverrides{}
	others := !reflect.DeepEqual(*picker, own)
	if others {
		overrides = picker.ask()
	}
	switch shown := slices.Contains(part.shown, picker.Protocol); {
	case !shown:
		overrides.ProcessingMode = headersOnly()
	case part.streamed && picker.Protocol == Buffered:
		overrides.ProcessingMode = requestsStreamed()
	case !others:
		return nil, nil
	}
	return overridePicker(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: overrides}})
}

func overridePicker(with *extprocv3.ExtProcPerRoute) (map[string]*anypb.Any, error) {
	packed, err := pack(with)
	if err != nil {
		return nil, err
	}
	return map[string]*anypb.Any{pickerFilter: packed}, nil
}
