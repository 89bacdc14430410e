package integration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// The tests in this file check what the picker's choices depend on: prefixes, load, bursts, sessions, failures, adapters
// and settings. Each test has a pool and model servers of its own.

// supervised runs a model server that restarts at once when it dies. Kubernetes does not notice, so the picker sees the
// restart only in the server's metrics. SIGUSR1 to the pod's program kills the server.
const supervised = "test/supervised"

func onSupervised(p *corev1.Pod, _ string, args []string) ([]string, error) {
	const script = `
trap 'kill -9 $server' USR1
trap 'end=1; kill $server' TERM
while [ -z "$end" ]; do "$@" & server=$!; wait $server; done
wait`
	program := filepath.Join(the.Root, "bin", "modelserver")
	own := []string{"--address=" + net.JoinHostPort(p.Status.PodIP, "8000"), "--name=" + p.Name}
	return slices.Concat([]string{"-c", script, "sh", program}, own, args), nil
}

const choiceServersYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: models}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      containers:
        - name: server
          image: test/supervised
          args: [ARGS]
`

const choicePoolYAML = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: NAME, namespace: models, annotations: {ANNOTATIONS}}
spec:
  selector: {matchLabels: {app: NAME}}
  targetPorts: [{number: 8000}]
`

// choice is the pool of one test. Its calls are made by the client http, or by the caller's own where that is nil.
type choice struct {
	name, host string
	http       *http.Client
}

func (c choice) client() *http.Client { return cmp.Or(c.http, the.caller.HTTP) }

// choose makes model servers with these flags and a pool over them with these annotations, and waits until all endpoints
// can be picked. They are deleted after the test.
func choose(ctx context.Context, t *testing.T, name string, replicas, endpoints int, annotations string, flags ...string) choice {
	t.Helper()
	runServers(ctx, t, name, replicas, flags...)
	t.Cleanup(func() { must(t, the.Client.Delete(context.WithoutCancel(ctx), pool(name))) })
	must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAME", name, "ANNOTATIONS", annotations).Replace(choicePoolYAML)))
	c := choice{name: name, host: "http://" + name + ".models.inference.internal"}
	c.awaitEndpoints(ctx, t, endpoints)
	return c
}

// choosePicked is choose with calls that are all picked. On a busy machine a waypoint may give the picker up for some seconds. So
// the pool fails closed, and refused calls are made again.
func choosePicked(ctx context.Context, t *testing.T, name string, replicas, endpoints int, annotations string, flags ...string) choice {
	t.Helper()
	if annotations != "" {
		annotations += ", "
	}
	c := choose(ctx, t, name, replicas, endpoints, annotations+"inference-waypoint.io/failure-mode: FailClose", flags...)
	c.http = &http.Client{Transport: insisting{the.caller.HTTP.Transport}}
	return c
}

// insisting makes calls again that a waypoint refused.
type insisting struct{ http.RoundTripper }

func (i insisting) RoundTrip(r *http.Request) (*http.Response, error) {
	const tries, pause = 60, 250 * time.Millisecond
	for n := 1; ; n++ {
		response, err := i.RoundTripper.RoundTrip(r)
		if err != nil || response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("X-Served-By") != "" || n == tries {
			return response, err
		}
		_ = response.Body.Close()
		select {
		case <-time.After(pause):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
		r = r.Clone(r.Context())
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
}

// runServers makes a Deployment of model servers.
func runServers(ctx context.Context, t *testing.T, name string, replicas int, flags ...string) {
	t.Helper()
	t.Cleanup(func() {
		must(t, the.Client.Delete(context.WithoutCancel(ctx), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name}}))
	})
	must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAME", name, "REPLICAS", strconv.Itoa(replicas), "ARGS", "'"+strings.Join(flags, "', '")+"'").Replace(choiceServersYAML)))
	must(t, the.AwaitDeployment(ctx, "models", name))
}

// say makes a call with one message; the answer has one token.
func (c choice) say(ctx context.Context, text string) (*traffic.Answer, error) {
	return traffic.Chat(ctx, c.client(), c.host, "sample-model", []traffic.Message{{Role: "user", Content: text}}, 1)
}

func (c choice) explain(ctx context.Context, model, text string) (*livestate.Explanation, error) {
	return the.Explain(ctx, "models/"+c.name, traffic.Body(model, []traffic.Message{{Role: "user", Content: text}}, 1))
}

