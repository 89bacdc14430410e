package peers

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

var (
	llama  = types.NamespacedName{Namespace: "models", Name: "llama"}
	secret = bytes.Repeat([]byte{7}, 32)
)

// picker is one picker with a pool of eight endpoints.
type picker struct {
	*Peers
	t        testing.TB
	fleet    *poolstate.Fleet
	address  netip.AddrPort
	metrics  *telemetry.PeerMetrics
	registry *prometheus.Registry
	synced   chan struct{}
	stop     func()
}

var started atomic.Int64

// start starts a picker with a key that serves others. It follows nobody until Update.
func start(t testing.TB, key []byte) *picker {
	t.Helper()
	registry := prometheus.NewRegistry()
	p := &picker{t: t, synced: make(chan struct{}), registry: registry, metrics: telemetry.NewPeerMetrics(registry)}
	p.Peers = New(Options{
		Metrics: p.metrics, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Secret: func() []byte { return key },
		Name: fmt.Sprint("picker-", started.Add(1)),
	})
	p.fleet = poolstate.New(poolstate.Options{Metrics: telemetry.NewMetrics(registry), Seed: 1, Teller: p.Peers})
	var endpoints []pool.Endpoint
	for i := range 8 {
		endpoints = append(endpoints, pool.Endpoint{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 8000), Process: "first"})
	}
	p.fleet.SetPool(pool.Pool{Name: llama}, endpoints)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().(*net.TCPAddr).AddrPort()
	server := p.Server()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}, 2)
	go func() { _ = server.Serve(l); ended <- struct{}{} }()
	go func() { p.Run(ctx, p.fleet, func() { close(p.synced) }); ended <- struct{}{} }()
	stopped := false
	p.stop = func() {
		if !stopped {
			stopped = true
			p.Close()
			server.GracefulStop()
			cancel()
			<-ended
			<-ended
		}
	}
	t.Cleanup(p.stop)
	return p
}

// startAll starts pickers of one key that follow each other.
func startAll(t testing.TB, n int) []*picker {
	t.Helper()
	var all []*picker
	for range n {
		all = append(all, start(t, secret))
	}
	meet(all...)
	for _, p := range all {
		p.isSynced()
	}
	for _, p := range all {
		p.eventually("all follow", func() bool {
			return p.gauge("peers_following") == float64(n-1) && p.gauge("peers_followed") == float64(n-1)
		})
	}
	return all
}

func meet(all ...*picker) {
	var addresses []netip.AddrPort
	for _, p := range all {
		addresses = append(addresses, p.address)
	}
	for _, p := range all {
		p.Update(addresses)
	}
}

func (p *picker) isSynced() {
	p.t.Helper()
	select {
	case <-p.synced:
	case <-time.After(20 * time.Second):
		p.t.Fatal("the picker does not become ready")
	}
}

func (p *picker) eventually(what string, is func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("it does not become true: %s", what)
		}
	}
}

// gauge returns the value of a metric, of all its labels together.
func (p *picker) gauge(name string) float64 {
	p.t.Helper()
	families, err := p.registry.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "inference_waypoint_"+name {
			sum := 0.0
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
			return sum
		}
	}
	p.t.Fatalf("no metric %s", name)
	return 0
}

// prompt makes the facts of a prompt of so many blocks. Prompts of different seeds have no block in common.
func prompt(seed, blocks int) *request.Facts {
	f := &request.Facts{Model: "llama", PromptBytes: blocks * request.BlockBytes}
	for i := range blocks {
		f.Blocks = append(f.Blocks, uint64(seed)<<32|uint64(i+1))
	}
	return f
}

// whole is how many tokens of a prompt of so many blocks are found where all are cached: servers compute the last one anew.
func whole(blocks int) int { return blocks*selection.BlockTokens - 1 }

// pick picks for a prompt.
func (p *picker) pick(of *request.Facts) *poolstate.Reservation {
	p.t.Helper()
	r := &poolstate.Reservation{}
	if _, err := p.fleet.Pool(llama).Pick(&poolstate.Call{Facts: of}, r); err != nil {
		p.t.Fatal(err)
	}
	return r
}

// call makes a call that is answered at once, and returns its endpoint and how many tokens it was taken to find.
func (p *picker) call(of *request.Facts) (endpoint string, cached int) {
	p.t.Helper()
	r := p.pick(of)
	defer r.Release(poolstate.Answered)
	return string(r.Endpoints(nil)[:13]), r.CachedTokens
}

