package integration

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	poolapi "github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/poolkey"
)

// The tests in this file have a tenant that attacks another. mallory has all rights in its own namespace and none
// elsewhere. victim calls its pool all the while.

const (
	// tenantsLarge is the environment variable that makes attacks with many objects or calls ten times as large.
	tenantsLarge = "TENANTS_LARGE"
	// attackTime is the least time for which the victim's calls are measured under an attack, and quietTime before it.
	attackTime, quietTime = 3 * time.Second, 1500 * time.Millisecond
	// An attack fails the test if the 99th percentile of the victim's calls exceeds both slowerBy times and longerBy more
	// than the quiet one. With a starved picker calls wait 300 ms longer. A busy machine alone adds up to 150 ms.
	slowerBy, longerBy = 1.2, 250 * time.Millisecond
	// attackTries is the highest number of tries of an attack. The 99th percentile of one try is its slowest call, which
	// alone proves nothing. That of two tries leaves one call out.
	attackTries     = 3
	victimCallers   = 6
	victimHost      = "llama.victim.inference.internal"
	malloryHost     = "elder.mallory.inference.internal"
	malloryWaypoint = "gate"
	victimWaypoint  = "inference"
)

// The picker's limits for this test: small enough for the attacks to reach them on a machine of two cores.
const (
	tenantsStreams = 4_000
	tenantsFlags   = `"args":["--log-level=info","--max-streams=4000","--max-held-bytes=33554432","--max-index-bytes=33554432"]`
)

// large is the number n of something in the attacks that depend on numbers, or ten times n in the large form.
func large(n int) int {
	if os.Getenv(tenantsLarge) != "" {
		return 10 * n
	}
	return n
}

const tenantsYAML = `
apiVersion: v1
kind: Namespace
metadata: {name: mallory, labels: {istio.io/dataplane-mode: ambient, inference-waypoint.io/waypoint: gate}}
---
apiVersion: v1
kind: Namespace
metadata: {name: victim, labels: {istio.io/dataplane-mode: ambient, inference-waypoint.io/waypoint: inference}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: mallory, namespace: mallory}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: everything, namespace: mallory}
rules:
- apiGroups: [""]
  resources: [pods, services, endpoints, serviceaccounts, serviceaccounts/token, configmaps, secrets, events]
  verbs: ["*"]
- apiGroups:
  - apps
  - coordination.k8s.io
  - discovery.k8s.io
  - extensions.istio.io
  - gateway.networking.k8s.io
  - inference.networking.k8s.io
  - networking.istio.io
  - networking.k8s.io
  - rbac.authorization.k8s.io
  - security.istio.io
  - telemetry.istio.io
  resources: ["*"]
  verbs: ["*"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: everything, namespace: mallory}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: everything}
subjects: [{kind: ServiceAccount, name: mallory, namespace: mallory}]
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: mallory, labels: {istio.io/use-waypoint: gate}}
spec: {selector: {app: elder}, ports: [{name: http, port: 80, targetPort: 8000}]}
`

// hostile is the attacking tenant.
type hostile struct {
	client.Client // with all rights in its namespace, and none elsewhere
	// caller is a service of the tenant. gate is a pod of the tenant with the service account of its waypoint.
	caller, gate *mesh.Caller
	// token is the token of its own pool, read from the EnvoyFilters of its namespace.
	token  string
	victim *victim
}

// attack is made while the victim calls. It fails the test if the attack is not stopped as it should be.
type attack struct {
	name string
	make func(ctx context.Context, t *testing.T, m *hostile)
}

