// Package local runs the picker and Envoy as processes of one machine, without a mesh and without Kubernetes.
package local

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Process is a running program, with its output in a file.
type Process struct {
	*os.Process
	Done chan struct{} // closed when the program has ended; Err is set then
	Err  error
}

// Start runs a program with its output in the file log. The program ends with this one.
func Start(log, path string, args ...string) (*Process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the process has its own
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{Process: cmd.Process, Done: make(chan struct{})}
	go func() {
		p.Err = cmd.Wait()
		close(p.Done)
	}()
	return p, nil
}

// Stop kills the process, as it has nothing to save.
func (p *Process) Stop() {
	_ = p.Kill() // the only error is that it has ended
	<-p.Done
}

// Await calls ready repeatedly until it returns nil, the process ends or ctx ends.
func (p *Process) Await(ctx context.Context, log string, ready func() error) error {
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.Done:
			text, _ := os.ReadFile(log)
			return fmt.Errorf("it ended: %w: %s", p.Err, text)
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w: %w", context.Cause(ctx), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Picker is the picker's program.
type Picker struct {
	*Process
	Addresses map[string]string // of extproc, health, metrics and debug
}

// StartPicker runs the picker on free ports, with its output in the file log, and reads the ports from it.
func StartPicker(ctx context.Context, program, log string, flags ...string) (*Picker, error) {
	process, err := Start(log, program, append([]string{
		"--extproc-address=127.0.0.1:0", "--health-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0",
		"--debug-address=127.0.0.1:0"}, flags...)...)
	if err != nil {
		return nil, fmt.Errorf("starting a picker: %w", err)
	}
	p := &Picker{Process: process, Addresses: map[string]string{}}
	if err := p.Await(ctx, log, func() error { return p.ready(log) }); err != nil {
		p.Stop()
		return nil, fmt.Errorf("starting a picker: %w", err)
	}
	return p, nil
}

// ready reads the log from its beginning.
func (p *Picker) ready(log string) error {
	file, err := os.Open(log)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	err = fmt.Errorf("it does not say so in %s", log)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var entry struct{ Msg, For, Address string }
		_ = json.Unmarshal(lines.Bytes(), &entry) // a line that is not JSON has no fields
		switch entry.Msg {
		case "listening":
			p.Addresses[entry.For] = entry.Address
		case "ready":
			err = nil
		}
	}
	return err
}