func (p *picker) inFlight() (n int) {
	for _, e := range p.fleet.Pool(llama).Snapshot().Endpoints {
		n += e.InFlight
	}
	return n
}

// What one picker decides all others know: where a prompt is cached, and which calls are in flight.
func TestOthersKnowWhatOneDecides(t *testing.T) {
	all := startAll(t, 3)
	r := all[0].pick(prompt(1, 16))
	for i, p := range all {
		p.eventually("the call is in flight", func() bool { return p.inFlight() == 1 })
		if got := p.gauge("requests_in_flight"); i > 0 && got != 0 {
			t.Errorf("in the metrics of picker %d are %v calls of another one", i, got)
		}
	}
	r.Release(poolstate.Answered)
	for _, p := range all {
		p.eventually("the call has ended", func() bool { return p.inFlight() == 0 })
	}
	home, _ := all[0].call(prompt(1, 16))
	for i, p := range all {
		if at, cached := p.call(prompt(1, 16)); at != home || cached != whole(16) {
			t.Errorf("picker %d picks %s with %d cached tokens, want %s with all", i, at, cached, home)
		}
	}
}

// Others know of a short call, whose begin and end are in one message, whether its endpoint has prefilled the prompt.
func TestShortCalls(t *testing.T) {
	all := startAll(t, 2)
	left := all[0].pick(prompt(1, 16))
	left.Release(poolstate.Abandoned)
	streamed := all[0].pick(prompt(2, 4))
	time.Sleep(4*selection.BlockTokens*time.Second/8000 + 10*time.Millisecond)
	streamed.Release(poolstate.Ended)
	all[1].eventually("all is applied", func() bool { return all[1].gauge("peer_events_applied_total") == 4 })
	for i, p := range all {
		if !p.knows(prompt(2, 4)) || p.knows(prompt(1, 16)) {
			t.Errorf("picker %d takes the streamed call's prompt for cached: %t, that of a call that was left: %t", i, p.knows(prompt(2, 4)), p.knows(prompt(1, 16)))
		}
	}
}

// A picker tells which others it follows, and which it cannot.
func TestOthers(t *testing.T) {
	all := startAll(t, 2)
	stranger := start(t, []byte("a key of thirty-two other bytes.."[:32]))
	meet(append(all, stranger)...)
	for i, p := range all {
		p.eventually("the others", func() bool { return len(p.Others()) == 2 })
		other, strange := all[1-i], stranger.address.String()
		for _, o := range p.Others() {
			switch {
			case o.Name == other.options.Name && o.Process == other.process && o.Silent < silentFor:
			case o.Name == strange && o.Process == "":
			default:
				t.Errorf("picker %d tells of %+v", i, o)
			}
		}
	}
	all[1].stop()
	gone := Other{Name: all[1].address.String()}
	all[0].eventually("the end of the other", func() bool { return slices.Contains(all[0].Others(), gone) })
	if (*Peers)(nil).Others() != nil {
		t.Error("no Peers have others")
	}
}

func TestNamesOfOthers(t *testing.T) {
	for told, want := range map[string]string{
		"": "", "inference-picker-6d5f_8.b7C9": "inference-picker-6d5f_8.b7C9", "a b": "", "\x1b[31m": "", "ä": "", strings.Repeat("a", 254): "",
	} {
		if got := nameOf(told); got != want {
			t.Errorf("%q: got %q, want %q", told, got, want)
		}
	}
}

// A picker that starts knows what the others know before it is ready.
func TestNewcomerGetsACopy(t *testing.T) {
	all := startAll(t, 2)
	homes := map[int]string{}
	for i := range 500 {
		homes[i], _ = all[i%2].call(prompt(i+1, 40))
	}
	late := start(t, secret)
	meet(append(all, late)...)
	late.isSynced()
	for i, home := range homes {
		if at, cached := late.call(prompt(i+1, 40)); at != home || cached != whole(40) {
			t.Fatalf("of prompt %d the newcomer picks %s with %d cached tokens, want %s with all", i, at, cached, home)
		}
	}
	if late.gauge("peer_copies_total") < 1 {
		t.Error("no copy was counted")
	}
}

