// Package server runs the compared servers, each as a process of its own, and reads the cost of each from the kernel's
// accounting of that process.
package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startLimit bounds the time until a server accepts connections.
const startLimit = 30 * time.Second

// Command says what to run.
type Command struct {
	// Name names the server in messages and names its log.
	Name string
	// Path and Args start it; Env is added to the environment.
	Path string
	Args []string
	Env  []string
	// Address is the server's ext_proc address.
	Address string
	// Metrics is the URL of its Prometheus metrics.
	Metrics string
}

// Process is a running server.
type Process struct {
	Command
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // how it ended, once done is closed
}

// Start starts a server and waits until its address accepts connections. Its output goes to a file in the directory.
func Start(ctx context.Context, c Command, logs string) (*Process, error) {
	p := &Process{Command: c, log: filepath.Join(logs, c.Name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("opening the log of the %s: %w", c.Name, err)
	}
	defer func() { _ = out.Close() }() // the process has its own
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // keeps a terminal's Ctrl-C from it: Stop ends it
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the %s: %w", c.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := p.awaitListening(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

func (p *Process) awaitListening(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("it does not listen after %s", startLimit))
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.Address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.done:
			return p.failure(p.err)
		case <-ctx.Done():
			return p.failure(context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// failure adds the end of the log to an error.
func (p *Process) failure(err error) error {
	text, _ := os.ReadFile(p.log) // without a log, the error stands alone
	return fmt.Errorf("the %s: %w\n%s", p.Name, err, text[max(0, len(text)-4096):])
}

// Running returns nil while the process runs, and otherwise how it ended.
func (p *Process) Running() error {
	select {
	case <-p.done:
		return p.failure(errors.Join(errors.New("it ended by itself"), p.err))
	default:
		return nil
	}
}

// Stop asks the process to end, and kills it after 10 s.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// CPU returns the processor time of all threads of the process so far, in user mode and in the kernel.
func (p *Process) CPU() (time.Duration, error) { return CPU(p.cmd.Process.Pid) }

// CPU returns the processor time of a process so far. It reads the process's CPU-time clock, which counts the same as utime
// and stime in /proc/<pid>/stat, but in nanoseconds and not in ticks of 10 ms.
func CPU(pid int) (time.Duration, error) {
	// The clock's id is that of clock_getcpuclockid(3): the complement of the process ID above three bits, of which 2 selects
	// the scheduler's count.
	clock := int32(^pid)<<3 | 2
	var at unix.Timespec
	if err := unix.ClockGettime(clock, &at); err != nil {
		return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(at.Nano()), nil
}

// RSS returns the resident memory of the process, in bytes.
func (p *Process) RSS() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of the %s: %w", p.Name, err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kilobytes, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("the kernel tells no memory of the %s", p.Name)
}

// Names of metrics of every Go program with the Prometheus client.
const (
	Mallocs    = "go_memstats_mallocs_total"
	Frees      = "go_memstats_frees_total"
	HeapBytes  = "go_memstats_alloc_bytes"
	Goroutines = "go_goroutines"
)

// Values reads the process's metrics: for each name, the sum of its series.
func (p *Process) Values(ctx context.Context) (map[string]float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Metrics, nil)
	if err != nil {
		return nil, fmt.Errorf("asking for the metrics of the %s: %w", p.Name, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking for the metrics of the %s: %w", p.Name, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking for the metrics of the %s: %s", p.Name, response.Status)
	}
	return readMetrics(bufio.NewScanner(response.Body))
}

// readMetrics sums the series of each name in Prometheus's text format.
func readMetrics(lines *bufio.Scanner) (map[string]float64, error) {
	out := map[string]float64{}
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("reading metrics: %w", err)
		}
		name, _, _ := strings.Cut(line[:at], "{")
		out[name] += value
	}
	return out, lines.Err()
}
