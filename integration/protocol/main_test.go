// Package protocol tests the picker's program against the Endpoint Picker Protocol 1.0.0 through a real Envoy, which calls
// HTTP servers as the picker says. The tests judge what Envoy does. They must not test how an endpoint is picked. The tests
// one folder up have a mesh, which configures Envoy as a waypoint.
//
// Each sentence of the protocol with MUST, and the test of it:
//
//	implement the external processing service             TestBodies: each way of sending bodies that Envoy has
//	support streaming for requests and responses          TestStreaming
//	only select from the subset's list                    TestSubset
//	503 as ImmediateResponse if none of it is eligible    TestSubset
//	without a subset, select from the pool                TestDestination
//	communicate endpoints by header and metadata          TestDestination, with Envoy reading the one and the other
//	metadata in envoy.lb, under the header's name         TestDestination
//	at least one endpoint, as ip:port[,ip:port…]          TestDestination; a retry goes to the next one: TestRetry
//	not two values in header and metadata                 TestDestination, also if the client sends the header
//	503 as ImmediateResponse if none is ready             TestRefusals
//	429 as ImmediateResponse for dropped requests         none is dropped: over the limits the failure mode decides, TestRefusals
//	(the proxy) communicate the endpoint that served      TestRetry: the picker reads it and moves the reservation
//	implement health checking                             TestHealth, TestEnvoyChecksHealth, TestDrain
//
// Two more sentences bind only the proxy: it wraps subset and pick in the namespaces that the picker reads.
//
// TestRoutesThatNeverCome tests the controller's side: what a chain serves if its routes come late or never.
//
// A gRPC client in internal/picker/extproc tests what Envoy cannot produce: messages out of order or cut anywhere, unknown
// and repeated fields, headers without a path (Envoy itself answers 400), proxies that do not send their body modes,
// messages over the size limit, and the words of each sentence above, byte by byte (TestProtocol there).
package protocol

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/inference-waypoint/inference-waypoint/integration/local"
)

// the is shared by all tests: one Envoy, the pickers that it asks, and the endpoints behind it.
var the *world

type world struct {
	dir     string
	pools   map[string]*fleet
	pickers map[string]*picker
	patient *patientPicker
	own     map[string]*ownPicker
	envoy   *local.Envoy
	started time.Time // the pickers know all pools since then

	streamsPerConnection int64 // that Envoy opens to a picker
}

// fleet is a pool's endpoints.
type fleet struct{ endpoints []*endpoint }

func (f *fleet) addresses() []string {
	var out []string
	for _, e := range f.endpoints {
		out = append(out, e.address)
	}
	return out
}

// The pools, with the hosts of their endpoints. A test that changes an endpoint, or counts a pool's calls, has a pool of
// its own.
var poolHosts = map[string][]string{
	"general": {"127.0.0.1", "127.0.0.1", "[::1]"},
	"single":  {"127.0.0.1"},
	"empty":   {},
	"retried": {"127.0.0.1", "127.0.0.1"},
	"huge":    {"127.0.0.1", "127.0.0.1"},
	"left":    {"127.0.0.1", "127.0.0.1"},
	"removed": {"127.0.0.1", "127.0.0.1"},
	"idle":    {"127.0.0.1", "127.0.0.1"},
	"http2":   {"127.0.0.1", "127.0.0.1"},
	"broken":  {"127.0.0.1"},
	"limited": {"127.0.0.1", "127.0.0.1", "127.0.0.1"},
}

// The pickers' flags. A test that ends a picker has a process of its own.
var pickerFlags = map[string][]string{
	"main":    {"--max-message-bytes=16777216"}, // Envoy's BUFFERED door buffers 8 MiB
	"narrow":  {"--max-streams=1"},
	"killed":  {},
	"cut":     {},
	"counted": {},
	"drained": {"--drain-delay=3s", "--drain-timeout=1m"},
	"parted":  {"--drain-delay=0s", "--drain-timeout=100ms"},
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "protocol")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	the = &world{dir: dir, pools: map[string]*fleet{}, pickers: map[string]*picker{}, own: map[string]*ownPicker{}}
	defer the.stop()
	if err := the.start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if code = m.Run(); code != 0 {
		the.showLogs()
	}
	return code
}

