// Package browser drives a headless Chromium through the DevTools protocol, for tests of what people see. It knows nothing
// of the pages.
package browser

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Page is the only page of a browser of its own. One goroutine uses it.
type Page struct {
	to      *os.File
	from    chan message
	session string
	last    int
}

// message is a message of the DevTools protocol: a call, its answer, or an event.
type message struct {
	ID        int             `json:"id,omitempty"`
	Method    string          `json:"method,omitempty"`
	Params    any             `json:"params,omitempty"`
	SessionID string          `json:"sessionId,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// Open starts the browser with its profile in dir and opens a page of so many pixels, in the dark scheme if dark. The
// browser ends with ctx; wait returns when it has ended.
func Open(ctx context.Context, program, dir string, width, height int, dark bool) (page *Page, wait func(), err error) {
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("opening a pipe to the browser: %w", err)
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("opening a pipe from the browser: %w", err), inRead.Close(), inWrite.Close())
	}
	// It runs as root on a test machine, with our own pages: without a sandbox, and without a GPU.
	cmd := exec.CommandContext(ctx, program, "--remote-debugging-pipe", "--no-sandbox", "--no-zygote", "--in-process-gpu",
		"--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage", "--user-data-dir="+dir)
	cmd.ExtraFiles = []*os.File{inRead, outWrite} // file descriptors 3 and 4, which --remote-debugging-pipe uses
	// A process group includes its helpers, which would otherwise still write into the profile when it is removed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = errors.Join(cmd.Start(), inRead.Close(), outWrite.Close())
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("starting the browser: %w", err), inWrite.Close(), outRead.Close())
	}
	p := &Page{to: inWrite, from: make(chan message)}
	var reading sync.WaitGroup
	reading.Go(func() { p.read(ctx, outRead) })
	wait = func() {
		_ = cmd.Wait() // the error says that it was killed
		_ = outRead.Close()
		_ = inWrite.Close()
		reading.Wait()
	}
	return p, wait, p.open(ctx, width, height, dark)
}

// read splits the browser's output into messages, each of which ends with a zero byte.
func (p *Page) read(ctx context.Context, from *os.File) {
	defer close(p.from)
	for in := bufio.NewReader(from); ; {
		text, err := in.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(text[:len(text)-1], &m) != nil || m.ID == 0 {
			continue // an event
		}
		select {
		case p.from <- m:
		case <-ctx.Done():
			return
		}
	}
}

func (p *Page) open(ctx context.Context, width, height int, dark bool) error {
	var target struct{ TargetID string }
	if err := p.call(ctx, "Target.createTarget", map[string]any{"url": "about:blank"}, &target); err != nil {
		return err
	}
	var session struct{ SessionID string }
	if err := p.call(ctx, "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &session); err != nil {
		return err
	}
	p.session = session.SessionID
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	media := map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}
	size := map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}
	return errors.Join(
		p.call(ctx, "Emulation.setEmulatedMedia", media, nil),
		p.call(ctx, "Emulation.setDeviceMetricsOverride", size, nil))
}

// call makes one call of the protocol.
func (p *Page) call(ctx context.Context, method string, params, result any) error {
	p.last++
	text, err := json.Marshal(message{ID: p.last, Method: method, Params: params, SessionID: p.session})
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if _, err := p.to.Write(append(text, 0)); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", method, context.Cause(ctx))
		case m, ok := <-p.from:
			switch {
			case !ok:
				return fmt.Errorf("%s: the browser has ended", method)
			case m.ID != p.last:
				continue // the answer to an abandoned call
			case m.Error != nil:
				return fmt.Errorf("%s: %s", method, m.Error.Message)
			case result != nil:
				return json.Unmarshal(m.Result, result)
			}
			return nil
		}
	}
}

// Scripts allows or forbids scripts on pages opened from now on.
func (p *Page) Scripts(ctx context.Context, allowed bool) error {
	return p.call(ctx, "Emulation.setScriptExecutionDisabled", map[string]any{"value": !allowed}, nil)
}

// Go opens an address and waits until it is loaded.
func (p *Page) Go(ctx context.Context, url string) error {
	var answer struct{ ErrorText string }
	if err := p.call(ctx, "Page.navigate", map[string]any{"url": url}, &answer); err != nil {
		return err
	}
	if answer.ErrorText != "" {
		return fmt.Errorf("opening %s: %s", url, answer.ErrorText)
	}
	for {
		var state string
		if err := p.Eval(ctx, `document.readyState`, &state); err != nil {
			return err
		}
		if state == "complete" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("loading %s: %w", url, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Eval evaluates an expression in the page, and awaits it if it is a promise.
func (p *Page) Eval(ctx context.Context, expression string, result any) error {
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct{ Text string }
	}
	params := map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}
	if err := p.call(ctx, "Runtime.evaluate", params, &answer); err != nil {
		return err
	}
	if answer.ExceptionDetails != nil {
		return fmt.Errorf("%s: %s", expression, answer.ExceptionDetails.Text)
	}
	return json.Unmarshal(answer.Result.Value, result)
}

// Screenshot returns the visible page as PNG.
func (p *Page) Screenshot(ctx context.Context) ([]byte, error) {
	var answer struct{ Data []byte }
	err := p.call(ctx, "Page.captureScreenshot", map[string]any{"format": "png"}, &answer)
	return answer.Data, err
}
