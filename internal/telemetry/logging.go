// Package telemetry makes the programs' logs, metrics and traces. It must not know what is measured, only the metrics'
// names and labels: it imports no other package of the project.
package telemetry

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"golang.org/x/time/rate"
)

const (
	// warningBurst is how many warnings with one text are written without a pause, and warningRate how many a second after
	// that: a fault in each of 10,000 calls a second is logged, and does not fill a disk.
	warningBurst = 10
	warningRate  = rate.Limit(1)

	// warningTexts bounds the texts that are counted apart. The project's own are constant, those of libraries may not be.
	warningTexts = 1000
)

// NewLogger makes a logger that writes one JSON object a line. With a *slog.LevelVar the level can change later.
//
// Warnings and errors with the same text are limited: ten are written at once, then one a second. Its attribute
// "omitted" counts those that were left out before it.
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(&sampler{
		Handler: slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}),
		warned:  &warnings{byText: map[string]*warning{}},
	})
}

// sampler passes on records below a warning, and limits the rate of the others.
type sampler struct {
	slog.Handler
	warned *warnings
}

func (s *sampler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		omitted, write := s.warned.note(r)
		if !write {
			return nil
		}
		if omitted > 0 {
			r.AddAttrs(slog.Int("omitted", omitted))
		}
	}
	return s.Handler.Handle(ctx, r)
}

func (s *sampler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sampler{Handler: s.Handler.WithAttrs(attrs), warned: s.warned}
}

func (s *sampler) WithGroup(name string) slog.Handler {
	return &sampler{Handler: s.Handler.WithGroup(name), warned: s.warned}
}

// warnings are the recent warnings by their text.
type warnings struct {
	mu     sync.Mutex
	byText map[string]*warning
}

type warning struct {
	allowed *rate.Limiter
	omitted int
}

// note counts a warning, and returns whether it is written and how many were omitted before it.
func (w *warnings) note(r slog.Record) (omitted int, write bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	known := w.byText[r.Message]
	if known == nil {
		if len(w.byText) == warningTexts {
			clear(w.byText)
		}
		known = &warning{allowed: rate.NewLimiter(warningRate, warningBurst)}
		w.byText[r.Message] = known
	}
	if !known.allowed.AllowN(r.Time, 1) {
		known.omitted++
		return 0, false
	}
	omitted, known.omitted = known.omitted, 0
	return omitted, true
}
