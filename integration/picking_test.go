package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// Each turn of a conversation goes to the endpoint of the first, which has its prefix, and conversations spread.
// TestConversationsWanderWithoutPicking shows that this test could fail.
func TestConversationsStay(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	const conversations, turns = 10, 4
	seed := uint64(100)
	whilePicked(ctx, t, "llama", conversations*turns, func() (wrong []string) {
		spread := map[string]int{}
		for n := range conversations {
			seed++
			conversation := traffic.NewConversation("You are the shop's assistant.", seed)
			first, err := conversation.Ask(ctx, the.caller.HTTP, llama, model, 400, 8)
			must(t, err)
			spread[first.Endpoint]++
			for turn := 2; turn <= turns; turn++ {
				next, err := conversation.Ask(ctx, the.caller.HTTP, llama, model, 40, 8)
				must(t, err)
				if next.Endpoint != first.Endpoint {
					wrong = append(wrong, fmt.Sprintf("conversation %d: turn %d went to %s, turn 1 to %s", n, turn, next.Endpoint, first.Endpoint))
				}
				if next.CachedTokens < 300 {
					wrong = append(wrong, fmt.Sprintf("conversation %d, turn %d: %d of %d prompt tokens were cached, want most", n, turn, next.CachedTokens, next.PromptTokens))
				}
			}
		}
		if len(spread) < 2 {
			wrong = append(wrong, fmt.Sprintf("all conversations went to one endpoint: %v", spread))
		}
		return wrong
	})
}

// whilePicked makes so many calls to a pool of namespace models, and fails the test with the problems that do returns. If
// the picker was not asked about each call, it tries again, up to three times: a waypoint that waits 150 ms in vain for a
// reply, as on an overloaded machine, takes the picker out for 5 s and spreads the calls of that time.
func whilePicked(ctx context.Context, t *testing.T, pool string, calls int, do func() (wrong []string)) {
	t.Helper()
	for range 4 {
		before := picksOf(ctx, t, pool)
		wrong := do()
		picked := picksOf(ctx, t, pool) - before
		if picked >= calls {
			for _, text := range wrong {
				t.Error(text)
			}
			return
		}
		t.Logf("the picker was asked about %d of %d calls", picked, calls)
		time.Sleep(time.Second)
	}
	t.Error("the picker was never asked about all calls")
}

// Without an EnvoyFilter or without a picker, conversations do not stay. So tests that want them to stay can fail.
func TestConversationsWanderWithoutPicking(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	must(t, the.ApplyYAML(ctx, `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: plain, namespace: models}
spec:
  hosts: [plain.models.example]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: llama}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]
`))
	eventually(ctx, t, "a conversation that wanders", func(ctx context.Context) error { return wanders(ctx, "http://plain.models.example") })
	scalePicker(ctx, t, 0)
	defer scalePicker(ctx, t, 1)
	eventually(ctx, t, "a conversation that wanders", func(ctx context.Context) error { return wanders(ctx, llama) })
}

// wanders holds a conversation and fails if it stays at one endpoint, as nothing picks there.
func wanders(ctx context.Context, host string) error {
	err := staysPut(ctx, host)
	if err == nil {
		return errors.New("it stayed")
	}
	if !errors.Is(err, errWandered) {
		return err
	}
	return nil
}

// A client's own header does not steer a call, neither with a working picker nor with a dead one.
func TestClientHeaderDoesNotSteer(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	conversation := traffic.NewConversation("Header test.", 7)
	first, err := conversation.Ask(ctx, the.caller.HTTP, llama, model, 400, 4)
	must(t, err)
	// The header names an endpoint that the picker would not pick for this conversation.
	other := otherPod(ctx, t, first.Endpoint)
	steering := &http.Client{Transport: withHeader{the.caller.HTTP.Transport, "x-gateway-destination-endpoint", net.JoinHostPort(other.Status.PodIP, "8000")}}

	for range 5 {
		answer, err := conversation.Ask(ctx, steering, llama, model, 20, 4)
		must(t, err)
		if answer.Endpoint != first.Endpoint {
			t.Errorf("with the picker up the client's header steered a call to %s, want %s", answer.Endpoint, first.Endpoint)
		}
	}
	scalePicker(ctx, t, 0)
	defer scalePicker(ctx, t, 1)
	reached := map[string]int{}
	for i := range 20 {
		answer, err := traffic.Chat(ctx, steering, llama, model, []traffic.Message{{Role: "user", Content: fmt.Sprint("Hello ", i)}}, 1)
		must(t, err)
		reached[answer.Endpoint]++
	}
	if reached[other.Name] == 20 {
		t.Errorf("with the picker down the client's header steered all calls to %s", other.Name)
	}
}

