package envoypatch

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// pings is how a waypoint detects that a picker hangs or is gone: a call that comes after a connection was silent sends an
// HTTP/2 ping ahead of itself, and the connection is closed if no reply comes in time. Only calls send pings, so an idle
// connection costs nothing. Envoy sends no second ping while one is on its way.
//
// silence and timeout together must be shorter than pickTimeout: if no call waits when the connection closes, Envoy counts
// no failure of the picker, and asks another too late. What is left of pickTimeout is for the other picker.
type pings struct{ silence, timeout time.Duration }

var (
	// othersPings are for pickers of other projects. Most are gRPC servers in Go. Such a server takes more than two pings
	// without a reply of its own in between for an attack, and closes the connection with all of its calls. So pings are
	// rare. The timeout is longer than the 100 ms for which a container over its CPU quota is throttled.
	othersPings = pings{silence: 100 * time.Millisecond, timeout: 150 * time.Millisecond}
	// ownPings are for our pickers, which admit more pings. The silence is shorter than the time between the last reply of
	// a picker and the first calls that wait for it, so that these calls too are given to another picker in time.
	ownPings = pings{silence: 5 * time.Millisecond, timeout: 200 * time.Millisecond}
)

const (
	// pickerConnectTimeout is for pickers outside the mesh. Inside the mesh a connection starts at once, through a tunnel
	// of the waypoint.
	pickerConnectTimeout = 200 * time.Millisecond
	// ejectionTime is how long a picker is ejected after its first failure; the next time twice as long, then three times,
	// up to five minutes. Kubernetes removes a picker that hangs earlier, and detects a lost node after some 50 s. The time
	// is no longer because a picker that only paused for a second is ejected for as long.
	ejectionTime = 5 * time.Second
	// ejectionInterval is how often Envoy ends ejections whose time is over. A picker that fails again within an interval
	// is ejected for longer, so an interval must be longer than pickTimeout and the pings' timeout together.
	ejectionInterval = time.Second
)

// PickerCluster is the waypoint's cluster of a picker's Service.
type PickerCluster struct {
	Host string
	Port uint32
	// Own says that the picker is this project's. Then all calls of a pool go to the same picker of several, whichever
	// waypoint asks, so that one picker knows all that is known of the pool. Calls carry the pool's name in the metadata of
	// their ext_proc stream (pool.NameHeader). Where a pool is split, all calls of a caller go to the same picker: they also carry
	// the caller's address (pool.SplitHeader). When that picker is ejected or leaves, its pools go to the others, and come
	// back when it does.
	Own bool
}

// PickerPatch makes a waypoint eject a picker that does not answer after its first failure, and ask it again after a
// while. A call whose connection to a picker is lost asks another picker, if there is one. istiod merges the patch into its own cluster of the picker's Service, so the mesh's mTLS and the other settings
// of a DestinationRule stay. While the only picker is ejected, the pool's failure mode decides each call at once.
//
// Only lost connections count as failures, never answers: a caller could cause enough errors of a picker to eject it for
// the pools of others.
func PickerPatch(p PickerCluster) (*Patch, error) {
	name := Picker{Host: p.Host, Port: p.Port}.cluster()
	retry, err := askAnother()
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	ping := othersPings
	if p.Own {
		ping = ownPings
	}
	http := &upstreamhttpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Timeout:                durationpb.New(ping.timeout),
							ConnectionIdleInterval: durationpb.New(ping.silence),
						},
					},
				},
			},
		},
		RetryPolicy: retry,
	}
	policy := clusterv3.Cluster_ROUND_ROBIN // the zero value, which leaves istiod's policy
	if p.Own {
		// Maglev gives each waypoint the same table, and moves few pools when a picker comes or goes.
		policy, http.HashPolicy = clusterv3.Cluster_MAGLEV, byCallerOrPool()
	}
	options, err := pack(http)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	value, err := partialToStruct(&clusterv3.Cluster{
		LbPolicy:       policy,
		ConnectTimeout: durationpb.New(pickerConnectTimeout),
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{
			// Otherwise Envoy asks ejected pickers when all are ejected.
			HealthyPanicThreshold: &typev3.Percent{},
			// Otherwise Envoy batches changes for 1 s, and would go on asking a picker that fails again for so long.
			UpdateMergeWindow: durationpb.New(0),
		},
		OutlierDetection:              onlyLostConnections(),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpProtocolOptions: options},
	})
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	return &Patch{
		ApplyTo: networkingv1alpha3.EnvoyFilter_CLUSTER,
		Match: &networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch{
			// The waypoint's cluster of a Service that it calls is not an inbound one.
			Context: networkingv1alpha3.EnvoyFilter_ANY,
			ObjectTypes: &networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch_Cluster{
				Cluster: &networkingv1alpha3.EnvoyFilter_ClusterMatch{Name: name},
			},
		},
		Patch: &networkingv1alpha3.EnvoyFilter_Patch{Operation: networkingv1alpha3.EnvoyFilter_Patch_MERGE, Value: value},
	}, nil
}

// byCallerOrPool hashes the caller of a stream to the picker, where it is named, or else the pool that the stream is for.
func byCallerOrPool() (out []*routev3.RouteAction_HashPolicy) {
	for _, header := range []string{pool.SplitHeader, pool.NameHeader} {
		out = append(out, &routev3.RouteAction_HashPolicy{
			PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: header}},
			Terminal:        true,
		})
	}
	return out
}

// askAnother asks another picker if the connection to the first is lost before it has answered, for example because the
// node has vanished. For that Envoy keeps 64 KiB of the data that it has sent. Envoy closes the connection to a picker
// that hangs while the call waits, and what is left of pickTimeout is for the other picker.
func askAnother() (*routev3.RetryPolicy, error) {
	untried, err := previousHosts()
	if err != nil {
		return nil, err
	}
	return &routev3.RetryPolicy{
		RetryOn:                       retryOn,
		NumRetries:                    wrapperspb.UInt32(1),
		RetryBackOff:                  &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(time.Millisecond)},
		RetryHostPredicate:            untried,
		HostSelectionRetryMaxAttempts: hostSelections,
	}, nil
}

func onlyLostConnections() *clusterv3.OutlierDetection {
	all, none := wrapperspb.UInt32(100), wrapperspb.UInt32(0)
	// Envoy never ejects the last of several pickers. Where all are slow, as on a node that is short of CPU, calls to pools
	// that fail closed are better served late than refused.
	allButOne := wrapperspb.UInt32(99)
	return &clusterv3.OutlierDetection{
		SplitExternalLocalOriginErrors:         true,
		ConsecutiveLocalOriginFailure:          wrapperspb.UInt32(1),
		EnforcingConsecutiveLocalOriginFailure: all,
		EnforcingConsecutive_5Xx:               none,
		EnforcingSuccessRate:                   none,
		EnforcingLocalOriginSuccessRate:        none,
		Interval:                               durationpb.New(ejectionInterval),
		BaseEjectionTime:                       durationpb.New(ejectionTime),
		MaxEjectionPercent:                     allButOne,
		AlwaysEjectOneHost:                     wrapperspb.Bool(true),
	}
}
