package process

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// Await of a condition that never holds says why at the timeout, and at once when a needed process has ended.
func TestAwaitTellsWhy(t *testing.T) {
	never := func(context.Context) error { return errors.New("not yet") }
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*pollInterval, errors.New("out of time"))
	defer cancel()
	err := Await(ctx, "it", never)
	if err == nil || !strings.Contains(err.Error(), "not yet") || !strings.Contains(err.Error(), "out of time") {
		t.Errorf("got %v, want both reasons", err)
	}
	p, err := Start(t.TempDir(), Program{Name: "brief", Path: "/bin/false"})
	if err != nil {
		t.Fatal(err)
	}
	err = Await(t.Context(), "it", never, p)
	if err == nil || !strings.Contains(err.Error(), "brief ended (exit status 1)") {
		t.Errorf("got %v, want that the program ended", err)
	}
}
