//go:build engines

package engines

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

const host = "http://llama.models.inference.internal"

// the is shared by all tests: the mesh with real engines, and a service that makes calls.
var the struct {
	*mesh.Mesh
	caller *mesh.Caller
}

func TestMain(m *testing.M) {
	mesh.Enter()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	fail := func(err error) int { fmt.Fprintln(os.Stderr, err); return 1 }
	root, err := mesh.FindRoot()
	if err != nil {
		return fail(err)
	}
	images, err := Images(root)
	if err != nil {
		return fail(err)
	}
	ctx := context.Background()
	the.Mesh, err = mesh.Start(ctx, mesh.Options{Progress: os.Stderr, Images: images})
	if err != nil {
		return fail(err)
	}
	defer the.Close()
	var code int
	if err := install(ctx); err != nil {
		code = fail(err)
	} else {
		code = m.Run()
	}
	if code != 0 {
		dir := filepath.Join(root, ".mesh", fmt.Sprintf("engines-%d", time.Now().Unix()))
		fmt.Fprintln(os.Stderr, "the mesh's logs:", dir, the.KeepLogs(dir))
	}
	return code
}

// onePicker leaves one picker, as tests ask the picker what it knows: one that stands by knows no tokens of prompts.
func onePicker(ctx context.Context) error {
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "inference-system", Name: "inference-picker"}}
	if err := the.Client.Patch(ctx, deployment, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"replicas":1}}`))); err != nil {
		return err
	}
	return the.Await(ctx, "one picker", func(ctx context.Context) error {
		var pickers corev1.PodList
		err := the.Client.List(ctx, &pickers, client.InNamespace("inference-system"), client.MatchingLabels{"app.kubernetes.io/name": "inference-picker"})
		if n := len(pickers.Items); err == nil && n != 1 {
			err = fmt.Errorf("%d pickers", n)
		}
		return err
	})
}

func install(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("the engines did not start within ten minutes"))
	defer cancel()
	fmt.Fprintf(os.Stderr, "%d vLLMs start: a minute or two\n", Servers)
	if err := Install(ctx, the.Mesh); err != nil {
		return err
	}
	if err := onePicker(ctx); err != nil {
		return err
	}
	if err := the.ApplyYAML(ctx, `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}`); err != nil {
		return err
	}
	var err error
	if the.caller, err = the.NewCaller(ctx, "shop", "checkout", "checkout"); err != nil {
		return err
	}
	return the.Await(ctx, "a served call", func(ctx context.Context) error {
		_, err := say(ctx, Model, "Are you there?", 1)
		return err
	})
}

// begin starts a test, whose context ends after the limit. The limits are for a machine under heavy load.
func begin(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("not within %s", limit))
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(ctx context.Context, t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	must(t, the.Await(ctx, what, check))
}

func chat(text string) []traffic.Message { return []traffic.Message{{Role: "user", Content: text}} }

func say(ctx context.Context, model, text string, answerTokens int) (*traffic.Answer, error) {
	return traffic.Chat(ctx, the.caller.HTTP, host, model, chat(text), answerTokens)
}

func explain(ctx context.Context, t *testing.T, model, text string) *livestate.Explanation {
	t.Helper()
	why, err := the.Explain(ctx, "models/llama", traffic.Body(model, chat(text), 1))
	must(t, err)
	return why
}

// prompt makes a prompt of about so many tokens that begins as no other does.
func prompt(tokens int) string {
	return fmt.Sprint(rand.Uint64(), " ", traffic.Text(rand.New(rand.NewPCG(rand.Uint64(), 0)), tokens))
}

// servers returns the engines' pods by their names.
func servers(ctx context.Context, t *testing.T) map[string]*corev1.Pod {
	t.Helper()
	var list corev1.PodList
	must(t, the.Client.List(ctx, &list, client.InNamespace("models"), client.MatchingLabels{"app": "llama"}))
	out := map[string]*corev1.Pod{}
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i]
	}
	return out
}

// at returns what an explanation says of a pod.
func at(t *testing.T, why *livestate.Explanation, p *corev1.Pod) livestate.Candidate {
	t.Helper()
	for _, c := range why.Candidates {
		if c.Endpoint == net.JoinHostPort(p.Status.PodIP, "8000") {
			return c
		}
	}
	t.Fatalf("pod %s is no candidate: %+v", p.Name, why)
	return livestate.Candidate{}
}

// Every engine's page is read.
func TestPagesAreRead(t *testing.T) {
	ctx := begin(t, time.Minute)
	eventually(ctx, t, "readings of all engines", func(ctx context.Context) error {
		why, err := the.Explain(ctx, "models/llama", traffic.Body(Model, chat("Hello"), 1))
		if err != nil {
			return err
		}
		if len(why.Candidates) != Servers {
			return fmt.Errorf("%d candidates, want %d", len(why.Candidates), Servers)
		}
		for _, c := range why.Candidates {
			if c.ReadingAge == nil || *c.ReadingAge > 3 {
				return fmt.Errorf("%s has no fresh reading: %+v", c.Endpoint, c)
			}
		}
		return nil
	})
}

// The turns of a conversation find their prefix in an engine's cache, and the picker knows how much of it.
func TestConversationsFindTheirPrefix(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	text := prompt(1000)
	first, err := say(ctx, Model, text, 8)
	must(t, err)
	if first.CachedTokens > 200 {
		t.Errorf("%d of the %d tokens of a new prompt are cached", first.CachedTokens, first.PromptTokens)
	}
	for range 4 {
		text += " " + traffic.Text(rand.New(rand.NewPCG(rand.Uint64(), 0)), 200)
		why := explain(ctx, t, Model, text)
		next, err := say(ctx, Model, text, 8)
		must(t, err)
		if next.Endpoint != first.Endpoint {
			t.Errorf("the next turn went to %s, the one before to %s", next.Endpoint, first.Endpoint)
		}
		if share := float64(next.CachedTokens) / float64(next.PromptTokens); share < 0.6 {
			t.Errorf("%d of %d prompt tokens were cached", next.CachedTokens, next.PromptTokens)
		}
		// The picker counts four bytes for a token, and blocks of 64 of them; the engine has blocks of 128.
		believed := float64(why.Candidates[0].CachedTokens) / float64(why.PromptTokens)
		if real := float64(next.CachedTokens) / float64(next.PromptTokens); believed > real+0.2 || believed < real-0.2 {
			t.Errorf("the picker believes %.2f of the prompt cached, the engine says %.2f", believed, real)
		}
	}
}

// toldHost is the host of a pool of the same engines whose prefixes come from events.
const (
	toldPool = "models/told"
	toldHost = "http://told.models.inference.internal"
)

func tell(ctx context.Context, t *testing.T) {
	t.Helper()
	must(t, the.ApplyYAML(ctx, `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: told
  namespace: models
  annotations:
    inference-waypoint.io/pick-prefix-source: events