func otherPod(ctx context.Context, t *testing.T, not string) corev1.Pod {
	t.Helper()
	all := modelServers(ctx, t)
	i := slices.IndexFunc(all, func(p corev1.Pod) bool { return p.Name != not && p.DeletionTimestamp == nil })
	if i < 0 {
		t.Fatalf("no other pod than %s", not)
	}
	return all[i]
}

type withHeader struct {
	http.RoundTripper
	name, value string
}

func (h withHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(h.name, h.value)
	return h.RoundTripper.RoundTrip(r)
}

// scalePicker sets the number of pickers and waits until they run.
func scalePicker(ctx context.Context, t *testing.T, replicas int32) {
	t.Helper()
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "inference-system", Name: "inference-picker"}}
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	must(t, the.Client.Patch(ctx, d, client.RawPatch("application/merge-patch+json", patch)))
	must(t, the.AwaitDeployment(ctx, "inference-system", "inference-picker"))
	if replicas > 0 {
		// The waypoint learns of the new picker a moment later. Then conversations stay again.
		must(t, the.Await(ctx, "picking", func(ctx context.Context) error { return staysPut(ctx, llama) }))
		return
	}
	must(t, the.Await(ctx, "the end of the pickers", func(ctx context.Context) error {
		if n := len(pickers(ctx, t)); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	}))
}

// errWandered says that a conversation did not stay at one endpoint.
var errWandered = errors.New("a conversation went to two endpoints")

// staysPut holds a conversation of eight turns and fails unless all go to one endpoint.
func staysPut(ctx context.Context, host string) error {
	conversation := traffic.NewConversation("Is anybody picking?", rand.Uint64())
	var first string
	for range 8 {
		answer, err := conversation.Ask(ctx, the.caller.HTTP, host, model, 100, 1)
		switch {
		case err != nil:
			return err
		case first == "":
			first = answer.Endpoint
		case answer.Endpoint != first:
			return fmt.Errorf("%w: %s and then %s", errWandered, first, answer.Endpoint)
		}
	}
	return nil
}

// flow calls the pool from several goroutines until stop is called, which returns the outcome of each call.
func flow(ctx context.Context, workers int) (stop func() []outcome) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		wait    sync.WaitGroup
		mu      sync.Mutex
		out     []outcome
		stopped atomic.Bool
	)
	for w := range workers {
		wait.Go(func() {
			for i := 0; !stopped.Load(); i++ {
				o := outcome{began: time.Now()}
				var answer *traffic.Answer
				answer, o.err = traffic.Chat(ctx, the.caller.HTTP, llama, model, []traffic.Message{{Role: "user", Content: fmt.Sprint(w, " asks ", i)}}, 16)
				if answer != nil {
					o.endpoint = answer.Endpoint
				}
				mu.Lock()
				out = append(out, o)
				mu.Unlock()
			}
		})
	}
	return func() []outcome {
		stopped.Store(true)
		wait.Wait()
		cancel()
		return out
	}
}

type outcome struct {
	began    time.Time
	endpoint string
	err      error
}

// While no picker answers, a FailOpen pool is served without picking. No call is lost, from the kill on.
func TestPickerKilledLosesNoCall(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	stop := flow(ctx, 6)
	time.Sleep(300 * time.Millisecond) // calls must be in flight at the kill
	// Kill ends the picker like a crash, before the API server knows.
	must(t, the.Kill(picker(ctx, t).UID))
	scalePicker(ctx, t, 0)
	time.Sleep(300 * time.Millisecond)
	scalePicker(ctx, t, 1)
	outcomes := stop()
	if len(outcomes) < 20 {
		t.Errorf("only %d calls were made: too few to say anything", len(outcomes))
	}
	for _, o := range outcomes {
		if o.err != nil {
			t.Errorf("a call was lost: %v", o.err)
		}
	}
}

