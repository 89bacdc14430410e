package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lines returns the messages of a log, each with its "omitted" attribute.
func lines(t *testing.T, log *bytes.Buffer) []string {
	t.Helper()
	var out []string
	for d := json.NewDecoder(log); d.More(); {
		var line struct {
			Msg     string
			Omitted int
		}
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s, omitted %d", line.Msg, line.Omitted))
	}
	return out
}

func TestLoggerThinsOutWarnings(t *testing.T) {
	var out bytes.Buffer
	log := NewLogger(&out, slog.LevelInfo)
	handlers := []slog.Handler{log.Handler(), log.With("pool", "models/llama").Handler()} // one rate for both
	tell := func(times int, after time.Duration, level slog.Level, text string) {
		for i := range times {
			record := slog.NewRecord(time.Unix(1, 0).Add(after), level, text, 0)
			if err := handlers[i%2].Handle(t.Context(), record); err != nil {
				t.Fatal(err)
			}
		}
	}
	tell(30, 0, slog.LevelWarn, "full")
	tell(1, 0, slog.LevelError, "another")
	tell(1, 500*time.Millisecond, slog.LevelWarn, "full") // too early
	tell(1, time.Second, slog.LevelWarn, "full")
	tell(1, 2*time.Second, slog.LevelWarn, "full")
	tell(12, 2*time.Second, slog.LevelInfo, "no warning")

	want := slices.Repeat([]string{"full, omitted 0"}, 10)
	want = append(want, "another, omitted 0", "full, omitted 21", "full, omitted 0")
	want = append(want, slices.Repeat([]string{"no warning, omitted 0"}, 12)...)
	if diff := cmp.Diff(want, lines(t, &out)); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

// The logger does not grow with a library whose warnings all have different texts.
func TestLoggerForgetsTexts(t *testing.T) {
	w := &warnings{byText: map[string]*warning{}}
	for i := range 3 * warningTexts {
		if _, write := w.note(slog.NewRecord(time.Unix(1, 0), slog.LevelWarn, fmt.Sprint(i), 0)); !write {
			t.Fatalf("warning %d was left out", i)
		}
	}
	if len(w.byText) > warningTexts {
		t.Errorf("%d texts are known, want at most %d", len(w.byText), warningTexts)
	}
}
