package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/review"
	poolapi "github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// attacksOnThePicker are made with calls.
var attacksOnThePicker = []attack{
	{"service accounts named like waypoints ask the picker", askByName},
	{"its own waypoint asks about the victim's pool", askAboutVictim},
	{"its own waypoint asks as the picker's probe", askAsProbe},
	{"headers that forge an identity or an endpoint", forgeHeaders},
	{"reads what the picker knows of the victim", readVictim},
	{"asks without end who may read", reviewWithoutEnd},
	{"thousands of streams that say nothing", openSilent},
	{"thousands of calls whose body stalls", openStalled},
	{"thousands of calls that never end", openEndless},
	{"prompts of 1 MiB at full speed", sendLarge},
	{"ever new prompts fill the index", fillIndex},
}

// askByName calls the picker with service accounts of the tenant's namespace that have the names of others.
func askByName(ctx context.Context, t *testing.T, m *hostile) {
	for _, account := range []string{"waypoint", victimWaypoint, pickerAccount, controllerAccount, "default"} {
		from, err := the.NewCaller(ctx, "mallory", "as-"+account, account)
		must(t, err)
		conn, err := from.DialPod(ctx, m.victim.picker(ctx, t), 9002)
		from.Close()
		if err == nil {
			_ = conn.Close()
			t.Errorf("mallory's service account %s reaches the picker", account)
		} else if !strings.Contains(err.Error(), "401") {
			t.Errorf("mallory's service account %s got %v, want a 401", account, err)
		}
	}
}

// asWaypoint makes a client of the picker with the identity of the tenant's own waypoint.
func (m *hostile) asWaypoint(ctx context.Context, t *testing.T) extprocv3.ExternalProcessorClient {
	t.Helper()
	pod := m.victim.picker(ctx, t)
	conn, err := grpc.NewClient("passthrough:///picker", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return m.gate.DialPod(ctx, pod, 9002) }))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return extprocv3.NewExternalProcessorClient(conn)
}

// headersOf is the first message of a call. Without a body it is the whole call.
func headersOf(hasBody bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{
		EndOfStream: !hasBody, Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			{Key: ":method", RawValue: []byte("POST")}, {Key: ":path", RawValue: []byte("/v1/chat/completions")},
			{Key: "content-type", RawValue: []byte("application/json")},
		}},
	}}}
}

func bodyOf(text string, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: []byte(text), EndOfStream: end},
	}}
}

// openStream opens a stream for a pool, with the tenant's only token, and sends messages. The picker may end the stream before it
// has them all: then the next receipt tells why.
func (m *hostile) openStream(ctx context.Context, to extprocv3.ExternalProcessorClient, pool string, messages ...*extprocv3.ProcessingRequest) (extprocv3.ExternalProcessor_ProcessClient, error) {
	stream, err := to.Process(metadata.AppendToOutgoingContext(ctx, poolapi.NameHeader, pool, poolapi.TokenHeader, m.token))
	for _, message := range messages {
		if err == nil {
			err = stream.Send(message)
		}
		if errors.Is(err, io.EOF) {
			return stream, nil
		}
	}
	return stream, err
}

func askAboutVictim(ctx context.Context, t *testing.T, m *hostile) {
	to, own := m.asWaypoint(ctx, t), m.token
	defer func() { m.token = own }()
	for name, token := range map[string]string{"its own pool's token": own, "no token": "", "a guess": "AAAAAAAAAAAAAAAA"} {
		m.token = token
		stream, err := m.openStream(ctx, to, "victim/llama", headersOf(false))
		must(t, err)
		if reply, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("mallory's waypoint asked about the victim's pool with %s and got %.200v, %v, want %s", name, reply, err, codes.PermissionDenied)
		}
	}
}

