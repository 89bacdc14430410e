package mesh

import (
	"context"
	"encoding/json"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/relay"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/waypoint"
)

// Refusals returns the configuration that waypoints have refused so far. A healthy mesh has none.
func (m *Mesh) Refusals() []relay.Refusal { return m.relay.Refusals() }

// WaypointStats returns the counters and gauges of a waypoint's Envoy, by name.
func (m *Mesh) WaypointStats(ctx context.Context, namespace, name string) (map[string]int, error) {
	return waypoint.Stats(ctx, m.cluster, namespace, name)
}

// WaypointConfig returns the resources of a kind that a waypoint's Envoy has. kind is a field of a config_dump, such as
// dynamic_listeners or dynamic_route_configs; empty means all kinds. A match that is not empty is a regular expression for
// the resources' names.
func (m *Mesh) WaypointConfig(ctx context.Context, namespace, name, kind, match string) ([]json.RawMessage, error) {
	return waypoint.Config(ctx, m.cluster, namespace, name, kind, match)
}
