package mesh

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/sandbox"
)

// roleEnv makes this test binary run a mesh until its standard input ends, instead of tests.
const roleEnv = "MESH_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) == "" {
		os.Exit(m.Run())
	}
	Enter()
	if err := holdMesh(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func holdMesh() error {
	m, err := Start(context.Background(), Options{})
	if err != nil {
		return err
	}
	defer m.Close()
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	fmt.Println(here)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// held is a mesh in another process.
type held struct {
	cmd       *exec.Cmd
	stdin     io.Closer
	stdout    io.Reader
	namespace string // its network namespace, which identifies its processes; empty until it has started
}

// hold starts a mesh in another process and does not wait.
func hold(t *testing.T) *held {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"=hold")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return &held{cmd: cmd, stdin: stdin, stdout: stdout}
}

// awaitStart waits until the mesh runs.
func (h *held) awaitStart(t *testing.T) {
	t.Helper()
	line, err := bufio.NewReader(h.stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the mesh did not start: %v (%v)", err, h.cmd.Wait())
	}
	h.namespace = strings.TrimSpace(line)
	if n := len(h.processes()); n < 4 { // this program, etcd, kube-apiserver, istiod
		t.Fatalf("a mesh has %d processes: %v", n, h.processes())
	}
}

// processes lists the programs that run in the mesh's network namespace.
func (h *held) processes() []string {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net") // the pattern is a constant: it cannot be malformed
	var out []string
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && ns == h.namespace {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(link)), "comm")) // the process may have ended meanwhile
			out = append(out, strings.TrimSpace(string(name)))
		}
	}
	return out
}

// wantGone fails the test unless all processes of the mesh end soon.
func (h *held) wantGone(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := h.processes()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v are left of a mesh that has ended", left)
		}
		time.Sleep(25 * time.Millisecond)
	}
}

// Two meshes run at once. A killed mesh and a stopped one both leave nothing, and a new mesh starts after them.
func TestMeshesLeaveNothing(t *testing.T) {
	if err := sandbox.CheckHost(); err != nil {
		t.Fatal(err)
	}
	before := listing(t, sandbox.WorkDir)
	killed, interrupted := hold(t), hold(t)
	killed.awaitStart(t)
	interrupted.awaitStart(t)

	if err := killed.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = killed.cmd.Wait() // the error says that it was killed
	killed.wantGone(t)
	if n := len(interrupted.processes()); n < 4 {
		t.Errorf("the end of one mesh took processes of another: %v are left", interrupted.processes())
	}
	if err := interrupted.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = interrupted.cmd.Wait() // the status is that of an interrupted program
	interrupted.wantGone(t)

	again := hold(t)
	again.awaitStart(t)
	if err := again.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := again.cmd.Wait(); err != nil {
		t.Errorf("a mesh that was closed ended with %v", err)
	}
	again.wantGone(t)
	if after := listing(t, sandbox.WorkDir); after != before {
		t.Errorf("%s held\n%s before and\n%s after", sandbox.WorkDir, before, after)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, e := range entries {
		_, _ = fmt.Fprintln(&out, e.Name())
	}
	return out.String()
}