// endpoints returns the pool's pods by the endpoint's name in explanations.
func (c choice) endpoints(ctx context.Context, t *testing.T) map[string]corev1.Pod {
	t.Helper()
	out := map[string]corev1.Pod{}
	for _, p := range pods(ctx, t, "models", client.MatchingLabels{"app": c.name}) {
		out[net.JoinHostPort(p.Status.PodIP, "8000")] = p
	}
	return out
}

// candidateOf finds a pod's candidate in an explanation.
func candidateOf(why *livestate.Explanation, p corev1.Pod) livestate.Candidate {
	i := slices.IndexFunc(why.Candidates, func(c livestate.Candidate) bool { return c.Endpoint == net.JoinHostPort(p.Status.PodIP, "8000") })
	if i < 0 {
		return livestate.Candidate{}
	}
	return why.Candidates[i]
}

// restart kills the model server of a pod; the server restarts.
func restart(t *testing.T, p corev1.Pod) {
	t.Helper()
	pid, err := the.ProcessID(p.UID)
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGUSR1))
}

// occupy keeps long calls to one host open until the function that it returns is called. It returns when all answers have
// begun, with the server of each.
func occupy(ctx context.Context, t *testing.T, with *http.Client, host, model string, prompts ...string) (servers []string, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	servers, errs := make([]string, len(prompts)), make([]error, len(prompts))
	var begun, ended sync.WaitGroup
	for i, prompt := range prompts {
		begun.Add(1)
		ended.Go(func() {
			response, err := post(ctx, with, host, traffic.Body(model, []traffic.Message{{Role: "user", Content: prompt}}, 4000), "")
			if errs[i] = err; err != nil {
				begun.Done()
				return
			}
			defer func() { _ = response.Body.Close() }()
			if servers[i] = response.Header.Get("X-Served-By"); response.StatusCode != http.StatusOK {
				errs[i] = errors.New(response.Status)
			}
			begun.Done()
			_, _ = io.Copy(io.Discard, response.Body) // the call is cut
		})
	}
	begun.Wait()
	end = sync.OnceFunc(func() { cancel(); ended.Wait() })
	t.Cleanup(end)
	must(t, errors.Join(errs...))
	return servers, end
}

// post sends a chat completion request, with a session if one is named.
func post(ctx context.Context, with *http.Client, host string, body []byte, session string) (*http.Response, error) {
	request, err := completion(ctx, host, body)
	if err != nil {
		return nil, err
	}
	if session != "" {
		request.Header.Set("X-Conversation", session)
	}
	return with.Do(request)
}

// completion makes a chat completion request.
func completion(ctx context.Context, host string, body []byte) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, host+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	return request, nil
}

// directly is a pod's URL without the waypoint.
func directly(p corev1.Pod) string { return "http://" + net.JoinHostPort(p.Status.PodIP, "8000") }

// distinct makes n prompts of about so many tokens without a common prefix.
func distinct(n, tokens int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(rand.Uint64(), traffic.Text(rand.New(rand.NewPCG(rand.Uint64(), 0)), tokens))
	}
	return out
}

// The picker forgets the prefixes of a restarted endpoint, whose restart shows only in its metrics.
func TestRestartedEndpointIsForgotten(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	c := choosePicked(ctx, t, "restarted", 2, 2, "", "--time-scale=20")
	conversation := traffic.NewConversation("Restart test.", 41)
	var last *traffic.Answer
	for range 2 {
		var err error
		last, err = conversation.Ask(ctx, c.client(), c.host, "sample-model", 400, 4)
		must(t, err)
	}
	if last.CachedTokens < 300 {
		t.Fatalf("turn 2: %d of %d prompt tokens were cached, want most of turn 1", last.CachedTokens, last.PromptTokens)
	}
	body := traffic.Body("sample-model", append(slices.Clone(conversation.Messages), traffic.Message{Role: "user", Content: "Go on."}), 1)
	why, err := the.Explain(ctx, "models/restarted", body)
	must(t, err)
	if best := why.Candidates[0]; best.CachedTokens < 700 || c.endpoints(ctx, t)[best.Endpoint].Name != last.Endpoint {
		t.Fatalf("the best is %+v, want %s with two turns", best, last.Endpoint)
	}
	time.Sleep(1500 * time.Millisecond) // the picker tells processes apart by start times at least a second apart
	restart(t, c.endpoints(ctx, t)[why.Candidates[0].Endpoint])
	eventually(ctx, t, "two endpoints without the conversation", func(ctx context.Context) error {
		why, err := the.Explain(ctx, "models/restarted", body)
		switch {
		case err != nil:
			return err
		case len(why.Candidates) != 2: // the endpoint must stay a candidate all the while
			return fmt.Errorf("%d endpoints", len(why.Candidates))
		case why.Candidates[0].CachedTokens+why.Candidates[1].CachedTokens > 0:
			return fmt.Errorf("there still are %+v", why.Candidates)
		}
		return nil
	})
}