// askAsProbe uses the name under which the picker probes itself, to which no limit applies.
func askAsProbe(ctx context.Context, t *testing.T, m *hostile) {
	f := m.flood(ctx, t, tenantsStreams+500, "/probe", headersOf(false))
	if ended := f.settle(ctx, t); ended[codes.PermissionDenied] < int(f.opened.Load()) {
		t.Errorf("calls of a waypoint were taken for the picker's own: %v ended", ended)
	}
}

// floodPause comes after each 20 streams of a flood.
const floodPause = 10 * time.Millisecond

// flood is a set of streams that are kept open.
type flood struct {
	opened, answered atomic.Int64
	mu               sync.Mutex
	ended            map[codes.Code]int
}

// flood opens streams for a pool, each with the same messages, and keeps them open until the end of the test.
func (m *hostile) flood(ctx context.Context, t *testing.T, streams int, pool string, messages ...*extprocv3.ProcessingRequest) *flood {
	t.Helper()
	f := &flood{ended: map[codes.Code]int{}}
	to := m.asWaypoint(ctx, t)
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	t.Cleanup(func() { cancel(); wait.Wait() })
	for n := range streams {
		if n%20 == 0 {
			time.Sleep(floodPause) // the tenant's own processor time must not slow the victim here
		}
		stream, err := m.openStream(ctx, to, pool, messages...)
		if err != nil && !errors.Is(err, io.EOF) { // io.EOF means that the stream has ended with another error
			t.Fatalf("after %d streams: %v", f.opened.Load(), err)
		}
		f.opened.Add(1)
		wait.Go(func() { f.listen(stream) })
	}
	return f
}

// listen receives from a stream and counts its result.
func (f *flood) listen(stream extprocv3.ExternalProcessor_ProcessClient) {
	_, err := stream.Recv()
	if err == nil {
		f.answered.Add(1)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended[status.Code(err)]++
}

// settle waits until no stream has had a result for half a second.
func (f *flood) settle(ctx context.Context, t *testing.T) map[codes.Code]int {
	t.Helper()
	last, since := -1, time.Now()
	var out map[codes.Code]int
	eventually(ctx, t, "the end of the flood", func(context.Context) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		now := int(f.answered.Load())
		out = map[codes.Code]int{}
		for code, n := range f.ended {
			out[code] = n
			now += n
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < 500*time.Millisecond {
			return errors.New("it goes on")
		}
		return nil
	})
	t.Logf("%d streams: %d answered, ended: %v", f.opened.Load(), f.answered.Load(), out)
	return out
}

// wantKept checks how many of the tenant's calls the picker has accepted: at most four fifths of its limit.
func (f *flood) wantKept(ctx context.Context, t *testing.T) {
	t.Helper()
	ended := f.settle(ctx, t)
	kept := int(f.opened.Load()) - ended[codes.ResourceExhausted]
	if most := tenantsStreams * 4 / 5; kept > most+victimCallers || kept < most/2 {
		t.Errorf("the picker has %d of mallory's calls, want %d at most", kept, most)
	}
	for code, n := range ended {
		if code != codes.ResourceExhausted {
			t.Errorf("%d streams ended with %s", n, code)
		}
	}
}

func openSilent(ctx context.Context, t *testing.T, m *hostile) {
	f := m.flood(ctx, t, large(tenantsStreams*3/2), "mallory/elder")
	ended := f.settle(ctx, t)
	if want := int(f.opened.Load()) - tenantsStreams; ended[codes.DeadlineExceeded] < want {
		t.Errorf("%v ended, want the oldest %d", ended, want)
	}
}

func openStalled(ctx context.Context, t *testing.T, m *hostile) {
	m.flood(ctx, t, large(tenantsStreams*5/4), "mallory/elder", headersOf(true), bodyOf(`{"model":"`+strings.Repeat("a", 20<<10), false)).wantKept(ctx, t)
}

func openEndless(ctx context.Context, t *testing.T, m *hostile) {
	m.flood(ctx, t, large(tenantsStreams*5/4), "mallory/elder", headersOf(false)).wantKept(ctx, t)
}

// forgeHeaders calls the victim's pool, which is open to all, and its own, with headers that proxies and pickers use.
func forgeHeaders(ctx context.Context, t *testing.T, m *hostile) {
	theirs, own := pods(ctx, t, "victim", map[string]string{"app": "llama"}), pods(ctx, t, "mallory", map[string]string{"app": "elder"})
	for host, test := range map[string]struct {
		endpoint, pool, servers string
	}{
		victimHost:  {net.JoinHostPort(own[0].Status.PodIP, "8000"), "mallory/elder", "llama-"},
		malloryHost: {net.JoinHostPort(theirs[0].Status.PodIP, "8000"), "victim/llama", "elder-"},
	} {
		for range 10 {
			request, err := completion(ctx, "http://"+host, traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: "Hello"}}, 1))
			must(t, err)
			for name, value := range map[string]string{
				"X-Gateway-Destination-Endpoint": test.endpoint, "X-Gateway-Destination-Endpoint-Subset": test.endpoint,
				poolapi.NameHeader: test.pool, "X-Forwarded-Client-Cert": "By=spiffe://cluster.local/ns/victim/sa/inference;URI=spiffe://cluster.local/ns/victim/sa/caller",
				"X-Envoy-Original-Dst-Host": test.endpoint, "X-Envoy-Max-Retries": "1000", "X-Envoy-Upstream-Alt-Stat-Name": "x",
			} {
				request.Header.Set(name, value)
			}
			response, err := m.caller.HTTP.Do(request)
			must(t, err)
			_, _ = io.Copy(io.Discard, response.Body)
			must(t, response.Body.Close())
			if got := response.Header.Get("X-Served-By"); response.StatusCode != http.StatusOK || !strings.HasPrefix(got, test.servers) {
				t.Errorf("a call to %s got %s of %q, want one of %s*", host, response.Status, got, test.servers)
			}
		}
	}
}

