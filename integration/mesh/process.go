package mesh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// process is one program of the mesh, with everything that it prints in a file of its own.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when it has ended; err is set then
	err  error
}

// program says what to run. Environment is added to nothing: a program sees what is named here alone.
type program struct {
	name        string
	path        string
	args        []string
	environment []string
	directory   string
}

func start(logs string, p program) (*process, error) {
	log, err := os.OpenFile(filepath.Join(logs, p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", p.name, err)
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + workDir}, p.environment...)
	cmd.Dir = p.directory
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own keeps a terminal's Ctrl-C from it: the mesh stops its parts in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = log.Close()
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	out := &process{name: p.name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		out.err = cmd.Wait()
		_ = log.Close()
		close(out.done)
	}()
	return out, nil
}

// stop asks the process to end and makes it end when the grace has passed. A grace of 0 kills it at once.
func (p *process) stop(grace time.Duration) {
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

// pollInterval is how often a condition is looked at: often enough that nothing is waited for in vain, and seldom
// enough to leave two cores to what is awaited.
const pollInterval = 25 * time.Millisecond

// await looks at a condition until it holds, which it says by returning nil. It ends early when ctx does or when one of
// the processes that it depends on has ended, and then tells the last reason why the condition did not hold.
func await(ctx context.Context, what string, check func(context.Context) error, needs ...*process) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		for _, p := range needs {
			select {
			case <-p.done:
				return fmt.Errorf("waiting for %s: %s ended (%w); before that: %w", what, p.name, p.err, err)
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// tailOf is the end of a log, for people.
func tailOf(file string, lines int) []byte {
	f, err := os.Open(file)
	if err != nil {
		return []byte(err.Error())
	}
	defer func() { _ = f.Close() }()
	const enough = 64 << 10
	if info, err := f.Stat(); err == nil && info.Size() > enough {
		_, _ = f.Seek(-enough, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))
}