// Calls avoid an endpoint that other clients load, which shows only in its metrics.
func TestCallsAvoidALoadedEndpoint(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	c := choosePicked(ctx, t, "loaded", 3, 3, "", "--decode-tokens-per-second=5")
	var loaded corev1.Pod
	for _, loaded = range c.endpoints(ctx, t) {
		break
	}
	occupy(ctx, t, http.DefaultClient, directly(loaded), "sample-model", distinct(24, 20)...)
	eventually(ctx, t, "a reading of the load", func(ctx context.Context) error {
		why, err := c.explain(ctx, "sample-model", "Hello")
		if err == nil && candidateOf(why, loaded).Calls < 20 {
			err = fmt.Errorf("the explanation is %+v", why.Candidates)
		}
		return err
	})
	reached := map[string]int{}
	for _, prompt := range distinct(20, 100) {
		answer, err := c.say(ctx, prompt)
		must(t, err)
		reached[answer.Endpoint]++
	}
	if reached[loaded.Name] > 0 || len(reached) != 2 {
		t.Errorf("calls went to %v, want to both but %s", reached, loaded.Name)
	}
}

// front is an endpoint of a pool, served by this process: it passes calls on to a model server, and can refuse some.
type front struct {
	calls  atomic.Int64 // calls of models
	refuse atomic.Pointer[string]
}

// stand adds to a pool an endpoint that passes calls on, and refuses those of the path refuse.
func stand(ctx context.Context, t *testing.T, c string, refuse string) *front {
	t.Helper()
	runServers(ctx, t, c+"-behind", 1, "--decode-tokens-per-second=100")
	behind, err := url.Parse(directly(pods(ctx, t, "models", client.MatchingLabels{"app": c + "-behind"})[0]))
	must(t, err)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: c + "-front", Labels: map[string]string{"app": c}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "front", Image: mesh.ClientImage}}},
	}
	must(t, the.Client.Create(ctx, p))
	t.Cleanup(func() { must(t, the.Client.Delete(context.WithoutCancel(ctx), p)) })
	eventually(ctx, t, "the front's address", func(ctx context.Context) error {
		if err := the.Client.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil || p.Status.PodIP == "" {
			return errors.Join(errors.New("there is none"), err)
		}
		return nil
	})
	f := &front{}
	f.refuse.Store(&refuse)
	proxy := passOn(&httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(behind) }})
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(p.Status.PodIP, "8000"))
	must(t, err)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			f.calls.Add(1)
		}
		if refuse := *f.refuse.Load(); refuse != "" && strings.HasPrefix(r.URL.Path, refuse) {
			http.Error(w, "out of order", http.StatusInternalServerError)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }() // ends at Close
	t.Cleanup(func() { _ = server.Close() })
	return f
}

// passOn has a proxy pass on requests with bodies. Otherwise the server closes a request's body when the answer begins, and the
// proxy, which may still look for the body's end, breaks the call off.
func passOn(proxy *httputil.ReverseProxy) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/1.1 always can
		proxy.ServeHTTP(w, r)
	})
}

// An endpoint with unreadable metrics gets as many calls as others do: the picker does not take it for idle while others
// have work.
func TestUnreadableEndpointIsNotReadAsIdle(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	f := stand(ctx, t, "unreadable", "/metrics")
	c := choosePicked(ctx, t, "unreadable", 3, 4, "", "--decode-tokens-per-second=5")
	read := 0
	for _, p := range c.endpoints(ctx, t) {
		if p.Name != "unreadable-front" {
			occupy(ctx, t, http.DefaultClient, directly(p), "sample-model", distinct(12, 20)...)
			read++
		}
	}
	eventually(ctx, t, "readings of all others", func(ctx context.Context) error {
		why, err := c.explain(ctx, "sample-model", "Hello")
		if err != nil {
			return err
		}
		for _, candidate := range why.Candidates {
			if candidate.ReadingAge != nil && candidate.Calls >= 10 {
				read--
			}
		}
		if read > 0 {
			read = 3
			return fmt.Errorf("the explanation is %+v", why.Candidates)
		}
		return nil
	})
	before := f.calls.Load()
	for _, prompt := range distinct(40, 100) {
		_, err := c.say(ctx, prompt)
		must(t, err)
	}
	if got := f.calls.Load() - before; got == 0 || got > 20 {
		t.Errorf("of 40 calls to four endpoints %d went to the one without readings, want some and not above twice the mean", got)
	}
}

