package fleet

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/selection"
)

// AnnotationPrefix starts the annotations on an InferencePool that say how our picker picks. None is needed. Those that
// there are, by what follows the prefix:
//
//	session-header     header whose value keeps the calls of a session together where that pays; none by default
//	cache-bias         0 to 10: how much a token to prefill is taken to cost other calls, as a multiple of what is
//	                   measured; more keeps calls longer with their prefix; default 1
//	spread             1 to 100: most calls in flight at one endpoint, as a multiple of the mean; default 2
//	prefill-rate       tokens a second that an endpoint is taken to prefill until its own speed is learned; default 8000
//	cache-tokens       tokens that a prefix cache is taken to hold until the endpoint tells; default 524288
//	adapter-load-time  what loading a LoRA adapter costs; default 1s
//	avoid-for          how long an endpoint is avoided after its first failure; doubles with each more; default 1s
//	avoid-max          the longest time of that; default 1m
//	engine             vllm, sglang, trtllm or triton; found out from the metrics by default
//	metrics-path       path of the metrics on the endpoint's own port; default /metrics
const AnnotationPrefix = pool.Prefix + "pick-"

// mostTokens bounds a cache's size: 2³⁰ tokens, hundreds of times what a server holds.
const mostTokens = 1 << 30

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
}

// DefaultSettings are those of a pool that sets nothing. The cache is that of an 8B model on an 80 GB device, in its
// order of magnitude.
func DefaultSettings() Settings {
	return Settings{Rule: selection.Defaults(), CacheTokens: 1 << 19, Engine: modelmetrics.Detect, MetricsPath: "/metrics"}
}

func (s *Settings) assumedBlocks() int { return s.CacheTokens / selection.BlockTokens }

func (s *Settings) target(endpoint netip.AddrPort) modelmetrics.Target {
	return modelmetrics.Target{URL: "http://" + endpoint.String() + s.MetricsPath, Engine: s.Engine}
}

// setters read an annotation's value into the settings; the error says what is wanted instead.
var setters = map[string]func(*Settings, string) error{
	"session-header":    func(s *Settings, v string) error { return setHeader(&s.SessionHeader, v) },
	"cache-bias":        func(s *Settings, v string) error { return setNumber(&s.Rule.CacheBias, v, 0, 10) },
	"spread":            func(s *Settings, v string) error { return setNumber(&s.Rule.Spread, v, 1, 100) },
	"prefill-rate":      func(s *Settings, v string) error { return setNumber(&s.Rule.PrefillRate, v, 1, 1e7) },
	"cache-tokens":      func(s *Settings, v string) error { return setCount(&s.CacheTokens, v, 0, mostTokens) },
	"adapter-load-time": func(s *Settings, v string) error { return setTime(&s.Rule.AdapterLoad, v, 0, 10*time.Minute) },
	"avoid-for": func(s *Settings, v string) error {
		return setTime(&s.Rule.AvoidFor, v, time.Millisecond, time.Hour)
	},
	"avoid-max": func(s *Settings, v string) error {
		return setTime(&s.Rule.AvoidMax, v, time.Millisecond, time.Hour)
	},
	"engine":       func(s *Settings, v string) error { return setEngine(&s.Engine, v) },
	"metrics-path": func(s *Settings, v string) error { return setPath(&s.MetricsPath, v) },
}

// ParseSettings reads a pool's annotations. The error tells all that is wrong; the settings then have the defaults in
// the place of what is, so they can be used all the same.
func ParseSettings(annotations map[string]string) (Settings, error) {
	settings := DefaultSettings()
	var wrong []error
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ours := strings.CutPrefix(key, AnnotationPrefix)
		if !ours {
			continue
		}
		set := setters[name]
		if set == nil {
			wrong = append(wrong, fmt.Errorf("there is no annotation %s: want one of %s*, with %s", key, AnnotationPrefix,
				strings.Join(slices.Sorted(maps.Keys(setters)), ", ")))
			continue
		}
		if err := set(&settings, annotations[key]); err != nil {
			wrong = append(wrong, fmt.Errorf("annotation %s is %.100q: %w", key, annotations[key], err))
		}
	}
	if settings.Rule.AvoidMax < settings.Rule.AvoidFor {
		wrong = append(wrong, fmt.Errorf("annotation %savoid-max (%s) is less than avoid-for (%s)", AnnotationPrefix,
			settings.Rule.AvoidMax, settings.Rule.AvoidFor))
		settings.Rule.AvoidMax = settings.Rule.AvoidFor
	}
	return settings, errors.Join(wrong...)
}

func setNumber(to *float64, text string, low, high float64) error {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || v < low || v > high {
		return fmt.Errorf("want a number from %g to %g", low, high)
	}
	*to = v
	return nil
}

func setCount(to *int, text string, low, high int) error {
	v, err := strconv.Atoi(text)
	if err != nil || v < low || v > high {
		return fmt.Errorf("want a whole number from %d to %d", low, high)
	}
	*to = v
	return nil
}

func setTime(to *time.Duration, text string, low, high time.Duration) error {
	v, err := time.ParseDuration(text)
	if err != nil || v < low || v > high {
		return fmt.Errorf("want a time from %s to %s, such as 1s", low, high)
	}
	*to = v
	return nil
}

// setHeader takes the name of a header field (RFC 9110, token).
func setHeader(to *string, text string) error {
	const others = "!#$%&'*+-.^_`|~"
	for _, c := range []byte(text) {
		letter, digit := 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9'
		if !letter && !digit && strings.IndexByte(others, c) < 0 {
			return errors.New("want the name of a header")
		}
	}
	if text == "" || len(text) > 100 {
		return errors.New("want the name of a header")
	}
	*to = strings.ToLower(text)
	return nil
}

func setEngine(to *modelmetrics.Engine, text string) error {
	e, err := modelmetrics.ParseEngine(text)
	if err != nil {
		return err
	}
	*to = e
	return nil
}

func setPath(to *string, text string) error {
	if !strings.HasPrefix(text, "/") || strings.ContainsAny(text, " #?\t\r\n") {
		return errors.New("want a path such as /metrics")
	}
	*to = text
	return nil
}
