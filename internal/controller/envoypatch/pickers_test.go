package envoypatch

import (
	"encoding/json"
	"fmt"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// TestPickerPatchMerges merges the patch into a cluster such as istiod makes, and has Envoy check the result.
func TestPickerPatchMerges(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("own %t", own), func(t *testing.T) { checkPickerPatch(t, own) })
	}
}

func checkPickerPatch(t *testing.T, own bool) {
	patch, err := PickerPatch(PickerCluster{Host: "epp.models.svc.cluster.local", Port: 9002, Own: own})
	if err != nil {
		t.Fatal(err)
	}
	if got := patch.GetMatch().GetCluster().GetName(); got != "outbound|9002||epp.models.svc.cluster.local" {
		t.Errorf("the patch is for cluster %q", got)
	}
	raw, err := protojson.Marshal(patch.GetPatch().GetValue())
	if err != nil {
		t.Fatal(err)
	}
	cluster := &clusterv3.Cluster{}
	if err := protojson.Unmarshal(raw, cluster); err != nil {
		t.Fatal(err)
	}
	if got := cluster.GetLbPolicy() == clusterv3.Cluster_MAGLEV; got != own {
		t.Errorf("the policy is %s", cluster.GetLbPolicy())
	}
	cluster.Name = "epp"
	cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	if err := cluster.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	if raw, err = (protojson.MarshalOptions{UseProtoNames: true}).Marshal(cluster); err != nil {
		t.Fatal(err)
	}
	var whole any
	if err := json.Unmarshal(raw, &whole); err != nil {
		t.Fatal(err)
	}
	chain := chainOf(t, &hcmv3.HttpConnectionManager{
		StatPrefix:     "golden",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: "none"}},
	}, nil, map[string][]any{"none": {map[string]any{"name": "none", "domains": []string{"*"}}}})
	if err := validate(t, []any{whole}, []any{chain}); err != nil {
		t.Error(err)
	}
}

// A call that sent the ping which closes its connection must still wait when the connection closes.
func TestPingEndsBeforeCall(t *testing.T) {
	for _, p := range []pings{othersPings, ownPings} {
		if p.silence+p.timeout >= pickTimeout {
			t.Errorf("a picker is given up after %s, and a pick after %s", p.silence+p.timeout, pickTimeout)
		}
	}
}