// In a burst of one prompt no endpoint gets more than twice the mean, and yet not all endpoints prefill the prompt.
func TestBurstNeitherHerdsNorScatters(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	const calls, endpoints, tokens = 64, 8, 6000
	c := choosePicked(ctx, t, "burst", endpoints, endpoints, "", "--decode-tokens-per-second=2")
	prompt := distinct(1, tokens)[0]
	queriesBefore, hitsBefore := c.cache(ctx, t)
	// All calls stay in flight until the last is picked, so that the result does not depend on their timing.
	servers, end := occupy(ctx, t, c.client(), c.host, "sample-model", slices.Repeat([]string{prompt}, calls)...)
	var queries, hits float64
	eventually(ctx, t, "the start of all calls", func(ctx context.Context) error {
		if queries, hits = c.cache(ctx, t); queries-queriesBefore < calls*tokens {
			return fmt.Errorf("%.0f prompt tokens were looked up, want those of %d calls", queries-queriesBefore, calls)
		}
		return nil
	})
	end()
	reached := map[string]int{}
	for _, name := range servers {
		reached[name]++
	}
	for name, n := range reached {
		if n > 2*calls/endpoints {
			t.Errorf("%s got %d of %d calls, want no more than twice the mean: %v", name, n, calls, reached)
		}
	}
	// An oracle prefills the prompt at half of the endpoints: with fewer, one gets more than twice the mean.
	share, oracle := (hits-hitsBefore)/(queries-queriesBefore), 1-float64(endpoints/2)/calls
	if share < 0.8*oracle || len(reached) > endpoints-2 {
		t.Errorf("the cached share is %.2f, want 0.8 of %.2f; %d of %d endpoints had to prefill: %v", share, oracle, len(reached), endpoints, reached)
	}
}

var counter = regexp.MustCompile(`(?m)^vllm:prefix_cache_(queries|hits)_total\{.*\} (\S+)$`)

// cache sums, over the pool's servers, the prompt tokens looked up in prefix caches and the tokens found.
func (c choice) cache(ctx context.Context, t *testing.T) (queries, hits float64) {
	t.Helper()
	for _, p := range c.endpoints(ctx, t) {
		page, err := metricsOf(ctx, &p, "8000")
		must(t, err)
		for _, m := range counter.FindAllStringSubmatch(page, -1) {
			n, err := strconv.ParseFloat(m[2], 64)
			must(t, err)
			if m[1] == "hits" {
				hits += n
			} else {
				queries += n
			}
		}
	}
	return queries, hits
}

const avoidance = 4 * time.Second

// Calls of a session, named by the pool's session header, go to one endpoint. An endpoint that fails loses its sessions for
// a while, and gets them again.
func TestSessionsStayAndFailuresAreAvoided(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	f := stand(ctx, t, "sessions", "")
	c := choosePicked(ctx, t, "sessions", 3, 4, `inference-waypoint.io/pick-session-header: X-Conversation, inference-waypoint.io/pick-avoid-for: `+avoidance.String(),
		"--time-scale=20")
	call := func(session string) (status int, server string) {
		t.Helper()
		body := traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: distinct(1, 100)[0]}}, 1)
		response, err := post(ctx, c.client(), c.host, body, session)
		must(t, err)
		defer func() { _ = response.Body.Close() }()
		_, err = io.Copy(io.Discard, response.Body)
		must(t, err)
		return response.StatusCode, response.Header.Get("X-Served-By")
	}
	homes := map[string]bool{}
	atFront := ""
	for n := 0; n < 6 || atFront == "" && n < 60; n++ {
		session := fmt.Sprint("session ", n)
		before := f.calls.Load()
		_, home := call(session)
		for range 3 {
			if _, next := call(session); next != home {
				t.Errorf("%s went to %s and then to %s", session, home, next)
			}
		}
		homes[home] = true
		if f.calls.Load() == before+4 {
			atFront = session
		}
	}
	if len(homes) < 2 || atFront == "" {
		t.Fatalf("the sessions are at %v alone", homes)
	}

	failing := "/v1/chat"
	f.refuse.Store(&failing)
	failed := time.Now()
	if status, _ := call(atFront); status != http.StatusInternalServerError {
		t.Errorf("the call that finds out got %d, want the server's own 500", status)
	}
	avoided := f.calls.Load()
	for n := 0; n < 40 && time.Since(failed) < avoidance; n++ {
		session := "" // picked by load alone, a quarter of these would go there
		if n%4 == 0 {
			session = atFront
		}
		status, server := call(session)
		if time.Since(failed) >= avoidance {
			break // the machine is slow: this call may have been the picker's probe
		}
		if status != http.StatusOK || f.calls.Load() != avoided {
			t.Errorf("%s after the failure a call got %d from %s", time.Since(failed), status, server)
		}
	}
	sound := ""
	f.refuse.Store(&sound)
	eventually(ctx, t, "the session's return", func(context.Context) error {
		if call(atFront); f.calls.Load() == avoided {
			return errors.New("it is still elsewhere")
		}
		return nil
	})
	if since := time.Since(failed); since < avoidance {
		t.Errorf("the endpoint was tried again after %s, want not before %s", since, avoidance)
	}
}