// No known attack of a tenant on another costs the victim a call or a pick, or much time.
func TestTenants(t *testing.T) {
	ctx := begin(t, 10*time.Minute)
	m := setUpTenants(ctx, t)
	t.Cleanup(func() { t.Log("what attacks cost the victim:\n" + m.victim.table()) })
	m.victim.quiet(ctx, t)
	m.victim.rows = nil // from now on the victim's conversations are cached
	for _, a := range slices.Concat(attacksOnObjects, attacksOnThePicker, attacksByNumber) {
		for try := 0; try == 0 || try < attackTries && m.victim.slowed(a.name); try++ {
			t.Run(a.name, func(t *testing.T) {
				m.victim.quiet(ctx, t)
				end := m.victim.watch(ctx, t, a.name)
				t.Cleanup(func() { m.victim.check(t, end()) }) // after the attack's objects are gone
				least := time.Now().Add(attackTime)
				a.make(begin(t, time.Minute), t, m)
				time.Sleep(time.Until(least))
			})
		}
		if m.victim.slowed(a.name) {
			t.Errorf("%s: the victim's 99th percentile is %s, and %s without an attack", a.name, m.victim.under(a.name).p99, m.victim.quietP99())
		}
	}
}

// setUpTenants makes both tenants. Of mallory's two pools one is older than the victim's.
func setUpTenants(ctx context.Context, t *testing.T) *hostile {
	t.Helper()
	_, err := plugin()
	must(t, err)
	askForTokens(ctx, t)
	setPickers(ctx, t, 2, tenantsFlags)
	must(t, the.ApplyYAML(ctx, tenantsYAML))
	serve(ctx, t, "mallory", "elder", modelServer, 1)
	time.Sleep(1100 * time.Millisecond) // creation times have whole seconds
	serve(ctx, t, "victim", "llama", modelServer, 3)
	time.Sleep(1100 * time.Millisecond)
	must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAME", "younger", "namespace: models", "namespace: mallory", "app: llama", "app: elder").Replace(poolYAML)))
	m := &hostile{Client: asOf(t, "mallory", "mallory")}
	eventually(ctx, t, "its pool's token", m.findToken)
	caller := func(namespace, name, account string) *mesh.Caller {
		t.Helper()
		c, err := the.NewCaller(ctx, namespace, name, account)
		must(t, err)
		t.Cleanup(c.Close)
		return c
	}
	m.caller, m.gate = caller("mallory", "caller", "caller"), caller("mallory", "gate", malloryWaypoint)
	m.victim = newVictim(caller("victim", "caller", "caller"))
	for _, host := range []string{victimHost, malloryHost, "younger.mallory.inference.internal", "plain.mallory.svc.cluster.local"} {
		eventually(ctx, t, "a call to "+host, func(ctx context.Context) error {
			return wantHeard(ctx, "http://"+host+"/v1/models", "")
		})
	}
	eventually(ctx, t, "a picked call of the victim", func(ctx context.Context) error {
		before := picksIn(ctx, t, "victim", "llama")
		if _, err := m.victim.say(ctx, 0); err != nil {
			return err
		}
		if picksIn(ctx, t, "victim", "llama") == before {
			return fmt.Errorf("no call is picked")
		}
		return nil
	})
	return m
}

// askForTokens makes pickers that start from now on require tokens, as they do ten minutes after an installation.
func askForTokens(ctx context.Context, t *testing.T) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: poolkey.SecretName}}
	must(t, the.Client.Patch(ctx, s, client.RawPatch(types.MergePatchType, []byte(`{"data":{"enforced-from":null}}`))))
}

var tokenIn = regexp.MustCompile(`"key":"` + poolapi.TokenHeader + `","value":"([^"]+)"`)

// findToken reads the token of pool elder from the tenant's namespace.
func (m *hostile) findToken(ctx context.Context) error {
	var all networkingv1alpha3.EnvoyFilterList
	if err := m.List(ctx, &all, client.InNamespace("mallory")); err != nil {
		return err
	}
	for _, f := range all.Items {
		raw, err := json.Marshal(&f.Spec)
		if err != nil {
			return err
		}
		if found := tokenIn.FindSubmatch(raw); found != nil && strings.Contains(string(raw), "mallory/elder") {
			m.token = string(found[1])
			return nil
		}
	}
	return fmt.Errorf("none of its %d EnvoyFilters has one", len(all.Items))
}

// victim is the tenant that calls its pool.
type victim struct {
	http          *http.Client
	conversations []traffic.Message // the beginning of each caller's calls

	mu    sync.Mutex
	calls []victimCall
	rows  []*attackCost
}