// A deleted pod gets no new call, and only calls in flight there may fail.
func TestPodDeletedWhileCallsFlow(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	stop := flow(ctx, 6)
	time.Sleep(500 * time.Millisecond)
	victim := modelServers(ctx, t)[0]
	must(t, the.Client.Delete(ctx, &victim))
	deleted := time.Now() // calls begun before may be in flight there
	must(t, the.Await(ctx, "the pod's end", func(ctx context.Context) error {
		err := the.Client.Get(ctx, client.ObjectKeyFromObject(&victim), &corev1.Pod{})
		if err == nil {
			return errors.New("it is still there")
		}
		return client.IgnoreNotFound(err)
	}))
	gone := time.Now()
	time.Sleep(500 * time.Millisecond)
	outcomes := stop()
	must(t, the.AwaitDeployment(ctx, "models", "llama"))
	reached := map[string]int{}
	for _, o := range outcomes {
		if o.err != nil && (o.began.After(deleted) || gone.Before(o.began)) {
			t.Errorf("a call begun %s after the deletion failed: %v", o.began.Sub(deleted), o.err)
		}
		if o.began.After(gone) && o.endpoint == victim.Name {
			t.Errorf("a call begun %s after the pod was gone went there", o.began.Sub(gone))
		}
		reached[o.endpoint]++
	}
	if len(reached) < 3 {
		t.Errorf("calls reached %v only", slices.Sorted(maps.Keys(reached)))
	}
}

// Deleting a pool deletes both of its objects, and its host.
func TestPoolDeleted(t *testing.T) {
	ctx := begin(t, time.Minute)
	must(t, the.ApplyYAML(ctx, strings.ReplaceAll(poolYAML, "NAME", "brief")))
	host := "http://brief.models.inference.internal"
	must(t, the.Await(ctx, host, func(ctx context.Context) error {
		_, err := traffic.Chat(ctx, the.caller.HTTP, host, model, []traffic.Message{{Role: "user", Content: "Hello"}}, 1)
		return err
	}))
	if n := ownedObjects(ctx, t, "brief"); n != 2 {
		t.Errorf("the pool has %d objects of ours, want a ServiceEntry and an EnvoyFilter", n)
	}
	must(t, the.Client.Delete(ctx, pool("brief")))
	must(t, the.Await(ctx, "the end of the pool's objects", func(ctx context.Context) error {
		if n := ownedObjects(ctx, t, "brief"); n != 0 {
			return fmt.Errorf("%d left", n)
		}
		return nil
	}))
}

