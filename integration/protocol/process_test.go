package protocol

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// patience is how long is waited for what is to happen by itself. It is generous, as it is only used up on a failure.
const patience = 30 * time.Second

// process is a program that runs, with its output in a file.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; err is set then
	err  error
}

func startProcess(log, path string, args ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the process has its own
	p := &process{cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop ends the process: at once, as there is nothing to save.
func (p *process) stop() {
	_ = p.cmd.Process.Kill() // an error says that it has ended
	<-p.done
}

// memory is what the process holds now, in bytes.
func (p *process) memory(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kilobytes, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			must(t, err)
			return kilobytes << 10
		}
	}
	t.Fatal("the kernel tells no memory of the process")
	return 0
}

// picker is the picker's program.
type picker struct {
	*process
	addresses map[string]string // of extproc, health and metrics
}

// start runs the picker on free ports and learns these from its log.
func (p *picker) start(ctx context.Context, program, log string, flags []string) error {
	var err error
	p.process, err = startProcess(log, program, append([]string{
		"--extproc-address=127.0.0.1:0", "--health-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0"}, flags...)...)
	if err != nil {
		return fmt.Errorf("starting a picker: %w", err)
	}
	for !p.ready(log) {
		select {
		case <-p.done:
			return fmt.Errorf("a picker ended: %w", p.err)
		case <-ctx.Done():
			return fmt.Errorf("a picker is not ready: %w", context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// ready reads the log from its beginning.
func (p *picker) ready(log string) (ready bool) {
	file, err := os.Open(log)
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var entry struct{ Msg, For, Address string }
		_ = json.Unmarshal(lines.Bytes(), &entry) // what is no JSON has no fields
		if entry.Msg == "listening" {
			p.addresses[entry.For] = entry.Address
		}
		ready = ready || entry.Msg == "ready"
	}
	return ready
}

// terminate asks the picker to end, as Kubernetes does.
func (p *picker) terminate(t *testing.T) {
	t.Helper()
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
}

// ends waits for the picker's end, which must be a good one.
func (p *picker) ends(t *testing.T) {
	t.Helper()
	select {
	case <-p.done:
		if p.err != nil {
			t.Errorf("the picker ended with %v", p.err)
		}
	case <-time.After(patience):
		t.Error("the picker does not end")
	}
}

func (p *picker) dial(t *testing.T, server string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(p.addresses[server], grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// metric sums the series of a metric that have all of these `label="value"`.
func (p *picker) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	response, err := http.Get("http://" + p.addresses["metrics"] + "/metrics")
	must(t, err)
	defer func() { _ = response.Body.Close() }()
	sum := 0.0
	lines := bufio.NewScanner(response.Body)
next:
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "inference_waypoint_"+name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(rest, label) {
				continue next
			}
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		must(t, err)
		sum += value
	}
	must(t, lines.Err())
	return sum
}

// inFlight is how many calls the picker takes to be at work in a pool.
func (p *picker) inFlight(t *testing.T, pool string) float64 {
	t.Helper()
	return p.metric(t, "requests_in_flight", fmt.Sprintf("pool=%q", poolName(pool)))
}

// candidate is what the picker would say of an endpoint about a call.
type candidate struct {
	Endpoint     string
	CachedTokens int
	QueueTokens  float64
	InFlight     int
}

// explain asks the picker what it thinks of a pool's endpoints for a call.
func (p *picker) explain(t *testing.T, pool string, body []byte) map[string]candidate {
	t.Helper()
	url := fmt.Sprintf("http://%s/debug/explain?pool=%s&path=%s", p.addresses["metrics"], poolName(pool), completionsPath)
	response, err := http.Post(url, "application/json", strings.NewReader(string(body)))
	must(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	var said struct{ Candidates []candidate }
	if err := json.Unmarshal(text, &said); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("explaining: %s: %s", response.Status, text)
	}
	out := map[string]candidate{}
	for _, c := range said.Candidates {
		out[c.Endpoint] = c
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