// Calls of a picker that dies are given up, and what it knew stays known. When it is back it has all.
func TestPickerDiesAndComesBack(t *testing.T) {
	all := startAll(t, 2)
	home, _ := all[0].call(prompt(1, 16))
	for i := range 20 {
		all[0].pick(prompt(i+2, 16))
	}
	all[1].eventually("the calls are in flight", func() bool { return all[1].inFlight() == 20 })
	all[0].stop()
	all[1].eventually("the calls are given up", func() bool { return all[1].inFlight() == 0 })
	if at, cached := all[1].call(prompt(1, 16)); at != home || cached != whole(16) {
		t.Errorf("the other picks %s with %d cached tokens, want %s with all", at, cached, home)
	}
	if _, cached := all[1].call(prompt(5, 16)); cached != whole(16) {
		t.Errorf("the prompt of a call that was in flight has %d cached tokens, want all", cached)
	}
	back := start(t, secret)
	meet(all[1], back)
	back.isSynced()
	if at, cached := back.call(prompt(1, 16)); at != home || cached != whole(16) {
		t.Errorf("the one that is back picks %s with %d cached tokens, want %s with all", at, cached, home)
	}
}

// What a picker decides before it is followed for the first time, others copy: its address may be known long before it serves.
func TestPickerThatIsFollowedLate(t *testing.T) {
	old, late := start(t, secret), start(t, secret)
	late.Update([]netip.AddrPort{late.address})
	late.isSynced()
	home, _ := late.call(prompt(1, 16))
	old.Update([]netip.AddrPort{old.address})
	old.isSynced()
	meet(old, late)
	old.eventually("the prompt is known", func() bool { return old.knows(prompt(1, 16)) })
	if at, _ := old.call(prompt(1, 16)); at != home {
		t.Errorf("the old one picks %s, want %s", at, home)
	}
}

// knows says whether the picker takes all of a prompt for cached.
func (p *picker) knows(of *request.Facts) bool {
	why, err := p.fleet.Pool(llama).Rank(&poolstate.Call{Facts: of})
	if err != nil {
		p.t.Fatal(err)
	}
	return why.Ranking[0].CachedTokens == whole(len(of.Blocks))
}

// What was decided while an address was gone is known after it has come back.
func TestAddressesThatComeBack(t *testing.T) {
	all := startAll(t, 2)
	all[1].Update(nil)
	all[1].eventually("nobody is followed", func() bool { return all[1].gauge("peers_followed") == 0 })
	all[0].call(prompt(5, 16))
	time.Sleep(2 * flushEvery) // it is told to nobody
	meet(all...)
	all[1].eventually("the prompt is known", func() bool { return all[1].knows(prompt(5, 16)) })
}

// A picker that ends tells what it has decided until then.
func TestLastDecisionsAreTold(t *testing.T) {
	all := startAll(t, 2)
	for i := range 50 {
		all[0].call(prompt(i+1, 16))
	}
	all[0].stop()
	all[1].eventually("all is applied", func() bool { return all[1].gauge("peer_events_applied_total") == 100 })
	for i := range 50 {
		if !all[1].knows(prompt(i+1, 16)) {
			t.Fatalf("prompt %d is not known", i)
		}
	}
}

// A pod has an address for each family. It is followed at one of them.
func TestPickerWithTwoAddresses(t *testing.T) {
	a, b := start(t, secret), start(t, secret)
	second, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := a.Server()
	go func() { _ = server.Serve(second) }()
	t.Cleanup(server.Stop)
	b.Update([]netip.AddrPort{a.address, second.Addr().(*net.TCPAddr).AddrPort(), b.address})
	b.isSynced()
	r := a.pick(prompt(1, 4))
	b.eventually("the call is in flight", func() bool { return b.inFlight() > 0 })
	if n, followed := b.inFlight(), b.gauge("peers_followed"); n != 1 || followed != 1 {
		t.Errorf("%d calls are in flight and %v pickers are followed, want 1 and 1", n, followed)
	}
	r.Release(poolstate.Answered)
}

// The bytes of a caller's model name are no text. They disturb nobody.
func TestModelNamesThatAreNoText(t *testing.T) {
	all := startAll(t, 2)
	held := all[0].pick(prompt(7, 4))
	strange := prompt(2, 16)
	strange.Model = "\xff\xfe"
	all[0].call(strange)
	all[0].call(prompt(3, 16))
	all[1].eventually("all is applied", func() bool { return all[1].gauge("peer_events_applied_total") == 5 })
	if n := all[1].inFlight(); n != 1 || !all[1].knows(prompt(3, 16)) {
		t.Errorf("%d calls are in flight, want 1, and the prompt after it is known: %v", n, all[1].knows(prompt(3, 16)))
	}
	held.Release(poolstate.Answered)
}