// askPage requests a page of a picker.
func askPage(ctx context.Context, t *testing.T, at *corev1.Pod, method, path, token string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+net.JoinHostPort(at.Status.PodIP, "9091")+path, strings.NewReader("{}"))
	must(t, err)
	if token != "" {
		request.Header.Set(review.TokenHeader, "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	return response.StatusCode, string(text)
}

func readVictim(ctx context.Context, t *testing.T, m *hostile) {
	token, err := the.Token(ctx, "mallory", "mallory")
	must(t, err)
	at := m.victim.picker(ctx, t)
	for path, method := range map[string]string{
		"/debug/explain?pool=victim/llama": http.MethodPost, "/debug/pools?pool=victim/llama": http.MethodGet, "/debug/pools": http.MethodGet,
		"/": http.MethodGet, "/?pool=victim/llama": http.MethodGet, "/tables": http.MethodGet,
		"/debug/pools?pool=mallory/elder&pool=victim/llama": http.MethodGet, "/debug/pools?pool=victim/llama&pool=mallory/elder": http.MethodGet,
	} {
		if got, text := askPage(ctx, t, at, method, path, ""); got != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d %q", path, got, text)
		}
		got, text := askPage(ctx, t, at, method, path, token)
		if refused := got == http.StatusForbidden || got == http.StatusBadRequest; !refused && strings.Contains(text, "victim/llama") || !refused && !strings.HasPrefix(path, "/debug/pools?pool=mallory") {
			t.Errorf("%s with mallory's token: %d %q", path, got, text)
		}
	}
	if got, text := askPage(ctx, t, at, http.MethodGet, "/debug/pools?pool=mallory/elder", token); got != http.StatusOK || !strings.Contains(text, "mallory/elder") {
		t.Errorf("mallory's own pool: %d %q", got, text)
	}
	kubeconfig := writeKubeconfig(t, func(text string) string {
		return strings.ReplaceAll(text, "token: "+the.Config.BearerToken, "token: "+token)
	})
	for _, command := range []string{"explain", "top"} {
		args := map[string][]string{"explain": {"explain", "-f", "-", "llama", "-n", "victim"}, "top": {"top", "llama", "-n", "victim", "--once"}}[command]
		if got := kubectl(ctx, t, kubeconfig, "{}", args...); got.code == 0 || strings.Contains(got.out+got.err, "10.244.") {
			t.Errorf("kubectl inference %s: %d\n%s%s", command, got.code, got.out, got.err)
		}
	}
}

