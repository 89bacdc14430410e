package server

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The processor time grows with the work done, by about as much.
func TestCPU(t *testing.T) {
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < 100*time.Millisecond; {
	}
	after, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if used := after - before; used < 20*time.Millisecond || used > 2*time.Second {
		t.Errorf("100 ms of work on one thread count as %s", used)
	}
	if _, err := CPU(1 << 22); err == nil {
		t.Error("a process that does not exist has CPU time")
	}
}

func TestReadMetrics(t *testing.T) {
	const page = `# HELP go_goroutines Number of goroutines.
# TYPE go_goroutines gauge
go_goroutines 12
picks_total{outcome="load",pool="a b"} 3
picks_total{outcome="prefix",pool="a b"} 1.5e+01
`
	got, err := readMetrics(bufio.NewScanner(strings.NewReader(page)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]float64{"go_goroutines": 12, "picks_total": 18}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := readMetrics(bufio.NewScanner(strings.NewReader("picks_total many\n"))); err == nil {
		t.Error("a value that is no number is no error")
	}
}

func TestStartTellsWhyAServerEnded(t *testing.T) {
	_, err := Start(t.Context(), Command{Name: "server", Path: "/bin/sh", Args: []string{"-c", "echo no such flag; exit 3"}, Address: "127.0.0.1:1"}, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "no such flag") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error is %v", err)
	}
}
