// Command demo shows the product on one machine: it starts a mesh, installs the controller and the picker, and calls a
// model through the waypoint as services would, first with picking and then with round robin. It exits 0 only if every call
// was served and picking was clearly better.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

func main() {
	mesh.Enter()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	keep := flags.Bool("keep", false, "leave the mesh running after the demo, until Ctrl-C")
	engine := flags.String("engine", standIn, "what serves the model: "+standIn+" or "+vllm)
	if err := flags.Parse(args); err != nil {
		return err
	}
	served, err := servedBy(*engine)
	if err != nil {
		return err
	}
	m, err := mesh.Start(ctx, mesh.Options{Progress: out, Images: served.images})
	if err != nil {
		return err
	}
	defer m.Close()
	demo := &demo{mesh: m, out: out, served: served}
	if err := demo.show(ctx); err != nil {
		return withLogs(m, err)
	}
	if *keep {
		return demo.keep(ctx)
	}
	return nil
}

// withLogs shows the ends of the mesh's logs, copies the logs to the checkout's .mesh, and adds their path to the error.
func withLogs(m *mesh.Mesh, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	m.ShowLogs(os.Stderr, 12)
	dir := filepath.Join(m.Root, ".mesh", fmt.Sprintf("demo-%d", os.Getppid()))
	if kept := m.KeepLogs(dir); kept != nil {
		return errors.Join(err, kept)
	}
	return fmt.Errorf("%w (the mesh's logs are in %s)", err, dir)
}
