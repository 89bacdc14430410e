package modelmetrics

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// servePage makes the test's binary a server of vLLM's page, so that a benchmark's process is the scraper alone.
const servePage = "MODELMETRICS_TEST_SERVE_PAGE"

func TestMain(m *testing.M) {
	if os.Getenv(servePage) != "" {
		servePageUntilEOF()
		return
	}
	os.Exit(m.Run())
}

// servePageUntilEOF ends with its parent, whose end of the standard input is closed then.
func servePageUntilEOF() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	page := vllmPage()
	go func() {
		_ = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) }))
	}()
	_, _ = os.Stdout.WriteString(listener.Addr().String() + "\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// pageServer starts the server in a process of its own, and returns the page's URL.
func pageServer(b *testing.B) string {
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), servePage+"=1")
	stdin, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = command.Wait()
	})
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return "http://" + strings.TrimSpace(address) + "/metrics"
}

// cpu returns the CPU time that the process has used, kernel and user.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkFetch is one scrape after the other over one connection: the HTTP exchange and the reading of the page.
func BenchmarkFetch(b *testing.B) {
	fetcher, err := newFetcher(pageServer(b), defaultDial())
	if err != nil {
		b.Fatal(err)
	}
	defer fetcher.close()
	tenant := newTenant(newShared(1))
	parser := NewParser(Detect)
	b.ReportAllocs()
	before := cpu()
	for b.Loop() {
		err := fetcher.fetch(context.Background(), tenant, time.Second, func(page []byte, asked time.Time) error {
			_, err := parser.Parse(page, asked)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// counter is a sink that counts.
type counter struct{ readings, failures atomic.Int64 }

func (c *counter) Scraped(netip.AddrPort, Reading)         { c.readings.Add(1) }
func (c *counter) ScrapeFailed(netip.AddrPort, int, error) { c.failures.Add(1) }
func (c *counter) Pace(netip.AddrPort) time.Duration       { return 0 }

// BenchmarkScraper scrapes 100 endpoints at the default rate: the cost of a scrape to the process, with timers,
// goroutines and garbage.
func BenchmarkScraper(b *testing.B) {
	url := pageServer(b)
	targets := map[netip.AddrPort]Target{}
	for i := range 100 {
		targets[endpoint(i)] = Target{URL: url}
	}
	var sink counter
	s, err := New(DefaultOptions(), &sink)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Update(targets, nil); err != nil {
		b.Fatal(err)
	}
	time.Sleep(time.Second) // connections are made
	before, n, start := cpu(), sink.readings.Load(), time.Now()
	b.ResetTimer()
	for sink.readings.Load() < n+int64(b.N) {
		time.Sleep(10 * time.Millisecond)
	}
	done := float64(sink.readings.Load() - n)
	b.ReportMetric(float64((cpu()-before).Microseconds())/done, "cpu-µs/scrape")
	b.ReportMetric(done/time.Since(start).Seconds(), "scrapes/s")
	if failed := sink.failures.Load(); failed > 0 {
		b.Errorf("%d scrapes failed", failed)
	}
}

// BenchmarkParseHostile parses pages of the largest size that are made to cost as much as possible.
func BenchmarkParseHostile(b *testing.B) {
	for name, line := range map[string]string{
		"shards":   "vllm:num_requests_running{engine=\"%d\"} 1\n",
		"adapters": "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"a%[1]d,b%[1]d\",waiting_lora_adapters=\"c%[1]d\"} %[1]d\n",
		"labels":   "vllm:num_requests_running{a%d=\"\\\\\\\"\",,,b=\"\"} 1\n",
	} {
		b.Run(name, func(b *testing.B) {
			var page []byte
			for i := 0; len(page) < MaxPage; i++ {
				page = fmt.Appendf(page, line, i)
			}
			p := NewParser(Detect)
			b.SetBytes(int64(len(page)))
			for b.Loop() {
				_, _ = p.Parse(page, now)
			}
		})
	}
}
