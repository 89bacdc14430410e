// Package picksettings reads the annotations of an InferencePool that set how our picker picks for it: their names, bounds
// and defaults. It must not know how the picker uses a setting. Both programs read annotations here: the controller
// reports wrong ones in events, and the picker applies the valid ones.
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

// Prefix starts the annotations' names. docs/picker-settings.md lists the full names and the defaults.
const Prefix = pool.Prefix + "pick-"

// MostTokens bounds the size of a cache: 2³⁰ tokens, hundreds of times the cache of one server.
const MostTokens = 1 << 30

// Settings are the settings of one pool.
type Settings struct {
	// SessionHeader is the name, in lower case, of the header that keeps the calls of a session together; "" is none.
	SessionHeader string
	// CacheBias multiplies the cost to other calls of a token to prefill.
	CacheBias float64
	// Spread bounds an endpoint's calls in flight to this multiple of the mean, or of its share of the pool's speed if that is more.
	Spread float64
	// PrefillRate is the assumed prefill speed of an endpoint, in tokens a second, until its own speed is learned.
	PrefillRate float64
	// CacheTokens is the assumed size of an endpoint's prefix cache, in tokens, until its metrics show the size.
	CacheTokens int
	// AdapterLoad is the time that loading a LoRA adapter takes.
	AdapterLoad time.Duration
	// AvoidFor is how long the picker avoids an endpoint after its first failure. The time doubles with each further
	// failure, up to AvoidMax.
	AvoidFor, AvoidMax time.Duration
	// Engine is one of Engines, or "" where the picker finds the engine out from the metrics.
	Engine string
	// MetricsPath is the path of each endpoint's metrics.
	MetricsPath string
	// PrefixEvents makes the picker learn from the servers' events what their caches have.
	PrefixEvents bool
	// Split makes all pickers pick for the pool, each for a part of its callers. Else one picks for all.
	Split bool
	// Usage makes the picker count the tokens in the usage of the endpoints' answers.
	Usage bool
	// Patience is how long a call may wait at the picker. A call that would wait longer is refused. With 0 no call waits at the
	// picker, and none is refused for its time.
	Patience time.Duration
	// Callers are rules for callers, in the form that ParseCallers reads; "" is none.
	Callers string
	// TrustCallers makes the picker believe headers that name a call's caller and objective.
	TrustCallers bool
	// EndpointsWithin is how long a call waits for an endpoint while the pool has none.
	EndpointsWithin time.Duration
}

// Engines are the known model servers, by their names in the Gateway API Inference Extension.
var Engines = []string{"vllm", "sglang", "trtllm-serve", "triton-tensorrt-llm"}

// Defaults are the settings of a pool without annotations. CacheTokens is the order of magnitude for an 8B model on an
// 80 GB device.
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
		Patience:    30 * time.Second,
	}
}

// MostPatience bounds how long a pool lets calls wait: Envoy ends a stream by default on which nothing happens for five minutes.
const MostPatience = 4 * time.Minute

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
	"engine":           func(s *Settings, v string) error { return setEngine(&s.Engine, v) },
	"metrics-path":     func(s *Settings, v string) error { return setPath(&s.MetricsPath, v) },
	"prefix-source":    func(s *Settings, v string) error { return setEither(&s.PrefixEvents, v, "text", "events") },
	"split":            func(s *Settings, v string) error { return setEither(&s.Split, v, "none", "callers") },
	"patience":         func(s *Settings, v string) error { return setTime(&s.Patience, v, 0, MostPatience) },
	"callers":          func(s *Settings, v string) error { return setCallers(&s.Callers, v) },
	"trust-callers":    func(s *Settings, v string) error { return setBool(&s.TrustCallers, v) },
	"endpoints-within": func(s *Settings, v string) error { return setTime(&s.EndpointsWithin, v, 0, MostPatience) },
	"usage":            func(s *Settings, v string) error { return setBool(&s.Usage, v) },
}

// Parse reads a pool's annotations. Wrong has an error for each wrong annotation, in the order of their names. The
// settings have the default for each wrong annotation, so the picker can use them.
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

func setCallers(to *string, text string) error {
	if _, err := ParseCallers(text); err != nil {
		return err
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

// setEither takes one of two words, the second of which sets the setting.
func setEither(to *bool, text, no, yes string) error {
	switch text {
	case no, yes:
		*to = text == yes
		return nil
	}
	return fmt.Errorf("want %s or %s", no, yes)
}
