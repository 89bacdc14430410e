package mesh

import (
	"context"
	"encoding/json"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/relay"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/waypoint"
)

// Refusals are the pieces of configuration that waypoints have refused so far. In a sound mesh there is none.
func (m *Mesh) Refusals() []relay.Refusal { return m.relay.Refusals() }

// WaypointStats are the counters and gauges of a waypoint's Envoy, by name.
func (m *Mesh) WaypointStats(ctx context.Context, namespace, name string) (map[string]int, error) {
	return waypoint.Stats(ctx, m.cluster, namespace, name)
}

// WaypointConfig is what a waypoint's Envoy has of a kind of resource, such as dynamic_listeners or
// dynamic_route_configs: a field of a config_dump. Where kind is empty it is all that Envoy has, and where match is not
// empty it is an expression that the resources' names match.
func (m *Mesh) WaypointConfig(ctx context.Context, namespace, name, kind, match string) ([]json.RawMessage, error) {
	return waypoint.Config(ctx, m.cluster, namespace, name, kind, match)
}
