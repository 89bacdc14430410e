package process

import (
	"context"
	"fmt"
	"time"
)

// pollInterval is how often a condition is looked at: often enough that nothing is waited for in vain, and seldom
// enough to leave two cores to what is awaited.
const pollInterval = 25 * time.Millisecond

// Await looks at a condition until it holds, which it says by returning nil. It ends early when ctx does or when one of
// the processes that it depends on has ended, and then tells the last reason why the condition did not hold.
func Await(ctx context.Context, what string, check func(context.Context) error, needs ...*Process) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
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
