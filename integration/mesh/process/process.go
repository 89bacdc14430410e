// Package process starts the programs of a mesh, waits for what they are to do, asks them over HTTP and stops them. Which
// programs there are it does not know.
package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/sandbox"
)

// Process is one program of the mesh, with everything that it prints in a file of its own.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when it has ended; err is set then
	err  error
}

// Program says what to run. Environment is added to nothing: a program sees what is named here alone.
type Program struct {
	Name        string // of its log, too
	Path        string
	Args        []string
	Environment []string
	Directory   string
}

// Start runs a program and appends what it prints to its log in the directory logs.
func Start(logs string, p Program) (*Process, error) {
	log, err := os.OpenFile(filepath.Join(logs, p.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", p.Name, err)
	}
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + sandbox.WorkDir}, p.Environment...)
	cmd.Dir = p.Directory
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own keeps a terminal's Ctrl-C from it: the mesh stops its parts in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = log.Close()
		return nil, fmt.Errorf("starting %s: %w", p.Name, err)
	}
	out := &Process{name: p.Name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		out.err = cmd.Wait()
		_ = log.Close()
		close(out.done)
	}()
	return out, nil
}

// Stop asks the process to end and makes it end when the grace has passed. A grace of 0 kills it at once.
func (p *Process) Stop(grace time.Duration) {
	if grace > 0 {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			return
		case <-time.After(grace):
		}
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Kill ends the process at once, as a crash would, and does not wait for its end.
func (p *Process) Kill() error { return p.cmd.Process.Kill() }

// ID is the number of the process.
func (p *Process) ID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended. Err says how.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the process ended, once it has: nil for the exit status 0.
func (p *Process) Err() error { return p.err }
