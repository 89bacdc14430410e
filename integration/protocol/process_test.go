package protocol

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/inference-waypoint/inference-waypoint/integration/local"
)

// patience bounds each wait. It is generous, as only a failure takes this long.
const patience = 30 * time.Second

// memory returns the process's resident memory, in bytes.
func (p *picker) memory(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
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
type picker struct{ *local.Picker }

// terminate asks the picker to end, as Kubernetes does.
func (p *picker) terminate(t *testing.T) {
	t.Helper()
	must(t, p.Signal(syscall.SIGTERM))
}

// ends waits until the picker has ended, without an error.
func (p *picker) ends(t *testing.T) {
	t.Helper()
	select {
	case <-p.Done:
		if p.Err != nil {
			t.Errorf("the picker ended with %v", p.Err)
		}
	case <-time.After(patience):
		t.Error("the picker does not end")
	}
}

func (p *picker) dial(t *testing.T, server string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(p.Addresses[server], grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// metric sums the series of a metric with all of these `label="value"`.
func (p *picker) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	response, err := http.Get("http://" + p.Addresses["metrics"] + "/metrics")
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

// inFlight returns the picker's number of calls in flight in a pool.
func (p *picker) inFlight(t *testing.T, pool string) float64 {
	t.Helper()
	return p.metric(t, "requests_in_flight", fmt.Sprintf("pool=%q", poolName(pool)))
}

// candidate is an endpoint in the picker's explanation of a call.
type candidate struct {
	Endpoint     string
	CachedTokens int
	QueueTokens  float64
	InFlight     int
}

// explain asks the picker to explain a call: its view of each of the pool's endpoints.
func (p *picker) explain(t *testing.T, pool string, body []byte) map[string]candidate {
	t.Helper()
	url := fmt.Sprintf("http://%s/debug/explain?pool=%s&path=%s", p.Addresses["debug"], poolName(pool), completionsPath)
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

// eventually waits until holds returns true.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
