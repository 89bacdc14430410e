// Package picksettings holds what the annotations of an InferencePool say of how our picker is to pick for it: their
// names, bounds and defaults, and how they are read. The controller tells of wrong ones in events and the picker goes by
// the others, so both read them here. Plain values only: how a setting is used may not enter.
package picksettings

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Prefix starts the annotations' names. What follows it is in docs/picker-settings.md, with the defaults. None is needed.
const Prefix = pool.Prefix + "pick-"

// MostTokens bounds a cache's size: 2³⁰ tokens, hundreds of times what a server holds.
const MostTokens = 1 << 30

// Settings are how one pool picks.
type Settings struct {
	// SessionHeader is the name, in lower case, of the header that keeps the calls of a session together; "" is none.
	SessionHeader string
	// CacheBias multiplies what a token to prefill is taken to cost other calls.
	CacheBias float64
	// Spread bounds an endpoint's calls in flight to this multiple of the mean.
	Spread float64
	// PrefillRate is, in tokens a second, how fast an endpoint is taken to prefill until its own speed is learned.
	PrefillRate float64
	// CacheTokens is what an endpoint's prefix cache is taken to hold until it tells.
	CacheTokens int
	// AdapterLoad is what loading a LoRA adapter costs.
	AdapterLoad time.Duration
	// AvoidFor is how long an endpoint is avoided after its first failure; the time doubles with each that follows, up
	// to AvoidMax.
	AvoidFor, AvoidMax time.Duration
	// Engine is one of Engines, or "" where it is found out from the metrics.
	Engine string
	// MetricsPath is where each endpoint has its metrics.
	MetricsPath string
	// Usage has the tokens counted that the endpoints' answers say were used.
	Usage bool
}

// Engines are the names of model servers that are known, as the Gateway API Inference Extension has them.
var Engines = []string{"vllm", "sglang", "trtllm-serve", "triton-tensorrt-llm"}

// Defaults are the settings of a pool that sets nothing. The cache is that of an 8B model on an 80 GB device, in its
// order of magnitude.
func Defaults() Settings {
	return Settings{
		CacheBias:   1,
		Spread:      2,
		PrefillRate: 8000,
		CacheTokens: 1 << 19,
		AdapterLoad: time.Second,
		AvoidFor:    time.Second,
		AvoidMax:    time.Minute,
		MetricsPath: "/metrics",
	}
}

// setters read an annotation's value into the settings; the error says what is wanted instead.
var setters = map[string]func(*Settings, string) error{
	"session-header":    func(s *Settings, v string) error { return setHeader(&s.SessionHeader, v) },
	"cache-bias":        func(s *Settings, v string) error { return setNumber(&s.CacheBias, v, 0, 10) },
	"spread":            func(s *Settings, v string) error { return setNumber(&s.Spread, v, 1, 100) },
	"prefill-rate":      func(s *Settings, v string) error { return setNumber(&s.PrefillRate, v, 1, 1e7) },
	"cache-tokens":      func(s *Settings, v string) error { return setCount(&s.CacheTokens, v, 0, MostTokens) },
	"adapter-load-time": func(s *Settings, v string) error { return setTime(&s.AdapterLoad, v, 0, 10*time.Minute) },
	"avoid-for": func(s *Settings, v string) error {
		return setTime(&s.AvoidFor, v, time.Millisecond, time.Hour)
	},
	"avoid-max": func(s *Settings, v string) error {
		return setTime(&s.AvoidMax, v, time.Millisecond, time.Hour)
	},
	"engine":       func(s *Settings, v string) error { return setEngine(&s.Engine, v) },
	"metrics-path": func(s *Settings, v string) error { return setPath(&s.MetricsPath, v) },
	"usage":        func(s *Settings, v string) error { return setBool(&s.Usage, v) },
}

// Parse reads a pool's annotations. Wrong has an error for each that is not as it should be, in the order of their
// names; the settings then have the defaults in the place of those, so they can be used all the same.
func Parse(annotations map[string]string) (settings Settings, wrong []error) {
	settings = Defaults()
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ours := strings.CutPrefix(key, Prefix)
		if !ours {
			continue
		}
		set := setters[name]
		if set == nil {
			wrong = append(wrong, fmt.Errorf("there is no annotation %s: want one of %s*, with %s", key, Prefix,
				strings.Join(slices.Sorted(maps.Keys(setters)), ", ")))
			continue
		}
		if err := set(&settings, annotations[key]); err != nil {
			wrong = append(wrong, fmt.Errorf("annotation %s is %.100q: %w", key, annotations[key], err))
		}
	}
	if settings.AvoidMax < settings.AvoidFor {
		wrong = append(wrong, fmt.Errorf("annotation %savoid-max (%s) is less than avoid-for (%s)", Prefix,
			settings.AvoidMax, settings.AvoidFor))
		settings.AvoidMax = settings.AvoidFor
	}
	return settings, wrong
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

func setEngine(to *string, text string) error {
	if !slices.Contains(Engines, text) {
		return fmt.Errorf("want one of %s", strings.Join(Engines, ", "))
	}
	*to = text
	return nil
}

func setPath(to *string, text string) error {
	if !strings.HasPrefix(text, "/") || strings.ContainsAny(text, " #?\t\r\n") {
		return errors.New("want a path such as /metrics")
	}
	*to = text
	return nil
}

func setBool(to *bool, text string) error {
	switch text {
	case "true", "false":
		*to = text == "true"
		return nil
	}
	return errors.New("want true or false")
}
