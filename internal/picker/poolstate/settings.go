package poolstate

import (
	"net/netip"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// Settings are how one pool picks.
type Settings struct {
	// Rule is for the choice itself.
	Rule selection.Settings
	// SessionHeader is the name, in lower case, of the header that keeps calls of a session together; "" is none.
	SessionHeader string
	// CacheTokens is what an endpoint's prefix cache is taken to hold until it tells.
	CacheTokens int
	// Engine is the program behind the endpoints.
	Engine modelmetrics.Engine
	// MetricsPath is where each endpoint has its metrics.
	MetricsPath string
	// Usage has the tokens counted that the endpoints' answers say were used.
	Usage bool
}

// DefaultSettings are those of a pool that sets nothing.
func DefaultSettings() Settings { return settingsOf(picksettings.Defaults()) }

// ParseSettings reads a pool's annotations. Wrong is all that is wrong with them; the settings then have the defaults in
// the place of what is, so they can be used all the same.
func ParseSettings(annotations map[string]string) (settings Settings, wrong []error) {
	s, wrong := picksettings.Parse(annotations)
	return settingsOf(s), wrong
}

// settingsOf says in the terms of those who go by them what a pool's annotations say.
func settingsOf(s picksettings.Settings) Settings {
	engine, _ := modelmetrics.ParseEngine(s.Engine) // of a name that was checked: a test has that it knows them all
	return Settings{
		Rule: selection.Settings{
			PrefillRate: s.PrefillRate,
			CacheBias:   s.CacheBias,
			Spread:      s.Spread,
			AdapterLoad: s.AdapterLoad,
			AvoidFor:    s.AvoidFor,
			AvoidMax:    s.AvoidMax,
		},
		SessionHeader: s.SessionHeader,
		CacheTokens:   s.CacheTokens,
		Engine:        engine,
		MetricsPath:   s.MetricsPath,
		Usage:         s.Usage,
	}
}

func (s *Settings) assumedBlocks() int { return s.CacheTokens / selection.BlockTokens }

func (s *Settings) target(endpoint netip.AddrPort, namespace string) modelmetrics.Target {
	return modelmetrics.Target{URL: "http://" + endpoint.String() + s.MetricsPath, Engine: s.Engine, Tenant: namespace}
}
