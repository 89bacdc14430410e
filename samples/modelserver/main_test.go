package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// program is a running modelserver.
type program struct {
	url     string
	sigterm context.CancelFunc
	exited  chan error
}

var addressInLog = regexp.MustCompile(`address=(127\.0\.0\.1:\d+)`)

func startProgram(t *testing.T, args ...string) program {
	t.Helper()
	ctx, sigterm := context.WithCancel(context.Background())
	t.Cleanup(sigterm)
	log, exited := &logBuffer{}, make(chan error, 1)
	go func() {
		exited <- run(ctx, append([]string{"--address=127.0.0.1:0", "--name=pod-1"}, args...), log)
	}()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if m := addressInLog.FindStringSubmatch(log.String()); m != nil {
			return program{url: "http://" + m[1], sigterm: sigterm, exited: exited}
		}
	}
	t.Fatalf("not serving after 5s: %s", log)
	return program{}
}

func clientOf(http2 bool) *http.Client {
	p := new(http.Protocols)
	p.SetHTTP1(!http2)
	p.SetUnencryptedHTTP2(http2)
	return &http.Client{Transport: &http.Transport{Protocols: p}}
}

const longAnswer = `{"prompt":"hello","max_tokens":100,"ignore_eos":true,"stream":true}`

func TestDrainFinishesWhatRuns(t *testing.T) {
	for proto, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		t.Run(proto, func(t *testing.T) {
			p := startProgram(t, "--time-scale=5") // 100 tokens take 0.4 s
			client := clientOf(http2)
			defer client.CloseIdleConnections()
			resp, err := client.Post(p.url+"/v1/completions", "application/json", strings.NewReader(longAnswer))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.Proto != proto {
				t.Errorf("spoke %s", resp.Proto)
			}
			p.sigterm()
			body, err := io.ReadAll(resp.Body)
			if err != nil || !strings.HasSuffix(string(body), "data: [DONE]\n\n") {
				t.Errorf("the answer broke off: %v, %d bytes", err, len(body))
			}
			select {
			case err := <-p.exited:
				if err != nil {
					t.Errorf("exit: %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("did not exit after its last request")
			}
			if response, err := client.Get(p.url + "/health"); err == nil {
				_ = response.Body.Close()
				t.Error("still serving after exit")
			}
		})
	}
}

func TestDrainEndsAfterItsTime(t *testing.T) {
	p := startProgram(t, "--shutdown-timeout=50ms")
	resp, err := http.Post(p.url+"/v1/completions", "application/json", strings.NewReader(longAnswer))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p.sigterm()
	select {
	case err := <-p.exited:
		if err == nil || !strings.Contains(err.Error(), "still running after 50ms") {
			t.Errorf("exit: %v, want an error about the running request", err)
		}
	case <-time.After(time.Second): // the answer itself takes 2 s
		t.Fatal("did not exit when its time was up")
	}
}

func TestRunRefusesBadFlagsAtOnce(t *testing.T) {
	err := run(t.Context(), []string{
		"--block-size=0", "--time-scale=NaN", "--max-loras=0", "--lora-modules=a,base", "--model=base",
		"--max-num-seqs=512", "--max-num-batched-tokens=100",
	}, io.Discard)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"--block-size", "--time-scale", "--lora-modules needs", `"base" is not a usable`, "--max-num-batched-tokens"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
}

func TestRunWithoutServing(t *testing.T) {
	tests := map[string]struct {
		args    []string
		wantErr string
		wantLog string
	}{
		"help":          {[]string{"--help"}, "", "--num-gpu-blocks"},
		"unknown flag":  {[]string{"--gpu"}, "unknown flag", ""},
		"argument":      {[]string{"serve"}, "unexpected arguments", ""},
		"no such place": {[]string{"--address=256.0.0.1:1"}, "listening", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			log := &logBuffer{}
			err := run(t.Context(), tt.args, log)
			if (err == nil) != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
			if !strings.Contains(log.String(), tt.wantLog) {
				t.Errorf("no %q in %s", tt.wantLog, log)
			}
		})
	}
}
