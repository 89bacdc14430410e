package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/output"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/top"
)

// minInterval is the shortest interval at which the command asks a picker.
const minInterval = 200 * time.Millisecond

// Escape sequences of terminals. To overwrite the old text, and then clear the rest, flickers less than to clear the screen
// first.
const (
	clearAll   = "\x1b[2J"
	home       = "\x1b[H"
	restOfLine = "\x1b[K"
	below      = "\x1b[J"
)

type topOptions struct {
	*options
	once      bool
	interval  time.Duration
	pickerURL string
}

func newTop(shared *options) *cobra.Command {
	o := &topOptions{options: shared}
	c := &cobra.Command{
		Use:   "top POOL",
		Short: "Show the endpoints of a pool as its picker sees them now",
		Long: "Show the load of each endpoint of a pool: calls running and waiting, use of the KV cache, LoRA adapters, the\n" +
			"picker's reservations, the share of prompt tokens from cache, the time to the first token. In a terminal the table\n" +
			"is shown again and again until Ctrl-C. The command reaches the picker through the API server, which needs the right\n" +
			"to get pods/proxy.",
		Example: examples(`
			# Watch a pool
			kubectl inference top llama -n models

			# Show the table once, with all columns
			kubectl inference top llama -n models --once -o wide

			# Ask a picker without a cluster
			kubectl inference top llama -n models --picker-url http://127.0.0.1:9091`),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: o.completePools,
		RunE:              func(c *cobra.Command, args []string) error { return o.run(c.Context(), args[0]) },
	}
	o.addFormat(c)
	c.Flags().BoolVar(&o.once, "once", false, "show the table once; this is the default if the output is not a terminal, or is JSON or YAML")
	c.Flags().DurationVar(&o.interval, "interval", 2*time.Second, "`time` between two updates")
	addPickerURL(c, &o.pickerURL)
	return c
}

func (o *topOptions) run(ctx context.Context, pool string) error {
	if o.interval < minInterval {
		return fmt.Errorf("--interval is %s: want %s or more", o.interval, minInterval)
	}
	namespace, err := o.namespace()
	if err != nil {
		return err
	}
	picker, _, err := o.picker(ctx, o.pickerURL, namespace, pool)
	if err != nil {
		return err
	}
	look := lookAt(picker, namespace, pool)
	people := o.format == output.Table || o.format == output.Wide
	if o.once || !people || !isTerminal(o.Out) {
		report, err := look(ctx)
		if err != nil {
			return err
		}
		return o.write(report)
	}
	return o.watch(ctx, namespace, pool, look)
}

// searchInterval is the time after which a pool may have gone to another picker, and the command looks for it again.
const searchInterval = 15 * time.Second

// watch shows one table after the other until ctx ends. After a failure it shows the error instead of the table. Then, and
// after searchInterval, it looks for the pool's picker again, as the old one may have been replaced or another one picks.
func (o *topOptions) watch(ctx context.Context, namespace, pool string, look func(context.Context) (top.Report, error)) error {
	_, _ = fmt.Fprint(o.Out, clearAll)
	for searched := time.Now(); ; {
		report, err := look(ctx)
		text := report.Text(o.format == output.Wide)
		if err != nil {
			text = err.Error() + "\n"
		}
		if err != nil || o.pickerURL == "" && time.Since(searched) > searchInterval {
			searched = time.Now()
			if picker, _, found := o.picker(ctx, o.pickerURL, namespace, pool); found == nil {
				look = lookAt(picker, namespace, pool)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if _, err := fmt.Fprint(o.Out, home, strings.ReplaceAll(text, "\n", restOfLine+"\n"), below); err != nil {
			return fmt.Errorf("writing to the terminal: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(o.interval):
		}
	}
}

func lookAt(picker *cluster.Picker, namespace, pool string) func(context.Context) (top.Report, error) {
	return func(ctx context.Context) (top.Report, error) {
		state, err := picker.State(ctx, namespace+"/"+pool)
		return top.Report{State: state, Picker: picker.Name}, err
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
