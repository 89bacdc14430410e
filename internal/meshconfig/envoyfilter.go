package meshconfig

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"istio.io/api/networking/v1alpha3"
	"istio.io/api/type/v1beta1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// referencedServices makes istiod send a waypoint the clusters of Services that no host of the waypoint is for.
const referencedServices = "envoyfilter.istio.io/referenced-services"

// envoyFilter makes the waypoint ask the picker for each call to the pool's host and take its choice. It lives beside
// the waypoint: istiod reads only that namespace for the EnvoyFilters of a Gateway.
func envoyFilter(p pool.Pool, waypoint types.NamespacedName, choose picker, settings Settings) (*networkingv1alpha3.EnvoyFilter, error) {
	patches, err := patches(p, choose, settings)
	if err != nil {
		return nil, err
	}
	out := &networkingv1alpha3.EnvoyFilter{
		TypeMeta: metav1.TypeMeta{APIVersion: networkingv1alpha3.SchemeGroupVersion.String(), Kind: "EnvoyFilter"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: waypoint.Namespace,
			Name:      envoyFilterName(p.Name, waypoint),
		},
		Spec: v1alpha3.EnvoyFilter{
			TargetRefs: []*v1beta1.PolicyTargetReference{{
				Group: gatewayv1.GroupName,
				Kind:  "Gateway",
				Name:  waypoint.Name,
			}},
			ConfigPatches: patches,
		},
	}
	if !choose.missing {
		out.Annotations = map[string]string{
			referencedServices: choose.at.Service.Namespace + "/" + choose.host(settings),
		}
	}
	return out, nil
}

func patches(p pool.Pool, choose picker, settings Settings) ([]*envoypatch.Patch, error) {
	front := envoypatch.Front{Host: p.Host(settings.HostSuffix), Port: frontPort}
	cluster := envoypatch.Cluster{
		Name:      clusterName(p.Name),
		Endpoints: front,
		H2C:       p.H2C,
		Service:   p.Name.Name,
		Namespace: p.Name.Namespace,
	}
	out, err := envoypatch.Filters(front, pickerSettings(p, choose, settings))
	if err != nil {
		return nil, err
	}
	clusterPatch, err := envoypatch.ClusterPatch(cluster)
	if err != nil {
		return nil, err
	}
	hostPatch, err := envoypatch.VirtualHostPatch(front, envoypatch.VirtualHost{Name: cluster.Name, Cluster: cluster.Name})
	if err != nil {
		return nil, err
	}
	return append(out, clusterPatch, hostPatch), nil
}

func pickerSettings(p pool.Pool, choose picker, settings Settings) envoypatch.Picker {
	out := envoypatch.Picker{Protocol: envoypatch.Duplex, FailOpen: p.FailureMode == pool.FailOpen}
	if !choose.missing {
		out.Host, out.Port = choose.host(settings), uint32(choose.at.Port)
	}
	if choose.ours {
		out.Protocol = envoypatch.Buffered
		out.Metadata = map[string]string{pool.NameHeader: p.Name.String()}
	}
	return out
}

// clusterName is the pool's cluster in Envoy. Bars and slashes are in no name of Kubernetes, so no two pools share it.
func clusterName(name types.NamespacedName) string { return "inference|" + name.String() }

// maxReadable is how much of a pool's name an EnvoyFilter's name shows: with prefix and hash it stays within 63
// characters, the length of a label's value.
const maxReadable = 40

// envoyFilterName is unique to the pool and the waypoint, and short whatever their names are. Readers find the pool at
// its head; the hash tells apart pools of other namespaces and of the same beginning.
func envoyFilterName(pool, waypoint types.NamespacedName) string {
	sum := sha256.Sum256([]byte(pool.String() + "|" + waypoint.String()))
	readable := pool.Name
	if len(readable) > maxReadable {
		readable = strings.TrimRight(readable[:maxReadable], "-.")
	}
	return fmt.Sprintf("inference-%s-%s", readable, hex.EncodeToString(sum[:5]))
}
