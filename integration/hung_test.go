package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// The tests in this file have pickers that run and do not answer. They measure which calls pay for it, and for how long.

const (
	// hungLong makes each harm last a minute.
	hungLong = "HUNG_LONG"
	// calm is how long calls are measured before the harm.
	calm = 5 * time.Second
	// slowBy is the excess over the median of the calm that makes a call slow.
	slowBy = 50 * time.Millisecond
	// waitedBy is the excess over that median from which a call counts as having waited for a picker: waiting takes 200 ms at
	// least, and a busy machine slows calls too. Tests use it.
	waitedBy = 150 * time.Millisecond
	// callers is the number of callers of each of the two pools.
	callers = 8
)

// harm is something that happens to a picker.
type harm struct {
	container string // see setPickers
	// within is the time by which the waypoint must have ejected the picker. A busy machine gets one second more.
	within time.Duration
	// vanishes says that the controller has to withdraw the picker, as no kubelet is left to do it.
	vanishes bool
	begin    func(t *testing.T, p *corev1.Pod) (end func())
}

func stopped(t *testing.T, p *corev1.Pod) func() {
	process, err := the.ProcessID(p.UID)
	must(t, err)
	must(t, syscall.Kill(process, syscall.SIGSTOP))
	return func() { must(t, syscall.Kill(process, syscall.SIGCONT)) }
}

// cutOff makes a pod's node vanish: every packet to the pod is dropped without telling anybody, and nobody probes it.
func cutOff(t *testing.T, p *corev1.Pod) func() {
	found, err := the.LoseNode(p.UID)
	must(t, err)
	heard := swallow(t, "to "+p.Status.PodIP)
	return func() {
		heard()
		found()
	}
}

// swallow drops the packets that rules of routing select, without telling anybody.
func swallow(t *testing.T, rules ...string) (end func()) {
	ip := func(command string) {
		if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", command, err, out)
		}
	}
	// A device that nobody reads swallows packets. A blackhole route would tell local senders at once.
	ip("tuntap add nowhere mode tun")
	ip("link set nowhere up")
	ip("route add default dev nowhere table 77")
	// All addresses here are local to the machine, and the rule for local addresses comes first: ours must precede it.
	ip("rule add pref 1 lookup local")
	ip("rule del pref 0")
	for _, rule := range rules {
		ip("rule add pref 0 " + rule + " lookup 77")
	}
	return func() {
		for _, rule := range rules {
			ip("rule del pref 0 " + rule + " lookup 77")
		}
		ip("rule add pref 0 lookup local")
		ip("rule del pref 1")
		ip("link del nowhere")
	}
}

// answersPings holds all calls and still answers pings.
func answersPings(t *testing.T, p *corev1.Pod) func() {
	process, err := the.ProcessID(p.UID)
	must(t, err)
	must(t, syscall.Kill(process, syscall.SIGUSR1))
	return func() { must(t, syscall.Kill(process, syscall.SIGUSR2)) }
}

const hangingPicker = "test/hangingpicker:dev"

var harms = map[string]harm{
	"stopped":            {"", time.Second, false, stopped},
	"cut off":            {"", time.Second, true, cutOff},
	"answers pings only": {`"image":"` + hangingPicker + `"`, 3 * time.Second, false, answersPings},
}

// A picker that does not answer affects the calls of the first second, or of the first three where only a probe detects it.
// A FailOpen pool serves all its calls; a FailClose pool does where another picker runs.
func TestHungPicker(t *testing.T) {
	// A caller of its own, as a waypoint closes a caller's connection on which hundreds of calls fail.
	failing, err := the.NewCaller(begin(t, time.Minute), "shop", "failing", "checkout")
	must(t, err)
	defer failing.Close()
	for name, h := range harms {
		for _, pickers := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, of %d", name, pickers), func(t *testing.T) { tryHarm(t, h, pickers, failing) })
		}
	}
}

