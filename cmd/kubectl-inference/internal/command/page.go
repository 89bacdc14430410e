package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
)

type pageOptions struct {
	*options
	address, pod string
}

func newPage(shared *options) *cobra.Command {
	o := &pageOptions{options: shared}
	c := &cobra.Command{
		Use:   "page",
		Short: "Show the picker's page in your browser",
		Long: "Serve the page of the picker on this machine until Ctrl-C: all pools, their endpoints with load and adapters, and some\n" +
			"recent picks. It reaches the picker through the API server, which needs the right to get pods/proxy. The picker shows\n" +
			"the page to users who may get inferencepools/state in all namespaces.",
		Example: examples(`
			# Serve the page, and then open http://127.0.0.1:9091
			kubectl inference page

			# The same for one of several pickers
			kubectl inference page --pod inference-picker-6d5f8b7c9-x2x4z`),
		Args:              cobra.NoArgs,
		ValidArgsFunction: noFiles,
		RunE:              func(c *cobra.Command, _ []string) error { return o.run(c.Context()) },
	}
	c.Flags().StringVar(&o.pod, "pod", "", "`name` of the picker's pod; of several pickers each shows the calls to its own pools")
	c.Flags().StringVar(&o.address, "address", "127.0.0.1:9091", "serve the page on this `address`; everybody who can reach it reads with your rights")
	return c
}

func (o *pageOptions) run(ctx context.Context) error {
	connection, err := o.connect()
	if err != nil {
		return err
	}
	picker, others, err := connection.AnyPicker(ctx, o.pod)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		_, _ = fmt.Fprintf(o.ErrOut, "There are other pickers, and each shows the calls to its own pools: --pod %s\n", strings.Join(others, ", --pod "))
	}
	// An error is better shown here than in the browser.
	if _, err := picker.State(ctx, ""); err != nil {
		return err
	}
	return o.serve(ctx, picker)
}

func (o *pageOptions) serve(ctx context.Context, picker *cluster.Picker) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.address)
	if err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	server := &http.Server{Handler: picker.Proxy(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // requests in flight need not end
	defer stop()
	_, _ = fmt.Fprintf(o.Out, "The page of the picker, %s, is at http://%s until Ctrl-C.\n", picker.Name, listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the page: %w", err)
	}
	return nil
}