func (w *world) start() error {
	envoy, err := filepath.Abs("../../.tools/envoy")
	if err != nil {
		return err
	}
	if _, err := os.Stat(envoy); err != nil {
		return fmt.Errorf("there is no Envoy: make tools installs one: %w", err)
	}
	program := filepath.Join(w.dir, "picker")
	if out, err := exec.Command("go", "build", "-C", "../..", "-o", program, "./cmd/picker").CombinedOutput(); err != nil {
		return fmt.Errorf("building the picker: %w: %s", err, out)
	}
	if w.streamsPerConnection, err = readStreamsPerConnection(); err != nil {
		return err
	}
	if err := w.startPools(); err != nil {
		return err
	}
	// Programs that are built already start soon; the time of a build depends on Go's cache.
	ctx, cancel := context.WithTimeoutCause(context.Background(), 3*time.Minute, errors.New("not within three minutes"))
	defer cancel()
	if err := w.startPickers(ctx, program); err != nil {
		return err
	}
	if w.patient, err = startPatientPicker(); err != nil {
		return err
	}
	if err := w.startOwnPickers(); err != nil {
		return err
	}
	listeners, clusters := w.configuration()
	w.envoy, err = local.StartEnvoy(ctx, envoy, w.dir, listeners, clusters)
	w.started = time.Now()
	return err
}

func (w *world) startPools() error {
	for name, hosts := range poolHosts {
		f := &fleet{}
		for _, host := range hosts {
			e, err := startEndpoint(host)
			if err != nil {
				return err
			}
			f.endpoints = append(f.endpoints, e)
		}
		w.pools[name] = f
	}
	return w.writePools(func(string) bool { return true })
}

// poolsFile is the file that the pickers read.
func (w *world) poolsFile() string { return filepath.Join(w.dir, "pools.yaml") }

// writePools writes the pools that kept selects. It replaces the file in one step, as a reader must never see half of it.
func (w *world) writePools(kept func(name string) bool) error {
	text := "pools:\n"
	for name, f := range w.pools {
		if kept(name) {
			text += fmt.Sprintf("- name: %s\n  endpoints: ['%s']\n", poolName(name), strings.Join(f.addresses(), "', '"))
		}
	}
	text = strings.ReplaceAll(text, "['']", "[]")
	if err := os.WriteFile(w.poolsFile()+".new", []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing pools: %w", err)
	}
	return os.Rename(w.poolsFile()+".new", w.poolsFile())
}

// poolName is a pool's name at the picker.
func poolName(name string) string { return "protocol/" + name }

func (w *world) startPickers(ctx context.Context, program string) error {
	group, ctx := errgroup.WithContext(ctx)
	for name, flags := range pickerFlags {
		p := &picker{}
		w.pickers[name] = p
		group.Go(func() (err error) {
			log := filepath.Join(w.dir, "picker-"+name+".log")
			p.Picker, err = local.StartPicker(ctx, program, log, append(slices.Clone(flags), "--static="+w.poolsFile())...)
			return err
		})
	}
	return group.Wait()
}

func (w *world) stop() {
	if w.envoy != nil {
		w.envoy.Stop()
	}
	for _, p := range w.pickers {
		if p.Picker != nil {
			p.Stop()
		}
	}
	if w.patient != nil {
		w.patient.server.Stop()
	}
	for _, p := range w.own {
		p.server.Stop()
	}
	for _, f := range w.pools {
		for _, e := range f.endpoints {
			e.close()
		}
	}
}

func (w *world) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(w.dir, "*.log"))
	for _, log := range logs {
		text, _ := os.ReadFile(log) // an unreadable log is not shown
		fmt.Fprintf(os.Stderr, "--- the end of %s\n%s\n", filepath.Base(log), text[max(0, len(text)-4096):])
	}
}