func tryHarm(t *testing.T, h harm, replicas int, failing *mesh.Caller) {
	ctx := begin(t, 5*time.Minute)
	setPickers(ctx, t, replicas, h.container)
	must(t, the.Await(ctx, "the pickers at the waypoint", func(ctx context.Context) error { return wantPickers(ctx, replicas) }))
	home := homeOf(ctx, t, "llama", llama)
	strict := strictPool(ctx, t, home)
	must(t, the.Await(ctx, "calls to a pool that fails closed", func(ctx context.Context) error { return say(ctx, failing, strict) }))
	open, closed := watchCalls(ctx, the.caller, llama), watchCalls(ctx, failing, strict)
	time.Sleep(calm)
	victim := pickerNamed(ctx, t, home)
	began := time.Now()
	end := sync.OnceFunc(h.begin(t, victim))
	defer end()
	if h.vanishes {
		checkWithdrawn(ctx, t, victim, replicas-1)
	}
	ejected, err := pickerStat(ctx, ejections)
	must(t, err)
	time.Sleep(time.Until(began.Add(harmTime())))
	over := time.Now()
	now, err := pickerStat(ctx, ejections)
	must(t, err)
	if h.vanishes && now != ejected {
		t.Errorf("the waypoint asked the withdrawn picker again: %d ejections and %d at the end", ejected, now)
	}
	openCalls, closedCalls := open(), closed()
	end()
	// The picker is asked again, or its pod was replaced: no call fails any more.
	must(t, the.Await(ctx, "the picker's return", func(ctx context.Context) error { return say(ctx, failing, strict) }))
	// A picker that was withdrawn is not withdrawn again for a while, and the next harm must not meet the same one.
	must(t, the.Client.Delete(ctx, victim))

	out := h.within + time.Second
	reportHarm(t, "FailOpen", openCalls, began)
	reportHarm(t, "FailClose", closedCalls, began)
	// Calls refused for lack of a picker cost a connection each, which makes them slow on a busy machine.
	checkLate(t, "calls that fail open and waited", openCalls, began, out, over, waitedIn(openCalls, began))
	if replicas > 1 {
		checkLate(t, "calls that fail closed and failed", closedCalls, began, out, over, func(c timedCall) bool { return c.err != nil })
	}
}

// checkWithdrawn waits until the controller has withdrawn a picker and the waypoint has so many others.
func checkWithdrawn(ctx context.Context, t *testing.T, victim *corev1.Pod, others int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	began := time.Now()
	must(t, the.Await(ctx, "the withdrawal of a picker whose node is gone", func(ctx context.Context) error {
		var p corev1.Pod
		if err := the.Client.Get(ctx, client.ObjectKeyFromObject(victim), &p); err != nil {
			return err
		}
		i := slices.IndexFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
		if i < 0 || p.Status.Conditions[i].Reason != "PickerUnreachable" {
			return fmt.Errorf("its conditions are %v", p.Status.Conditions)
		}
		return wantPickers(ctx, others)
	}))
	t.Logf("the picker was withdrawn, and the waypoint knew, %s after its node was gone", time.Since(began).Round(10*time.Millisecond))
}

// wantPickers checks how many pickers the waypoint may ask.
func wantPickers(ctx context.Context, want int) error {
	n, err := pickerStat(ctx, "membership_healthy")
	if err == nil && n != want {
		err = fmt.Errorf("the waypoint has %d pickers, want %d", n, want)
	}
	return err
}

// ejections counts how often a waypoint ejected a picker.
const ejections = "outlier_detection.ejections_enforced_total"

