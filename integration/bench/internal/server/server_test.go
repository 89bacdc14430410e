package server

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The processor time of a process is what the kernel counts for it otherwise, however busy the machine is.
func TestCPU(t *testing.T) {
	const work, tick = 100 * time.Millisecond, 10 * time.Millisecond
	begun := used(t)
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for begin := used(t); used(t)-begin < work; {
	}
	after, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got, most := after-before, used(t)-begun; got < work-tick || got > most+tick {
		t.Errorf("between %s and %s of work count as %s", work, most, got)
	}
	if _, err := CPU(1 << 22); err == nil {
		t.Error("a process that does not exist has CPU time")
	}
}

// used returns the processor time of this process, by getrusage(2).
func used(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
