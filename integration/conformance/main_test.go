// Package conformance runs the conformance tests of the Gateway API Inference Extension in the real mesh, with the checks
// and manifests of the suite's own module. A waypoint replaces a Gateway (manifests_test.go), calls by HBONE replace calls
// to a Gateway's address (calls_test.go), and the checks see only our entries in statuses (judge_test.go). No test is left
// out. It is a module of its own, to keep the suite's dependencies out of the project's.
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

// the is shared by all tests: the mesh, a service that makes calls, and the output for a line per test.
var the struct {
	*mesh.Mesh
	caller *mesh.Caller
	out    io.Writer
}

// programs is the folder of the suite's backend and endpoint picker, relative to this folder.
const programs = "../../bin/conformance"

func TestMain(m *testing.M) {
	// They are built before Enter, as the mesh's namespaces have no network to fetch modules.
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

// runLogged runs the tests with the suite's output, which is thousands of lines, in a file, and prints one line per test on
// the terminal. The file also keeps the details of failures.
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

// install applies the product and a service that makes calls.
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

// echoArgs makes one program serve the ports of all containers of a backend's pod, as the mesh runs one program per pod.
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

// eppArgs adds the pod's own address to the suite's arguments.
func eppArgs(p *corev1.Pod, _ string, args []string) ([]string, error) {
	return append([]string{"--address=" + p.Status.PodIP}, args...), nil
}
