// Package process starts and stops the programs of a mesh, polls conditions, and makes HTTP requests to the programs. It
// does not know which programs there are.
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

// Process is one program of the mesh. Its output goes to a file of its own.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when the program has ended; err is set then
	err  error
}

// Program says what to run. The program gets only the variables in Environment, none of this process.
type Program struct {
	Name        string // also the name of its log
	Path        string
	Args        []string
	Environment []string
	Directory   string
}

// Start runs a program and appends its output to its log in the directory logs.
func Start(logs string, p Program) (*Process, error) {
	log, err := os.OpenFile(filepath.Join(logs, p.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", p.Name, err)
	}
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + sandbox.WorkDir}, p.Environment...)
	cmd.Dir = p.Directory
	cmd.Stdout, cmd.Stderr = log, log
	// A process group of its own keeps a terminal's Ctrl-C from the program: the mesh stops its parts in order. And it holds the
	// program's children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = log.Close()
		return nil, fmt.Errorf("starting %s: %w", p.Name, err)
	}
	out := &Process{name: p.Name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		out.err = cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of its children, as in a container
		_ = log.Close()
		close(out.done)
	}()
	return out, nil
}

// Stop asks the process to end and kills it after the grace period. A grace of 0 kills it at once.
func (p *Process) Stop(grace time.Duration) {
	if grace > 0 {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			return
		case <-time.After(grace):
		}
	}
	_ = p.Kill()
	<-p.done
}

// Kill kills the process and its children at once, as a crash of a container would, and does not wait for their end.
func (p *Process) Kill() error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
		return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// ID is the process ID.
func (p *Process) ID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended. Err says how it ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended: nil for exit status 0. It is valid once the process has ended.
func (p *Process) Err() error { return p.err }
