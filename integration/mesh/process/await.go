package process

import (
	"context"
	"fmt"
	"time"
)

// pollInterval is the time between checks of a condition: short enough to add no noticeable delay, and long enough to leave
// two cores to the awaited work.
const pollInterval = 25 * time.Millisecond

// Await polls check until it returns nil. It ends early when ctx ends or when one of the processes in needs has ended. Its
// error holds the last error of check.
func Await(ctx context.Context, what string, check func(context.Context) error, needs ...*Process) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var err error
	for {
		last := err
		if err = check(ctx); err == nil {
			return nil
		}
		if last != nil && ctx.Err() != nil {
			err = last // a check that the end of ctx broke off says nothing
		}
		for _, p := range needs {
			select {
			case <-p.done:
				return fmt.Errorf("waiting for %s: %s ended (%w); before that: %w", what, p.name, p.err, err)
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}
