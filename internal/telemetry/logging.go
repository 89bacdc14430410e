// Package telemetry holds what the programs tell about themselves: logs, metrics and traces. It knows the metrics'
// names and labels and nothing of what is measured; no other room of the project is imported here.
package telemetry

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"golang.org/x/time/rate"
)

const (
	// warningBurst is how many warnings of one text are written without a pause, and warningRate how many a second
	// after that: what goes wrong for each of 10,000 calls a second is told, and does not fill a disk.
	warningBurst = 10
	warningRate  = rate.Limit(1)

	// warningTexts bounds the texts that are told apart. Those of our own are constant, those of libraries may not be.
	warningTexts = 1000
)

// NewLogger makes a logger that writes one JSON object a line. A level can be a *slog.LevelVar, to be changed later.
//
// Warnings and errors that say the same are thinned out: ten at once are written, then one a second, and "omitted" in
// it tells how many there were between.
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(&sampler{
		Handler: slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}),
		warned:  &warnings{byText: map[string]*warning{}},
	})
}

// sampler passes on what is below a warning, and of warnings what their rate allows.
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

// warnings are the warnings of late by their text.
type warnings struct {
	mu     sync.Mutex
	byText map[string]*warning
}

type warning struct {
	allowed *rate.Limiter
	omitted int
}

// note takes note of a warning and decides whether it is written, and what it then tells as omitted.
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