// A picker that follows and hangs is dropped, so that nothing is told to it any more.
func TestFollowerThatHangs(t *testing.T) {
	p := start(t, secret)
	conn, err := p.dial(p.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/"+service+"/"+followName)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	p.eventually("it follows", p.Followed)
	for i := 0; p.gauge("peer_cuts_total") == 0; i++ { // it never reads
		p.call(prompt(i, request.MaxBlocks))
		if i%100 == 0 {
			time.Sleep(flushEvery)
		}
	}
	p.eventually("it is dropped", func() bool { return !p.Followed() })
}

// Who does not have the key neither hears anything nor tells anything.
func TestStrangers(t *testing.T) {
	ours := start(t, secret)
	ours.Update([]netip.AddrPort{ours.address})
	ours.isSynced()
	for name, key := range map[string][]byte{"another key": bytes.Repeat([]byte{8}, 32), "no key": nil} {
		t.Run(name, func(t *testing.T) {
			stranger := start(t, key)
			meet(ours, stranger)
			stranger.isSynced() // it is ready all the same
			time.Sleep(300 * time.Millisecond)
			if ours.Followed() || ours.gauge("peers_followed") != 0 {
				t.Error("the stranger follows, or is followed")
			}
		})
	}
}

// A picker that cannot follow is cut off, and holds up nobody.
func TestSlowFollowerIsCut(t *testing.T) {
	p := start(t, secret)
	f, err := p.join()
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; !cutOf(p, f); i++ {
		if i > 20_000 {
			t.Fatal("it is not cut off")
		}
		p.call(prompt(i, request.MaxBlocks))
		if i%100 == 0 {
			time.Sleep(flushEvery)
		}
	}
	if f.bytes > mostUnsent || p.gauge("peer_cuts_total") != 1 {
		t.Errorf("%d bytes wait, and %v were cut off", f.bytes, p.gauge("peer_cuts_total"))
	}
}

func cutOf(p *picker, f *follower) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return f.cut
}

// A picker that does not answer keeps none from becoming ready.
func TestSilentPicker(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	p := start(t, secret)
	p.Update([]netip.AddrPort{p.address, l.Addr().(*net.TCPAddr).AddrPort()})
	p.isSynced()
}

// Messages that a picker of another version, or none, may send are refused or ignored, and change nothing.
func TestMessagesThatAreNotUnderstood(t *testing.T) {
	good := event{Kind: 1, Pool: "models/llama", Call: 1, Endpoint: "10.0.0.1:8000", Bytes: 1 << 40, Uncached: -5, Blocks: make([]byte, 16)}
	for name, change := range map[string]func(*event){
		"half a block": func(e *event) { e.Blocks = e.Blocks[:9] },
		"many blocks":  func(e *event) { e.Blocks = make([]byte, 8*request.MaxBlocks+8) },
		"no pool":      func(e *event) { e.Pool = "llama" },
		"no endpoint":  func(e *event) { e.Endpoint = "here" },
		"long model":   func(e *event) { e.Model = string(make([]byte, request.MaxModelBytes+1)) },
	} {
		e := good
		change(&e)
		if _, err := e.event(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	p := start(t, secret)
	p.call(prompt(1, 4))
	for kind := range 8 {
		for _, outcome := range []uint8{0, 3, 200} {
			e := good
			e.Kind, e.Outcome = uint8(kind), outcome
			for _, endpoint := range []string{"", "10.0.0.1:8000", "10.9.9.9:1", "[::ffff:10.0.0.1]:8000"} {
				e.Endpoint = endpoint
				got, err := e.event()
				if err != nil {
					t.Fatal(err)
				}
				p.fleet.Apply("other", &got)
			}
		}
	}
	p.fleet.Lost("other")
	if n := p.inFlight(); n != 0 {
		t.Errorf("%d calls are in flight", n)
	}
	if _, cached := p.call(prompt(1, 4)); cached != whole(4) {
		t.Errorf("%d tokens are cached, want all", cached)
	}
}

// BenchmarkTelling picks at paces in calls a second, alone and followed by two pickers of another process. cpu-µs/op is this
// process's time for a call; what telling costs is the difference.
func BenchmarkTelling(b *testing.B) {
	for _, rate := range []int{1000, 10000} {
		for _, followers := range []int{0, 2} {
			b.Run(fmt.Sprintf("%d a second, to %d", rate, followers), func(b *testing.B) {
				p := start(b, secret)
				if followers > 0 {
					followElsewhere(b, p, followers)
				}
				pace := time.NewTicker(10 * time.Millisecond)
				defer pace.Stop()
				before := cpu(b)
				for n := range b.N {
					if n%(rate/100) == 0 {
						<-pace.C
					}
					r := p.pick(prompt(n%1000, 128))
					r.Responded(poolstate.Ended)
					r.Release(poolstate.Ended)
				}
				b.ReportMetric((cpu(b)-before).Seconds()*1e6/float64(b.N), "cpu-µs/op")
			})
		}
	}
}

// elsewhere is the environment variable that has, in a process of followElsewhere, the address of the picker to follow and their
// number.
const elsewhere = "FOLLOW"

// followElsewhere starts pickers in a process of their own that follow a picker, and are followed by it, until the benchmark ends.
func followElsewhere(b *testing.B, p *picker, n int) {
	b.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestFollowElsewhere$", "-test.timeout=10m")
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", elsewhere, n, p.address))
	in, err := child.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close() // which ends it
		_ = child.Wait()
	})
	addresses := []netip.AddrPort{p.address}
	for lines := bufio.NewScanner(out); len(addresses) <= n && lines.Scan(); {
		if address, err := netip.ParseAddrPort(lines.Text()); err == nil {
			addresses = append(addresses, address)
		}
	}
	p.Update(addresses)
	p.eventually("both follow each other", func() bool {
		return p.gauge("peers_following") == float64(n) && p.gauge("peers_followed") == float64(n)
	})
}

