// Command preview shows picking on one machine without Kubernetes and without a mesh: a real Envoy with a waypoint's
// filters and routes, the picker with its pool in a file, and stand-ins for model servers. It holds the demo's
// conversations, first with picking and then with Envoy's round robin. It exits 0 only if every call was served and picking
// was clearly better. It needs no root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/conversations"
	"github.com/inference-waypoint/inference-waypoint/integration/local"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
)

// limit bounds the run. It takes twenty seconds, and longer on a machine under heavy load.
const limit = 10 * time.Minute

const (
	servers    = 4
	poolName   = "models/llama"
	picked     = "picked"      // the listener with a waypoint's configuration
	roundRobin = "round robin" // the listener of a plain Envoy
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, context.Canceled):
		os.Exit(130) // the status of an interrupted program, so that a calling script stops too
	default:
		fmt.Fprintf(os.Stderr, "preview: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("preview", flag.ContinueOnError)
	envoy := flags.String("envoy", ".tools/envoy", "Envoy's program")
	bin := flags.String("bin", "bin", "folder of the programs picker and modelserver")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the preview was not over within %s", limit))
	defer cancel()
	dir, err := os.MkdirTemp("", "preview")
	if err != nil {
		return err
	}
	p := &preview{out: out, dir: dir, bin: *bin, envoy: *envoy}
	defer func() {
		p.stop()
		if err == nil || errors.Is(err, context.Canceled) {
			_ = os.RemoveAll(dir)
			return
		}
		err = fmt.Errorf("%w (the programs' logs are in %s)", err, dir)
	}()
	return p.show(ctx)
}

type preview struct {
	out             io.Writer
	dir, bin, envoy string

	processes []*local.Process
	servers   []string          // addresses
	doors     map[string]string // Envoy's listeners by name
}

func (p *preview) show(ctx context.Context) error {
	if err := p.start(ctx); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(p.out, "\nEnvoy, configured as a waypoint, the picker and %d model servers are up; there is no Kubernetes.\n", servers)
	run := &conversations.Run{Out: p.out, Callers: map[string]*http.Client{}, Models: conversations.Everyone(conversations.StandIn)}
	for _, service := range conversations.Services {
		run.Callers[service] = &http.Client{}
	}
	withPicking, err := run.Hold(ctx, "with picking", "http://"+p.doors[picked])
	if err != nil {
		return err
	}
	if err := p.emptyCaches(ctx); err != nil {
		return err
	}
	without, err := run.Hold(ctx, "with Envoy's round robin", "http://"+p.doors[roundRobin])
	if err != nil {
		return err
	}
	return conversations.Compare(p.out, withPicking, roundRobin, without, conversations.Clearly)
}

// start starts all programs, each with a log in the folder.
func (p *preview) start(ctx context.Context) error {
	for n := range servers {
		address, err := p.startServer(ctx, fmt.Sprintf("llama-%d", n+1))
		if err != nil {
			return err
		}
		p.servers = append(p.servers, address)
	}
	pools := filepath.Join(p.dir, "pools.yaml")
	text := fmt.Sprintf("pools:\n- name: %s\n  endpoints: ['%s']\n", poolName, strings.Join(p.servers, "', '"))
	if err := os.WriteFile(pools, []byte(text), 0o600); err != nil {
		return err
	}
	picker, err := local.StartPicker(ctx, filepath.Join(p.bin, "picker"), filepath.Join(p.dir, "picker.log"), "--static="+pools)
	if err != nil {
		return err
	}
	p.processes = append(p.processes, picker.Process)
	listeners, clusters, err := p.configuration(picker.Addresses["extproc"])
	if err != nil {
		return err
	}
	envoy, err := local.StartEnvoy(ctx, p.envoy, p.dir, listeners, clusters)
	if err != nil {
		return err
	}
	p.processes = append(p.processes, envoy.Process)
	p.doors = envoy.Addresses
	return nil
}

// startServer starts a model server on a free port, and waits until it serves.
func (p *preview) startServer(ctx context.Context, name string) (address string, err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	address = listener.Addr().String()
	if err := listener.Close(); err != nil {
		return "", err
	}
	log := filepath.Join(p.dir, name+".log")
	process, err := local.Start(log, filepath.Join(p.bin, "modelserver"), append([]string{"--address=" + address, "--name=" + name}, conversations.ServerFlags...)...)
	if err != nil {
		return "", fmt.Errorf("starting model server %s: %w", name, err)
	}
	p.processes = append(p.processes, process)
	if err := process.Await(ctx, log, func() error { return call(ctx, http.MethodGet, address, "/health") }); err != nil {
		return "", fmt.Errorf("starting model server %s: %w", name, err)
	}
	return address, nil
}

// configuration returns Envoy's configuration: a waypoint's listener, which asks the picker, and a plain one.
func (p *preview) configuration(picker string) (listeners, clusters []local.Object, err error) {
	asked := envoypatch.Picker{Host: "picker.test", Port: 9002, FailOpen: true, Metadata: map[string]string{"inference-waypoint-pool": poolName}}
	waypoint, err := local.Manager(envoypatch.VirtualHost{Name: picked, Picker: asked, Routes: []envoypatch.Route{
		{Name: "all", To: []envoypatch.Destination{{Cluster: picked, Weight: 1, Picker: &asked}}},
	}}, "")
	if err != nil {
		return nil, nil, fmt.Errorf("making a waypoint's configuration: %w", err)
	}
	pickers := local.Cluster("outbound|9002||picker.test", picker)
	pickers["typed_extension_protocol_options"] = local.HTTP2(local.Object{})
	return []local.Object{local.Listener(picked, waypoint), local.Listener(roundRobin, local.PlainManager(roundRobin))},
		[]local.Object{
			pickers,
			local.PoolCluster(picked, p.servers, local.Object{"metadata": local.Metadata("x-gateway-destination-endpoint")}),
			local.Cluster(roundRobin, p.servers...),
		}, nil
}

// emptyCaches makes every model server forget its prefixes, so that both runs start alike.
func (p *preview) emptyCaches(ctx context.Context) error {
	for _, address := range p.servers {
		if err := call(ctx, http.MethodPost, address, "/reset_prefix_cache"); err != nil {
			return fmt.Errorf("emptying the caches: %w", err)
		}
	}
	return nil
}

func call(ctx context.Context, method, address, path string) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s%s: %s", address, path, response.Status)
	}
	return nil
}

func (p *preview) stop() {
	for _, process := range p.processes {
		process.Stop()
	}
}
