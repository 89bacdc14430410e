// Package conformance runs the conformance tests of the Gateway API Inference Extension in the real mesh: the checks
// and manifests of the suite's own module, with a waypoint in the place of a Gateway (manifests_test.go), calls that
// speak HBONE in the place of calls to a Gateway's address (calls_test.go), and only our own words in the statuses that
// they look at (judge_test.go). All of the suite's tests apply, and none is left out. It is a module of its own so that
// what the suite depends on stays out of the project's.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

// the is what all tests share: the mesh, a service that calls, and where a line for each test goes.
var the struct {
	*mesh.Mesh
	caller *mesh.Caller
	out    io.Writer
}

// programs holds the backend and the endpoint picker of the suite, relative to this folder.
const programs = "../../bin/conformance"

func TestMain(m *testing.M) {
	// Built before the mesh's namespaces are entered, which have no network to fetch a module by.
	if out, err := exec.Command("go", "build", "-o", programs+"/", "./echo", "./epp").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the suite's programs: %v: %s\n", err, out)
		os.Exit(1)
	}
	mesh.Enter()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx := context.Background()
	bin, err := filepath.Abs(programs)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	started, err := mesh.Start(ctx, mesh.Options{Progress: os.Stderr, Images: map[string]mesh.Image{
		"gcr.io/k8s-staging-gateway-api/echo-basic":             {Path: filepath.Join(bin, "echo"), Args: echoArgs},
		"registry.k8s.io/gateway-api-inference-extension/lwepp": {Path: filepath.Join(bin, "epp"), Args: eppArgs},
	}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer started.Close()
	the.Mesh, the.out = started, os.Stdout
	if err := install(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		started.ShowLogs(os.Stderr, 30)
		return 1
	}
	return runLogged(m)
}

// runLogged runs the tests with all that the suite says in a file, as it says thousands of lines, and a line for each
// test on the terminal. What there is to say of a failure is kept with it.
func runLogged(m *testing.M) int {
	dir := filepath.Join(the.Root, ".mesh", "conformance")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	log, err := os.Create(filepath.Join(dir, "suite.log"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = log.Close() }()
	os.Stdout = log
	code := m.Run()
	for _, refusal := range the.Refusals() {
		_, _ = fmt.Fprintln(the.out, "FAILED          a waypoint refused its configuration:", refusal)
		code = 1
	}
	if code != 0 {
		_, _ = fmt.Fprintln(the.out, "What the suite says:", log.Name())
		_, _ = fmt.Fprintln(the.out, "The mesh's logs:", dir, errors.Join(os.RemoveAll(filepath.Join(dir, "mesh")), the.KeepLogs(filepath.Join(dir, "mesh"))))
	}
	return code
}

// install puts up the product and a service that calls.
func install(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not within two minutes"))
	defer cancel()
	if err := the.Apply(ctx, "manifests"); err != nil {
		return err
	}
	for _, name := range []string{"inference-controller", "inference-picker"} {
		if err := the.AwaitDeployment(ctx, "inference-system", name); err != nil {
			return err
		}
	}
	if err := the.ApplyYAML(ctx, `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}`); err != nil {
		return err
	}
	var err error
	the.caller, err = the.NewCaller(ctx, "shop", "checkout", "checkout")
	return err
}

// echoArgs makes one program serve the ports of all containers of a backend's pod: the mesh runs a program a pod.
func echoArgs(p *corev1.Pod, _ string, _ []string) ([]string, error) {
	var http1, h2c []string
	for _, c := range p.Spec.Containers {
		http1 = append(http1, variable(c, "HTTP_PORT", "3000"))
		h2c = append(h2c, variable(c, "H2C_PORT", "3001"))
	}
	return []string{"--address=" + p.Status.PodIP, "--http=" + strings.Join(http1, ","), "--h2c=" + strings.Join(h2c, ",")}, nil
}

func variable(c corev1.Container, name, otherwise string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return otherwise
}

// eppArgs adds the pod's own address to what the suite says.
func eppArgs(p *corev1.Pod, _ string, args []string) ([]string, error) {
	return append([]string{"--address=" + p.Status.PodIP}, args...), nil
}