// The model server judges what a client sends. The picker lets it through, picks by what it could read, and survives.
func TestOddRequestsReachTheModel(t *testing.T) {
	ctx := begin(t, time.Minute)
	large := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]}`, model, strings.Repeat("word ", 4<<20))
	tests := map[string]struct {
		method, path, body string
		wantStatus         int
		wantText           string // of the model server's answer
	}{
		"a body that is not JSON": {http.MethodPost, "/v1/chat/completions", "not JSON at all", http.StatusBadRequest, "error"},
		"an empty body":           {http.MethodPost, "/v1/chat/completions", "", http.StatusBadRequest, "error"},
		"a GET":                   {http.MethodGet, "/v1/models", "", http.StatusOK, model},
		"a body of 20 MB":         {http.MethodPost, "/v1/chat/completions", large, http.StatusBadRequest, "maximum context length"},
		"an unknown path":         {http.MethodPost, "/nowhere", "{}", http.StatusNotFound, ""},
	}
	before := pickerProcess(ctx, t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(ctx, test.method, llama+test.path, bytes.NewBufferString(test.body))
			must(t, err)
			response, err := the.caller.HTTP.Do(request)
			must(t, err)
			defer func() { _ = response.Body.Close() }()
			var text bytes.Buffer
			_, err = text.ReadFrom(response.Body)
			must(t, err)
			if response.StatusCode != test.wantStatus || !strings.Contains(text.String(), test.wantText) {
				t.Errorf("got %s %.300s, want %d and %q", response.Status, text.String(), test.wantStatus, test.wantText)
			}
			if response.Header.Get("X-Served-By") == "" {
				t.Error("the answer is not a model server's")
			}
		})
	}
	if after := pickerProcess(ctx, t); after != before {
		t.Errorf("the picker's program changed from %d to %d: it did not live", before, after)
	}
}

// A pool whose selector matches no pod answers 503 with a reason. Other pools are served as before.
func TestPoolWithoutPods(t *testing.T) {
	ctx := begin(t, time.Minute)
	must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAME", "empty", "app: llama", "app: nothing").Replace(poolYAML)))
	defer func() { must(t, the.Client.Delete(ctx, pool("empty"))) }()
	host := "http://empty.models.inference.internal"
	must(t, the.Await(ctx, "the empty pool's answer", func(ctx context.Context) error {
		_, err := traffic.Chat(ctx, the.caller.HTTP, host, model, []traffic.Message{{Role: "user", Content: "Hello"}}, 1)
		var refused *traffic.Refused
		if !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable || !strings.Contains(refused.Body, "no_endpoints") {
			return fmt.Errorf("got %w, want 503 with the code no_endpoints", err)
		}
		return nil
	}))
	must(t, ask(ctx, "Are you still served?"))
}

// A pool in a namespace without a waypoint has no host in the mesh and no entry of ours in its status.
func TestPoolWithoutWaypoint(t *testing.T) {
	ctx := begin(t, time.Minute)
	must(t, the.ApplyYAML(ctx, `{apiVersion: v1, kind: Namespace, metadata: {name: bare, labels: {istio.io/dataplane-mode: ambient}}}`))
	must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAME", "lost", "namespace: models", "namespace: bare").Replace(poolYAML)))
	// A younger, bound pool is served: so the controller has seen this one too.
	must(t, the.ApplyYAML(ctx, strings.ReplaceAll(poolYAML, "NAME", "younger")))
	defer func() { must(t, the.Client.Delete(ctx, pool("younger"))) }()
	must(t, the.Await(ctx, "the younger pool", func(ctx context.Context) error {
		_, err := traffic.Chat(ctx, the.caller.HTTP, "http://younger.models.inference.internal", model, []traffic.Message{{Role: "user", Content: "Hello"}}, 1)
		return err
	}))
	_, err := traffic.Chat(ctx, the.caller.HTTP, "http://lost.bare.inference.internal", model, []traffic.Message{{Role: "user", Content: "Hello"}}, 1)
	if err == nil || !strings.Contains(err.Error(), "no such host") {
		t.Errorf("a call got %v, want that there is no such host", err)
	}
	lost := pool("lost")
	lost.Namespace = "bare"
	must(t, the.Client.Get(ctx, client.ObjectKeyFromObject(lost), lost))
	if len(lost.Status.Parents) != 0 {
		t.Errorf("its status is %v, want none of ours", lost.Status.Parents)
	}
}

// The picker names a second endpoint, which serves the call if the first has just crashed.
func TestCrashedEndpointCostsNoCall(t *testing.T) {
	ctx := begin(t, time.Minute)
	conversation := traffic.NewConversation("Crash test.", 21)
	first, err := conversation.Ask(ctx, the.caller.HTTP, llama, model, 400, 4)
	must(t, err)
	all := modelServers(ctx, t)
	victim := all[slices.IndexFunc(all, func(p corev1.Pod) bool { return p.Name == first.Endpoint })]
	before, err := the.ProcessID(victim.UID)
	must(t, err)
	must(t, the.Kill(victim.UID))
	next, err := conversation.Ask(ctx, the.caller.HTTP, llama, model, 40, 4)
	must(t, err)
	if next.Endpoint == first.Endpoint {
		t.Errorf("%s served a call while its program was gone", first.Endpoint)
	}
	must(t, the.Await(ctx, "the model server's restart", func(context.Context) error {
		if now, err := the.ProcessID(victim.UID); err != nil || now == before {
			return errors.Join(errors.New("not yet"), err)
		}
		return nil
	}))
	must(t, the.AwaitDeployment(ctx, "models", "llama"))
}

// The picker explains a pick before it happens, from readings of the model servers' metrics.
func TestExplainSaysWhereACallWouldGo(t *testing.T) {
	ctx := begin(t, time.Minute)
	conversation := traffic.NewConversation("Explain test.", 31)
	first, err := conversation.Ask(ctx, the.caller.HTTP, llama, model, 400, 4)
	must(t, err)
	next := append(slices.Clone(conversation.Messages), traffic.Message{Role: "user", Content: "Go on."})
	all := modelServers(ctx, t)
	eventually(ctx, t, "an explanation from fresh readings", func(ctx context.Context) error {
		explanation, err := the.Explain(ctx, "models/llama", traffic.Body(model, next, 4))
		if err != nil {
			return err
		}
		if len(explanation.Candidates) != len(all) {
			return fmt.Errorf("%d candidates, want %d", len(explanation.Candidates), len(all))
		}
		best := explanation.Candidates[0]
		i := slices.IndexFunc(all, func(p corev1.Pod) bool { return net.JoinHostPort(p.Status.PodIP, "8000") == best.Endpoint })
		if i < 0 || all[i].Name != first.Endpoint || best.CachedTokens < 300 {
			return fmt.Errorf("the best is %+v, want %s with most of the prompt", best, first.Endpoint)
		}
		for _, c := range explanation.Candidates {
			if c.ReadingAge == nil || *c.ReadingAge > 3 {
				return fmt.Errorf("%s has no fresh reading", c.Endpoint)
			}
		}
		return nil
	})
	answer, err := traffic.Chat(ctx, the.caller.HTTP, llama, model, next, 4)
	must(t, err)
	if answer.Endpoint != first.Endpoint {
		t.Errorf("the call went to %s, and not where the explanation said", answer.Endpoint)
	}
}
