package modelmetrics

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestScrapeSampleModelServer scrapes the sample model server, a program and module of its own: idle, with a running and
// a waiting request, with both done, and restarted.
func TestScrapeSampleModelServer(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the sample model server")
	}
	program := filepath.Join(t.TempDir(), "modelserver")
	build := exec.Command("go", "build", "-C", "../../../samples/modelserver", "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the sample model server: %v\n%s", err, out)
	}
	address, stop := startSample(t, program, "127.0.0.1:0")

	sink := newRecorder()
	s := newScraper(t, quick(), sink)
	set(t, s, "http://"+address+"/metrics")
	idle := sink.await(t, "a reading", isReading).reading
	want := Reading{Engine: VLLM, WaitingSplit: true, CapacityTokens: 1000 * 16, BlockTokens: 16, Model: "sample-model", MaxLoRA: 1}
	if diff := cmp.Diff(want, idle, cmpopts.IgnoreFields(Reading{}, "At"), equateNone); diff != "" {
		t.Errorf("idle (-want +got):\n%s", diff)
	}

	// One adapter fits: the request for the second waits for the first's end.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go ask(ctx, address, "sql")
	sink.await(t, "a running request", func(e event) bool { return e.reading.Running == 1 })
	go ask(ctx, address, "chat")
	busy := sink.await(t, "a deferred request", func(e event) bool { return e.reading.Deferred == 1 && e.reading.Running == 1 }).reading
	if diff := cmp.Diff([][]string{{"sql"}, {}}, [][]string{busy.RunningAdapters, busy.WaitingAdapters}, equateNone); diff != "" {
		t.Errorf("adapters (-want +got):\n%s", diff)
	}
	if busy.Waiting != 0 {
		t.Errorf("%d requests wait for capacity, want none", busy.Waiting)
	}
	if busy.KVUsage <= 0 || busy.PromptTokens == 0 || busy.CacheQueries == 0 || busy.ComputedTokens == 0 || busy.GeneratedTokens == 0 {
		t.Errorf("no sign of work in %+v", busy)
	}
	cancel()
	sink.await(t, "no request any more", func(e event) bool {
		return e.reading.At.After(busy.At) && e.reading.Running == 0 && e.reading.Waiting == 0 && len(e.reading.RunningAdapters) == 0
	})

	stop()
	sink.await(t, "a failure", isFailure)
	startSample(t, program, address)
	anew := sink.await(t, "a restart", func(e event) bool { return e.reading.Restarts > 0 }).reading
	if anew.Restarts != 1 || anew.PromptTokens != 0 {
		t.Errorf("after the restart: %+v", anew)
	}
}

var servingAt = regexp.MustCompile(`address=(127\.0\.0\.1:\d+)`)

// startSample starts the server and returns where it listens, and how to end it.
func startSample(t *testing.T, program, address string) (string, func()) {
	t.Helper()
	command := exec.Command(program, "--address", address, "--lora-modules", "sql,chat", "--max-loras", "1",
		"--num-gpu-blocks", "1000", "--lora-load-time", "0s", "--shutdown-timeout", "0s")
	stderr, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			_ = command.Process.Kill()
			_ = command.Wait()
		}
	}
	t.Cleanup(stop)
	log := bufio.NewReader(stderr)
	line, err := log.ReadString('\n')
	found := servingAt.FindStringSubmatch(line)
	if err != nil || found == nil {
		t.Fatalf("no address in %q: %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()
	return found[1], stop
}

// ask sends a request that takes minutes, unless the context ends.
func ask(ctx context.Context, address, model string) {
	body := `{"model":"` + model + `","prompt":"What is a waypoint, and where does it lead those who follow it?",` +
		`"max_tokens":5000,"ignore_eos":true}`
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/v1/completions", strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	request.Header.Set("Content-Type", "application/json")
	client := http.Client{Timeout: time.Minute}
	if response, err := client.Do(request); err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
	}
}
