package envoypatch

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// How a waypoint finds out that a picker hangs or is gone, and for how long it then asks it no more. Under load a picker
// is given up pickerSilence and pingTimeout after its last word, and at the first call where calls are rare.
const (
	// pickerSilence is how long nothing may have come on a connection before a new call sends an HTTP/2 ping ahead of
	// itself. Pings go with calls alone, and a connection at rest costs nothing. Pings at a fixed interval would not do: a
	// server of gRPC for Go, which most pickers are, takes more than two without a call between them for an attack and
	// closes the connection with all of its calls.
	pickerSilence = 100 * time.Millisecond
	// pingTimeout closes the connection. It outlasts the 100 ms for which a container that has used up its CPU is stopped.
	// Together with pickerSilence it must be shorter than pickTimeout: calls must still be there when the connection closes,
	// or nothing is counted against the picker and another is asked too late.
	pingTimeout = 150 * time.Millisecond
	// pickerConnectTimeout is for pickers outside the mesh. Inside it a connection begins at once, by a tunnel of the
	// waypoint's own.
	pickerConnectTimeout = 200 * time.Millisecond
	// ejectionTime is how long a picker is asked no more after the first failure; the next time it is twice as long, then
	// three times, up to five minutes. Kubernetes takes a picker that hangs away before, and knows a node to be gone after
	// some 50 s. It is no longer, as a picker that only paused for a second is not asked for so long either.
	ejectionTime = 5 * time.Second
	// ejectionInterval is how often Envoy looks whose time is over. One that fails again within an interval stays away for
	// longer than before, so an interval must outlast pickTimeout and pingTimeout together.
	ejectionInterval = time.Second
)

// PickerPatch makes a waypoint take a picker that does not answer out after its first failure, and ask it again after a
// while. It is merged into istiod's own cluster of the picker's Service, so the mesh's mTLS and what a DestinationRule
// says of other things stay. Where the only picker is out, each call ends at once as its pool's failure mode says.
//
// Only what happens to connections counts, never an answer: of the pickers' errors a caller could bring about enough to
// take the picker from the pools of others.
func PickerPatch(host string, port uint32) (*Patch, error) {
	name := Picker{Host: host, Port: port}.cluster()
	options, err := pack(&upstreamhttpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Timeout:                durationpb.New(pingTimeout),
							ConnectionIdleInterval: durationpb.New(pickerSilence),
						},
					},
				},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	value, err := partialToStruct(&clusterv3.Cluster{
		ConnectTimeout: durationpb.New(pickerConnectTimeout),
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{
			// Else, where all pickers are out, Envoy asks them all the same.
			HealthyPanicThreshold: &typev3.Percent{},
			// Else Envoy gathers changes for a second: a picker that is asked again and fails would be asked until then.
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
			// The cluster of a Service that is called from the waypoint is no inbound one.
			Context: networkingv1alpha3.EnvoyFilter_ANY,
			ObjectTypes: &networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch_Cluster{
				Cluster: &networkingv1alpha3.EnvoyFilter_ClusterMatch{Name: name},
			},
		},
		Patch: &networkingv1alpha3.EnvoyFilter_Patch{Operation: networkingv1alpha3.EnvoyFilter_Patch_MERGE, Value: value},
	}, nil
}

func onlyLostConnections() *clusterv3.OutlierDetection {
	all, none := wrapperspb.UInt32(100), wrapperspb.UInt32(0)
	// Of several pickers the last is asked whatever happens: where all are slow, as on a node that is short of CPU, pools
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