// TestFollowElsewhere is the process of followElsewhere, and tests nothing.
func TestFollowElsewhere(t *testing.T) {
	var n int
	var address string
	if _, err := fmt.Sscan(os.Getenv(elsewhere), &n, &address); err != nil {
		t.Skip("it is a process of BenchmarkTelling")
	}
	all := []netip.AddrPort{netip.MustParseAddrPort(address)}
	var followers []*picker
	for range n {
		f := start(t, secret)
		followers, all = append(followers, f), append(all, f.address)
		fmt.Println(f.address)
	}
	for _, f := range followers {
		f.Update(all)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// cpu is the processor time that the process has taken.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Events of a pool for which several pick are told sooner, by so much the later as more follow, and never later than others.
func TestSomeEventsAreToldSoon(t *testing.T) {
	const late = flushEvery - time.Millisecond
	for name, tt := range map[string]struct {
		followers int
		soonAfter time.Duration // when an event comes that should be heard of soon; negative where none does
		want      time.Duration
	}{
		"none is to be told soon": {2, -1, flushEvery},
		"one of two followers":    {2, 0, 2 * flushSoon},
		"one of ten":              {10, 0, 10 * flushSoon},
		"one that comes late":     {2, late, flushEvery},
		"one in between":          {2, 100 * time.Millisecond, 100*time.Millisecond + 2*flushSoon},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := New(Options{})
				for range tt.followers {
					p.followers[&follower{}] = struct{}{}
				}
				began := time.Now()
				p.Tell(&poolstate.Event{Kind: poolstate.Reserved})
				if tt.soonAfter >= 0 {
					go func() {
						time.Sleep(tt.soonAfter)
						p.Tell(&poolstate.Event{Kind: poolstate.Reserved, Soon: true})
					}()
				}
				if last := p.collect(t.Context()); last {
					t.Error("the events are taken for the last ones")
				}
				if took := time.Since(began); took != tt.want {
					t.Errorf("events are collected for %s, want %s", took, tt.want)
				}
			})
		})
	}
}

// An event that should be heard of soon hurries the message that it is in, and not a later one. This goes by send itself.
func TestHurryEndsWithItsMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		p := New(Options{Metrics: telemetry.NewPeerMetrics(registry), Secret: func() []byte { return secret }})
		f, err := p.join()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go p.send(ctx)
		took := func(e poolstate.Event, times int) time.Duration {
			began := time.Now()
			for range times {
				p.Tell(&e)
				synctest.Wait() // so that send takes what hurries before more does
			}
			<-f.wake
			return time.Since(began)
		}
		if got := took(poolstate.Event{Kind: poolstate.Reserved, Soon: true}, 3); got != flushSoon {
			t.Errorf("an event is told after %s that should be heard of soon, want %s", got, flushSoon)
		}
		if got := took(poolstate.Event{Kind: poolstate.Reserved}, 1); got != flushEvery {
			t.Errorf("the next one is told after %s, want %s", got, flushEvery)
		}
	})
}