spec:
  selector: {matchLabels: {app: llama}}
  targetPorts: [{number: 8000}]
`))
	var pickers corev1.PodList
	must(t, the.Client.List(ctx, &pickers, client.InNamespace("inference-system"), client.MatchingLabels{"app.kubernetes.io/name": "inference-picker"}))
	for name, p := range servers(ctx, t) {
		_, err := traffic.Chat(ctx, http.DefaultClient, "http://"+net.JoinHostPort(p.Status.PodIP, "8000"), Model, chat(prompt(300)), 1)
		must(t, err)
		eventually(ctx, t, "a picker that hears "+name, func(ctx context.Context) error {
			page, err := pageAt(ctx, &pickers.Items[0], "9090")
			series := fmt.Sprintf(`inference_waypoint_endpoint_told_cached_tokens{endpoint="%s:8000",pool="models/told"} `, p.Status.PodIP)
			if _, value, _ := strings.Cut(page, series); err == nil && (value == "" || value[0] == '0') {
				err = errors.New("the picker knows of no block there")
			}
			return err
		})
	}
	eventually(ctx, t, "a call to the pool whose servers tell of their caches", func(ctx context.Context) error {
		_, err := traffic.Chat(ctx, the.caller.HTTP, toldHost, Model, chat("Are you there?"), 1)
		return err
	})
}

// believed returns what a pool's picker takes a pod to have of a prompt, as a part of the prompt.
func believed(ctx context.Context, t *testing.T, pool, model, text string, p *corev1.Pod) float64 {
	t.Helper()
	why, err := the.Explain(ctx, pool, traffic.Body(model, chat(text), 1))
	must(t, err)
	return float64(at(t, why, p).CachedTokens) / float64(why.PromptTokens)
}

// Engines tell what their caches have: what others brought is known, and what was evicted is known too.
func TestEnginesTellOfTheirCaches(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	tell(ctx, t)
	pods := servers(ctx, t)
	for _, model := range []string{Model, "sql"} {
		text := prompt(1500)
		answer, err := traffic.Chat(ctx, the.caller.HTTP, toldHost, model, chat(text), 8)
		must(t, err)
		for name, p := range pods {
			direct := "http://" + net.JoinHostPort(p.Status.PodIP, "8000")
			know := func(what string, atLeast, atMost float64) {
				t.Helper()
				eventually(ctx, t, what, func(ctx context.Context) error {
					if got := believed(ctx, t, toldPool, model, text, p); got < atLeast || got > atMost {
						return fmt.Errorf("%.2f of the prompt is taken to be cached at %s", got, name)
					}
					return nil
				})
			}
			if name != answer.Endpoint {
				know(model+": nothing at an engine that never had it", 0, 0)
				_, err = traffic.Chat(ctx, http.DefaultClient, direct, model, chat(text), 1)
				must(t, err)
			}
			know(model+": a prompt that somebody brought", 0.8, 1)
			if got := believed(ctx, t, "models/llama", model, text, p); got > 0 {
				t.Errorf("the pool without events believes %.2f of the prompt at %s: the test shows nothing", got, name)
			}
			again, err := traffic.Chat(ctx, http.DefaultClient, direct, model, chat(text), 1)
			must(t, err)
			if share := float64(again.CachedTokens) / float64(again.PromptTokens); share < 0.85 {
				t.Errorf("%s itself finds %.2f of the prompt", name, share)
			}
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, direct+"/reset_prefix_cache", http.NoBody)
			must(t, err)
			reset, err := http.DefaultClient.Do(request)
			must(t, err)
			must(t, reset.Body.Close())
			// An engine tells what it did between two steps with the next one.
			_, err = traffic.Chat(ctx, http.DefaultClient, direct, Model, chat("Hello"), 1)
			must(t, err)
			know(model+": nothing after the cache was emptied", 0, 0)
		}
	}
}

// Each adapter has a home, as long as the homes have slots.
func TestAdaptersHaveHomes(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	for range 2 { // long enough for readings that show the picker which names are adapters
		for _, adapter := range Adapters {
			_, err := say(ctx, adapter, prompt(100), 100)
			must(t, err)
		}
	}
	homes := map[string]map[string]int{}
	for range 8 {
		for _, adapter := range Adapters {
			answer, err := say(ctx, adapter, prompt(100), 8)
			must(t, err)
			if homes[adapter] == nil {
				homes[adapter] = map[string]int{}
			}
			homes[adapter][answer.Endpoint]++
		}
	}
	for adapter, calls := range homes {
		most := 0
		for _, n := range calls {
			most = max(most, n)
		}
		if most < 7 {
			t.Errorf("the 8 calls for adapter %s went to %v", adapter, calls)
		}
	}
}

// occupy keeps calls open at one engine, for a model each, until the function that it returns is called.
func occupy(ctx context.Context, t *testing.T, p *corev1.Pod, models ...string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	for _, model := range models {
		done.Go(func() {
			_, _ = traffic.Chat(ctx, http.DefaultClient, "http://"+net.JoinHostPort(p.Status.PodIP, "8000"), model, chat("Tell a story."), 6000)
		})
	}
	end = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(end)
	return end
}

// A call that waits for an adapter's slot is no queue: calls for the base model run past it. An engine whose slots are all
// in use by calls of others is avoided by calls for another adapter.
func TestDeferredCallsAreNoQueue(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	var busy *corev1.Pod
	for _, busy = range servers(ctx, t) {
		break
	}
	tells := func(what, of string) {
		t.Helper()
		eventually(ctx, t, "a page that tells of "+what, func(ctx context.Context) error {
			page, err := pageOf(ctx, busy)
			if err == nil && !regexp.MustCompile(of).MatchString(page) {
				err = errors.New("it does not")
			}
			return err
		})
	}
	occupy(ctx, t, busy, "sql", "chat") // these have the slots before others come
	tells("two running calls", `vllm:num_requests_running{[^}]*} 2\.0`)
	occupy(ctx, t, busy, "code", "code")
	tells("two deferred calls", `reason="deferred"} 2\.0`)
	time.Sleep(time.Second) // the picker reads the page
	text := prompt(100)
	base := at(t, explain(ctx, t, Model, text), busy)
	if base.Cost.Wait > 0.1 {
		t.Errorf("a call for the base model is expected to wait %.2f s for calls that it runs past: %+v", base.Cost.Wait, base)
	}
	full := 0
	for _, adapter := range Adapters {
		if at(t, explain(ctx, t, adapter, text), busy).Class != "" {
			full++
		}
	}
	if full != 1 {
		t.Errorf("%d of 3 adapters are kept away from an engine with two slots that runs two, want 1", full)
	}
	for range 4 {
		answer, err := say(ctx, "code", prompt(100), 4)
		must(t, err)
		if answer.Endpoint == busy.Name && answer.FirstToken > time.Second {
			t.Errorf("a call for an adapter went to the engine without a slot and waited %s", answer.FirstToken)
		}
	}
}

func pageOf(ctx context.Context, p *corev1.Pod) (string, error) { return pageAt(ctx, p, "8000") }

// pageAt returns the metrics page that a pod serves on a port.
func pageAt(ctx context.Context, p *corev1.Pod, port string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	page, err := process.Get(ctx, "http://"+net.JoinHostPort(p.Status.PodIP, port)+"/metrics")
	return string(page), err
}

// What an engine had no time to compute is not taken for cached after its caller has left.
func TestAbortedPromptIsNotBelieved(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	text := prompt(6000)
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := say(short, Model, text, 8); err == nil {
		t.Skip("the engine answered a prompt of 6,000 tokens within 100 ms: nothing to abort")
	}
	time.Sleep(500 * time.Millisecond) // the waypoint tells the picker
	for name, pod := range servers(ctx, t) {
		believed := at(t, explain(ctx, t, Model, text), pod).CachedTokens
		answer, err := traffic.Chat(ctx, http.DefaultClient, "http://"+net.JoinHostPort(pod.Status.PodIP, "8000"), Model, chat(text), 1)
		must(t, err)
		// An engine prefills what it has begun, up to a step of some 2,000 tokens.
		if believed > answer.CachedTokens+1000 {
			t.Errorf("the picker believes %d tokens cached at %s, the engine found %d", believed, name, answer.CachedTokens)
		}
	}
}

// Many calls at once are all served, and spread.
func TestOverloadIsSpread(t *testing.T) {
	ctx := begin(t, 5*time.Minute)
	const calls = 48
	var mu sync.Mutex
	served, failed := map[string]int{}, []error{}
	var all sync.WaitGroup
	for range calls {
		text := prompt(600)
		all.Go(func() {
			answer, err := say(ctx, Model, text, 16)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			served[answer.Endpoint]++
		})
	}
	all.Wait()
	must(t, errors.Join(failed...))
	if len(served) != Servers {
		t.Errorf("the calls were served by %v, want all %d engines", served, Servers)
	}
	for name, n := range served {
		if n < calls/Servers/2 || n > calls/Servers*2 {
			t.Errorf("%s served %d of %d calls: %v", name, n, calls, served)
		}
	}
}

// The expected times to first token are near the observed ones. Three engines share two cores here, so that the work of one
// slows the others, which no estimate can know.
func TestEstimatesAreNear(t *testing.T) {
	ctx := begin(t, 5*time.Minute)
	before := estimates(ctx, t)
	var all sync.WaitGroup
	for n := range 6 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 0))
			for began := time.Now(); time.Since(began) < time.Minute; {
				c := traffic.NewConversation(traffic.Text(random, 150), random.Uint64())
				for range 4 {
					if _, err := c.Ask(ctx, the.caller.HTTP, host, Model, 100+random.IntN(900), 8); err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Duration(random.ExpFloat64() * float64(time.Second)))
				}
			}
		})
	}
	all.Wait()
	after := estimates(ctx, t)
	calls := after["+Inf"] - before["+Inf"]
	within := func(least, most string) float64 {
		return (after[most] - before[most] - after[least] + before[least]) / calls
	}
	t.Logf("of %.0f calls, %.2f were within 1.25 times what was expected, %.2f within twice", calls, within("0.8", "1.25"), within("0.5", "2"))
	if calls < 100 || within("0.5", "2") < 0.75 {
		t.Errorf("of %.0f calls, %.2f had their first token within half and twice the expected time, want 0.75 of 100 at least", calls, within("0.5", "2"))
	}
}

// estimates returns how many calls had at most such a ratio of expected to observed time, by the ratio.
func estimates(ctx context.Context, t *testing.T) map[string]float64 {
	t.Helper()
	var pickers corev1.PodList
	must(t, the.Client.List(ctx, &pickers, client.MatchingLabels{"app.kubernetes.io/name": "inference-picker"}))
	out := map[string]float64{}
	for i := range pickers.Items {
		page, err := pageAt(ctx, &pickers.Items[i], "9090")
		must(t, err)
		for line := range strings.Lines(page) {
			var ratio string
			var calls float64
			line = strings.Replace(line, "\"} ", " ", 1)
			if _, err := fmt.Sscanf(line, `inference_waypoint_first_token_expected_ratio_bucket{pool="models/llama",le="%s %g`, &ratio, &calls); err == nil {
				out[ratio] += calls
			}
		}
	}
	return out
}

// An engine that crashes costs no call that comes after, and comes back with an empty cache.
func TestCrashedEngineComesBackEmpty(t *testing.T) {
	ctx := begin(t, 8*time.Minute)
	text := prompt(1000)
	first, err := say(ctx, Model, text, 4)
	must(t, err)
	crashed := servers(ctx, t)[first.Endpoint]
	must(t, the.Kill(crashed.UID))
	lost := 0
	for range 20 {
		if _, err := say(ctx, Model, prompt(50), 2); err != nil {
			t.Log(err)
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of 20 calls after the crash were lost", lost)
	}
	eventually(ctx, t, "the engine to be back, with nothing taken for cached", func(ctx context.Context) error {
		why, err := the.Explain(ctx, "models/llama", traffic.Body(Model, chat(text), 1))
		if err != nil {
			return err
		}
		for _, c := range why.Candidates {
			if c.Endpoint != net.JoinHostPort(crashed.Status.PodIP, "8000") {
				continue
			}
			if c.CachedTokens > 0 {
				return fmt.Errorf("%d tokens are taken for cached", c.CachedTokens)
			}
			return nil
		}
		return errors.New("it is not back yet")
	})
}
