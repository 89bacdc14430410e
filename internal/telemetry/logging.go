// Package telemetry holds what the programs tell about themselves: logs and metrics. It knows the metrics' names and
// labels and nothing of what is measured; no other room of the project is imported here.
package telemetry

import (
	"io"
	"log/slog"
)

// NewLogger makes a logger that writes one JSON object a line. A level can be a *slog.LevelVar, to be changed later.
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}