// victimCall is a call and its outcome.
type victimCall struct {
	at       time.Time // end of the call
	took     time.Duration
	endpoint string
	cached   float64 // the cached share of its prompt
	err      error
}

// attackCost is the outcome of the victim's calls during an attack or a quiet time.
type attackCost struct {
	attack                        string // empty for a quiet time
	calls, lost, unpicked, unread int
	by                            map[string]int // the lost calls
	p50, p99                      time.Duration
	cached                        float64
	cpu                           float64 // of the pickers, in cores
	all                           []victimCall
}

func newVictim(c *mesh.Caller) *victim {
	v := &victim{http: &http.Client{Transport: onceOnly{c.HTTP.Transport}}}
	for i := range victimCallers {
		text := traffic.Text(rand.New(rand.NewPCG(uint64(i), 1)), 1500)
		v.conversations = append(v.conversations, traffic.Message{Role: "system", Content: text})
	}
	return v
}

// onceOnly keeps Go's client from retrying a call on a closed connection, as many other clients do not retry.
type onceOnly struct{ http.RoundTripper }

func (o onceOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.GetBody = nil
	return o.RoundTripper.RoundTrip(r)
}

// say makes a call of some 300 ms, most of whose prompt is cached at one of the servers.
func (v *victim) say(ctx context.Context, conversation int) (*traffic.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	messages := []traffic.Message{v.conversations[conversation], {Role: "user", Content: distinct(1, 20)[0]}}
	return traffic.Chat(ctx, v.http, "http://"+victimHost, "sample-model", messages, 14)
}

// watch calls from several goroutines until end is called, which returns the outcome.
func (v *victim) watch(ctx context.Context, t *testing.T, attack string) (end func() *attackCost) {
	t.Helper()
	var wait sync.WaitGroup
	ending := make(chan struct{})
	v.calls = nil
	picked, unread := picksIn(ctx, t, "victim", "llama"), v.unread(ctx, t)
	allowed, spent, began := v.allowed(ctx, t), pickerTime(ctx, t), time.Now()
	for i := range victimCallers {
		wait.Go(func() {
			for {
				select {
				case <-ending:
					return
				default:
					v.once(ctx, i)
				}
			}
		})
	}
	return func() *attackCost {
		close(ending)
		wait.Wait()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		out := costOf(v.calls)
		out.attack = attack
		out.unpicked = max(out.calls-out.lost-(picksIn(ctx, t, "victim", "llama")-picked), v.allowed(ctx, t)-allowed)
		out.unread = v.unread(ctx, t) - unread
		out.cpu = (pickerTime(ctx, t) - spent).Seconds() / time.Since(began).Seconds()
		v.rows = append(v.rows, out)
		v.tellSlow(t)
		return out
	}
}

// unread counts the picks of the victim's calls without their prompts.
func (v *victim) unread(ctx context.Context, t *testing.T) int {
	t.Helper()
	return countedIn(ctx, t, "picks_unread_total", "victim", "llama")
}

// tellSlow logs, for each slow call, its endpoint and the cached share of its prompt.
func (v *victim) tellSlow(t *testing.T) {
	t.Helper()
	for _, c := range v.calls {
		if c.err == nil && c.took > v.quietP99()+longerBy {
			t.Logf("a slow call: %s at %s, answered at %s, %.2f of its prompt cached", c.took, c.endpoint, c.at.Format(time.StampMilli), c.cached)
		}
	}
}

// picker finds the picker that picks for the victim's pool.
func (v *victim) picker(ctx context.Context, t *testing.T) *corev1.Pod {
	t.Helper()
	return pickerNamed(ctx, t, mostOf(picksByIn(ctx, t, "victim", "llama")))
}