// reviewWithoutEnd sends ever new tokens, each of which costs a request to the API server.
func reviewWithoutEnd(ctx context.Context, t *testing.T, m *hostile) {
	var mu sync.Mutex
	at, counts := m.victim.picker(ctx, t), map[int]int{}
	asked := busily(ctx, t, 20, func(ctx context.Context) error {
		time.Sleep(floodPause)
		got, _ := askPage(ctx, t, at, http.MethodGet, "/debug/pools?pool=victim/llama", fmt.Sprint("forged-", rand.Uint64()))
		mu.Lock()
		defer mu.Unlock()
		counts[got]++
		return nil
	})
	reviewed := counts[http.StatusUnauthorized]
	if reviewed+counts[http.StatusTooManyRequests] != int(asked) || reviewed > 150 || asked < 300 {
		t.Errorf("%d forged tokens got %v, want a %d for 20 a second and a %d for the others", asked, counts, http.StatusUnauthorized, http.StatusTooManyRequests)
	}
}

// busily calls do from several goroutines for a while, and returns the number of calls.
func busily(ctx context.Context, t *testing.T, places int, do func(context.Context) error) int64 {
	t.Helper()
	var wait sync.WaitGroup
	var done atomic.Int64
	over := time.Now().Add(attackTime)
	for range places {
		wait.Go(func() {
			for time.Now().Before(over) {
				if err := do(ctx); err != nil {
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	wait.Wait()
	t.Logf("%d times", done.Load())
	return done.Load()
}

func sendLarge(ctx context.Context, t *testing.T, m *hostile) {
	body := traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: strings.Repeat("large ", (1<<20-1<<10)/6)}}, 1)
	sent := busily(ctx, t, 4, func(ctx context.Context) error {
		response, err := post(ctx, m.caller.HTTP, "http://"+malloryHost, body, "")
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, response.Body)
		return response.Body.Close()
	})
	if sent < 20 {
		t.Errorf("only %d prompts were sent", sent)
	}
}

// fillIndex has the picker store ever new prompts, as the calls of a waypoint would.
func fillIndex(ctx context.Context, t *testing.T, m *hostile) {
	to := m.asWaypoint(ctx, t)
	answer := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{
		EndOfStream: true, Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: ":status", RawValue: []byte("200")}}},
	}}}
	busily(ctx, t, 2, func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		body := traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: distinct(1, 100_000)[0]}}, 1)
		stream, err := m.openStream(ctx, to, "mallory/elder", headersOf(true), bodyOf(string(body), true))
		if err != nil {
			return err
		}
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
		return stream.CloseSend()
	})
	m.victim.wantKnown(ctx, t)
}

// wantKnown checks that each picker still knows where the victim's conversations are cached, and has fresh readings.
func (v *victim) wantKnown(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, p := range pickers(ctx, t) {
		for i, c := range v.conversations {
			why, err := the.ExplainAt(ctx, &p, "victim/llama", traffic.Body("sample-model", []traffic.Message{c}, 1))
			must(t, err)
			if best := why.Candidates[0]; best.CachedTokens < 1200 {
				t.Errorf("%s: of conversation %d %d tokens are known to be cached, want most of 1,500", p.Name, i, best.CachedTokens)
			}
			for _, candidate := range why.Candidates {
				if candidate.ReadingAge == nil || *candidate.ReadingAge > 3 {
					t.Errorf("%s: %s of the victim has no fresh reading", p.Name, candidate.Endpoint)
				}
			}
		}
	}
}