// pickerStat is a counter of the picker's cluster at the waypoint of models.
func pickerStat(ctx context.Context, name string) (int, error) {
	stats, err := the.WaypointStats(ctx, "models", "waypoint")
	if err != nil {
		return 0, err
	}
	for full, n := range stats {
		if strings.HasPrefix(full, "cluster.outbound|9002||inference-picker.inference-system.") && strings.HasSuffix(full, "."+name) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("the waypoint has no counter %s of its pickers", name)
}

// checkLate compares the share of callers' time in the calls that holds selects: once the picker should be out, it may be
// little larger than before the harm. The first three seconds of that time are checked separately too, as Kubernetes may
// remove the picker soon after.
func checkLate(t *testing.T, what string, calls []timedCall, harmed time.Time, out time.Duration, over time.Time, holds func(timedCall) bool) {
	t.Helper()
	from := harmed.Add(out)
	before := timeIn(calls, harmed.Add(-calm), harmed.Add(-time.Second), holds) // later calls may have met the harm
	for _, to := range []time.Time{from.Add(3 * time.Second), over} {
		if late := timeIn(calls, from, to, holds); late > before+0.5 {
			t.Errorf("from %s to %s after the harm %.0f %% of the time went into %s, and %.0f %% before it",
				out, to.Sub(harmed).Round(time.Second), 100*late, what, 100*before)
		}
	}
}

// waitedIn returns a test for calls that waited for a picker, relative to the calls before the harm.
func waitedIn(calls []timedCall, harmed time.Time) func(timedCall) bool {
	median := medianBefore(calls, harmed)
	return func(c timedCall) bool { return c.took > median+waitedBy }
}

// reportHarm logs how many calls were slow in each second.
func reportHarm(t *testing.T, mode string, calls []timedCall, began time.Time) {
	t.Helper()
	median, waited := medianBefore(calls, began), waitedIn(calls, began)
	var line []string
	for second := time.Duration(-2); second < time.Duration(harmTime().Seconds()); second++ {
		from := began.Add(second * time.Second)
		n, s, w, f, worst := 0, 0, 0, 0, time.Duration(0)
		for _, c := range calls {
			if c.began.Before(from) || !c.began.Before(from.Add(time.Second)) {
				continue
			}
			n, worst = n+1, max(worst, c.took)
			if c.took > median+slowBy {
				s++
			}
			if waited(c) {
				w++
			}
			if c.err != nil {
				f++
			}
		}
		line = append(line, fmt.Sprintf("%d s: of %d calls %d slow, %d waited, %d failed, %d ms at most", second, n, s, w, f, worst.Milliseconds()))
	}
	t.Logf("%s, median %s:\n%s", mode, median, strings.Join(line, "\n"))
}

// timeIn is the share of time that selected calls took, of all calls begun between from and to.
func timeIn(calls []timedCall, from, to time.Time, holds func(timedCall) bool) float64 {
	all, part := time.Duration(1), time.Duration(0)
	for _, c := range calls {
		if c.began.Before(from) || !c.began.Before(to) {
			continue
		}
		all += c.took
		if holds(c) {
			part += c.took
		}
	}
	return part.Seconds() / all.Seconds()
}

func medianBefore(calls []timedCall, began time.Time) time.Duration {
	var took []time.Duration
	for _, c := range calls {
		if c.began.Before(began) {
			took = append(took, c.took)
		}
	}
	slices.Sort(took)
	if len(took) == 0 {
		return 0
	}
	return took[len(took)/2]
}

func harmTime() time.Duration {
	if os.Getenv(hungLong) != "" {
		return time.Minute
	}
	return 15 * time.Second
}

// timedCall is a call made under load.
type timedCall struct {
	began time.Time
	took  time.Duration
	err   error
}

// watchCalls calls a pool from several clients at once until stop is called.
func watchCalls(ctx context.Context, from *mesh.Caller, host string) (stop func() []timedCall) {
	var (
		wait    sync.WaitGroup
		mu      sync.Mutex
		out     []timedCall
		stopped atomic.Bool
	)
	for range callers {
		wait.Go(func() {
			for !stopped.Load() && ctx.Err() == nil {
				c := timedCall{began: time.Now()}
				c.err = say(ctx, from, host)
				c.took = time.Since(c.began)
				mu.Lock()
				out = append(out, c)
				mu.Unlock()
				if c.err != nil { // calls that fail at once would starve the others
					time.Sleep(100 * time.Millisecond)
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() []timedCall {
		stopped.Store(true)
		wait.Wait()
		return out
	}
}

func say(ctx context.Context, from *mesh.Caller, host string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := traffic.Chat(ctx, from.HTTP, host, model, []traffic.Message{{Role: "user", Content: distinct(1, 20)[0]}}, 1)
	return err
}

// strictPool makes a FailClose pool over the quickstart's model servers that has this picker. It is deleted after the test.
func strictPool(ctx context.Context, t *testing.T, home string) (host string) {
	t.Helper()
	for i := 0; ; i++ { // the name decides
		name := fmt.Sprintf("strict-%d", i)
		gone := sync.OnceFunc(func() { must(t, client.IgnoreNotFound(the.Client.Delete(context.WithoutCancel(ctx), pool(name)))) })
		t.Cleanup(gone)
		must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAME", name,
			"  namespace: models", "  namespace: models\n  annotations: {inference-waypoint.io/failure-mode: FailClose}").Replace(poolYAML)))
		if homeOf(ctx, t, name, hostOf(name)) == home {
			return hostOf(name)
		}
		gone()
	}
}