// once makes a call and records the outcome.
func (v *victim) once(ctx context.Context, conversation int) {
	began := time.Now()
	answer, err := v.say(ctx, conversation)
	c := victimCall{at: time.Now(), took: time.Since(began), err: err}
	if err == nil {
		c.endpoint = answer.Endpoint
		c.cached = float64(answer.CachedTokens) / float64(answer.PromptTokens)
	} else {
		time.Sleep(afterLoss)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls = append(v.calls, c)
}

// allowed returns the waypoint's own count of the victim's calls that passed without a pick.
func (v *victim) allowed(ctx context.Context, t *testing.T) (n int) {
	t.Helper()
	stats, err := the.WaypointStats(ctx, "victim", victimWaypoint)
	must(t, err)
	for name, value := range stats {
		if strings.HasSuffix(name, "ext_proc.failure_mode_allowed") {
			n += value
		}
	}
	return n
}

// pickerTime returns the processor time of all pickers.
func pickerTime(ctx context.Context, t *testing.T) time.Duration {
	t.Helper()
	ticks := 0
	for _, p := range pickers(ctx, t) {
		pid, err := the.ProcessID(p.UID)
		must(t, err)
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(t, err)
		_, after, _ := strings.Cut(string(stat), ") ")
		for _, field := range strings.Fields(after)[11:13] { // user and kernel time, in hundredths of a second
			n, err := strconv.Atoi(field)
			must(t, err)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func costOf(calls []victimCall) *attackCost {
	out := &attackCost{all: calls, calls: len(calls), by: map[string]int{}}
	var took []time.Duration
	for _, c := range calls {
		if c.err != nil {
			out.lost++
			out.by[kindOf(c.err)]++
			continue
		}
		took = append(took, c.took)
		out.cached += c.cached
	}
	slices.Sort(took)
	if n := len(took); n > 0 {
		out.p50, out.p99, out.cached = took[n/2], took[(n*99-1)/100], out.cached/float64(n)
	}
	return out
}

// quiet measures the victim's calls without an attack.
func (v *victim) quiet(ctx context.Context, t *testing.T) {
	t.Helper()
	end := v.watch(ctx, t, "")
	time.Sleep(quietTime)
	v.check(t, end())
}

// check fails if a call was lost or not picked.
func (v *victim) check(t *testing.T, c *attackCost) {
	t.Helper()
	if c.lost > 0 || c.unpicked > 0 || c.calls < victimCallers {
		t.Errorf("of %d calls of the victim %d were lost and %d not picked: %v", c.calls, c.lost, c.unpicked, c.by)
	}
}

// quietP99 is the median of the quiet times' 99th percentiles.
func (v *victim) quietP99() time.Duration {
	var all []time.Duration
	for _, row := range v.rows {
		if row.attack == "" {
			all = append(all, row.p99)
		}
	}
	slices.Sort(all)
	if len(all) == 0 {
		return 0
	}
	return all[len(all)/2]
}

// under is the outcome of the victim's calls in all tries of an attack.
func (v *victim) under(attack string) *attackCost {
	var all []victimCall
	for _, row := range v.rows {
		if row.attack == attack {
			all = append(all, row.all...)
		}
	}
	return costOf(all)
}

// slowed reports whether an attack made the victim's calls slow.
func (v *victim) slowed(attack string) bool {
	quiet, p99 := v.quietP99(), v.under(attack).p99
	return p99.Seconds() > slowerBy*quiet.Seconds() && p99 > quiet+longerBy
}

// table returns a table of all attacks, and of the quiet times together.
func (v *victim) table() string {
	var out strings.Builder
	columns := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(columns, "attack\tcalls\tlost\tunpicked\tunread\tp50\tp99\tratio\tcached\tpickers' cores\tlost by\t")
	quiet := v.quietP99()
	for _, row := range v.rows {
		var by []string
		for _, reason := range slices.Sorted(maps.Keys(row.by)) {
			by = append(by, fmt.Sprintf("%d %s", row.by[reason], reason))
		}
		_, _ = fmt.Fprintf(columns, "%s\t%d\t%d\t%d\t%d\t%d ms\t%d ms\t%.2f\t%.2f\t%.2f\t%s\t\n", cmp.Or(row.attack, "-"), row.calls, row.lost, row.unpicked, row.unread,
			row.p50.Milliseconds(), row.p99.Milliseconds(), row.p99.Seconds()/max(quiet.Seconds(), 1e-9), row.cached, row.cpu, strings.Join(by, "; "))
	}
	_ = columns.Flush()
	return out.String()
}