// lru holds the resident adapters of one server, the least recently used first.
type lru []string

// use makes an adapter resident, in one of two slots, and reports whether it was resident before.
func (l *lru) use(adapter string) (resident bool) {
	i := slices.Index(*l, adapter)
	if i >= 0 {
		*l = slices.Delete(*l, i, i+1)
	}
	if *l = append(*l, adapter); len(*l) > 2 {
		*l = (*l)[1:]
	}
	return i >= 0
}

// Where the servers' slots hold all adapters, calls find their adapter resident. A call for an adapter that is resident
// nowhere goes to a free slot.
func TestAdaptersStayResident(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	var adapters []string
	for n := range 8 {
		adapters = append(adapters, fmt.Sprintf("adapter-%d", n))
	}
	c := choosePicked(ctx, t, "adapters", 4, 4, "", "--time-scale=10", "--decode-tokens-per-second=40", "--max-loras=2", "--lora-modules="+strings.Join(adapters, ","))
	servers := map[string]*lru{}
	for _, p := range c.endpoints(ctx, t) {
		servers[p.Name] = &lru{}
	}
	// Calls come one after the other, so that where they went determines what a server has resident.
	call := func(adapter string, tokens int) (server string, resident bool) {
		t.Helper()
		answer, err := traffic.Chat(ctx, c.client(), c.host, adapter, []traffic.Message{{Role: "user", Content: distinct(1, 50)[0]}}, tokens)
		must(t, err)
		return answer.Endpoint, servers[answer.Endpoint].use(adapter)
	}
	stateAt := func(ctx context.Context, adapter string) (*livestate.Explanation, map[string]livestate.Candidate) {
		why, err := c.explain(ctx, adapter, "Hello")
		must(t, err)
		out := map[string]livestate.Candidate{}
		for endpoint, p := range c.endpoints(ctx, t) {
			i := slices.IndexFunc(why.Candidates, func(c livestate.Candidate) bool { return c.Endpoint == endpoint })
			out[p.Name] = why.Candidates[i]
		}
		return why, out
	}
	// The picker learns from readings that a name is an adapter's. A reading must find a call for it in flight.
	eventually(ctx, t, "all adapters resident", func(ctx context.Context) error {
		var missing []string
		for _, adapter := range adapters {
			if why, _ := stateAt(ctx, adapter); why.Candidates[0].AdapterState != "resident" {
				missing = append(missing, adapter)
				call(adapter, 100)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("these were not: %v", missing)
		}
		return nil
	})
	const calls = 100
	found := 0
	for range calls {
		if _, resident := call(adapters[rand.IntN(len(adapters))], 1); resident {
			found++
		}
	}
	if found < 95*calls/100 {
		t.Errorf("%d of %d calls found their adapter resident, want 95 %%", found, calls)
	}

	// A restarted server has two free slots for its own two adapters, which are resident nowhere now.
	var emptied corev1.Pod
	for _, emptied = range c.endpoints(ctx, t) {
		if len(*servers[emptied.Name]) == 2 {
			break
		}
	}
	displaced := slices.Clone(*servers[emptied.Name])
	restart(t, emptied)
	*servers[emptied.Name] = lru{}
	eventually(ctx, t, "free slots", func(ctx context.Context) error {
		if _, states := stateAt(ctx, displaced[0]); states[emptied.Name].AdapterState != "free slot" {
			return fmt.Errorf("the states are %+v", states)
		}
		return nil
	})
	for _, adapter := range displaced {
		if server, _ := call(adapter, 100); server != emptied.Name {
			t.Errorf("%s went to %s, want %s, where a slot is free", adapter, server, emptied.Name)
		}
	}
}

// An endpoint whose adapter slots all serve calls gets no call for another adapter, however idle it is otherwise.
func TestFullSlotsAreAvoided(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	// Answers take longer than the test (4000 tokens take 100 s), and loading costs nothing, so that load alone would decide.
	c := choosePicked(ctx, t, "full", 2, 2, `inference-waypoint.io/pick-adapter-load-time: 0s`, "--time-scale=10",
		"--decode-tokens-per-second=4", "--answer-tokens=10000", "--max-loras=1", "--lora-modules=held,other")
	call := func(tokens int) (server string) {
		t.Helper()
		message := []traffic.Message{{Role: "user", Content: distinct(1, 50)[0]}}
		answer, err := traffic.Chat(ctx, c.client(), c.host, "other", message, tokens)
		must(t, err)
		return answer.Endpoint
	}
	servers, _ := occupy(ctx, t, c.client(), c.host, "held", distinct(1, 50)...)
	full := servers[0]
	var at, elsewhere livestate.Candidate // the candidates for the other adapter
	look := func(ctx context.Context) error {
		why, err := c.explain(ctx, "other", "Hello")
		if err != nil {
			return err
		}
		for _, p := range c.endpoints(ctx, t) {
			if p.Name == full {
				at = candidateOf(why, p)
			} else {
				elsewhere = candidateOf(why, p)
			}
		}
		if at.AdapterState != "slots in use" || at.Class == "" || why.Candidates[1].Endpoint != at.Endpoint {
			return fmt.Errorf("%s is at %+v, want last", full, at)
		}
		return nil
	}
	eventually(ctx, t, "the picker's word on slots in use", func(ctx context.Context) error {
		err := look(ctx)
		if err != nil {
			call(20) // the picker learns that the name is an adapter's from a reading with a call in flight
		}
		return err
	})
	for _, p := range c.endpoints(ctx, t) {
		if p.Name != full {
			occupy(ctx, t, http.DefaultClient, directly(p), "sample-model", distinct(20, 20)...)
		}
	}
	eventually(ctx, t, "a reading of the load elsewhere", func(ctx context.Context) error {
		if err := look(ctx); err != nil {
			return err
		}
		if at.Cost.Total >= elsewhere.Cost.Total {
			return fmt.Errorf("%+v is no better than %+v by load", at, elsewhere)
		}
		return nil
	})
	for range 5 {
		if server := call(1); server == full {
			t.Errorf("a call with another adapter went to %s, whose slot is in use", server)
		}
	}
}

// A pool with invalid picker annotations is served with the defaults. An event on the pool and a metric say so.
func TestWrongSettingsAreTold(t *testing.T) {
	ctx := begin(t, time.Minute)
	choose(ctx, t, "missettled", 1, 1,
		`inference-waypoint.io/pick-spread: much, inference-waypoint.io/pick-sesion-header: x, inference-waypoint.io/pick-avoid-for: 2s`, "--time-scale=20")
	eventually(ctx, t, "the event", func(ctx context.Context) error {
		var events corev1.EventList
		if err := the.Client.List(ctx, &events, client.InNamespace("models")); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.Kind == "InferencePool" && e.InvolvedObject.Name == "missettled" && e.Reason == "InvalidPickerSettings" &&
				e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, `pick-spread is "much"`) && strings.Contains(e.Message, "pick-sesion-header") {
				return nil
			}
		}
		return fmt.Errorf("it is not among %d", len(events.Items))
	})
	wantSeries := func(want string) {
		t.Helper()
		eventually(ctx, t, want, func(ctx context.Context) error {
			page, err := metricsOf(ctx, picker(ctx, t), "9090")
			if err == nil && !strings.Contains(page, want+"\n") {
				err = errors.New("the picker's metrics do not have it")
			}
			return err
		})
	}
	wantSeries(`inference_waypoint_pool_settings_invalid{pool="models/missettled"} 2`)
	must(t, the.Client.Patch(ctx, pool("missettled"), client.RawPatch("application/merge-patch+json",
		[]byte(`{"metadata":{"annotations":{"inference-waypoint.io/pick-spread":"3","inference-waypoint.io/pick-sesion-header":null}}}`))))
	wantSeries(`inference_waypoint_pool_settings_invalid{pool="models/missettled"} 0`)
}
