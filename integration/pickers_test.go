package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func pickerDeployment() *appsv1.Deployment {
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: pickerAccount}}
}

// onePicker scales the two pickers of the installation to one. Most tests look into the picker that picks; those of several pickers
// have as many as they need.
func onePicker(ctx context.Context) error { return changePickers(ctx, `{"spec":{"replicas":1}}`) }

// changePickers patches the pickers' Deployment, and waits until all pickers are of the patched template, and ready.
func changePickers(ctx context.Context, patch string) error {
	d := pickerDeployment()
	if err := the.Client.Patch(ctx, d, client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
		return err
	}
	if err := the.AwaitDeployment(ctx, d.Namespace, d.Name); err != nil {
		return err
	}
	return the.Await(ctx, "the end of the earlier pickers", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := the.Client.List(ctx, &pods, client.InNamespace(d.Namespace), client.MatchingLabels{"app.kubernetes.io/name": d.Name}); err != nil {
			return err
		}
		if n := len(pods.Items); n != int(*d.Spec.Replicas) {
			return fmt.Errorf("there are %d pickers, want %d", n, *d.Spec.Replicas)
		}
		return nil
	})
}

// pickersOf is a patch of the pickers' Deployment: their number, and fields of their container in JSON, if any.
func pickersOf(replicas int, container string) string {
	if container != "" {
		container = "," + container
	}
	return fmt.Sprintf(`{"spec":{"replicas":%d,"template":{"spec":{"containers":[{"name":"picker"%s}]}}}}`, replicas, container)
}

// setPickers runs so many pickers, with fields of their container in JSON, if any. At the end of the test one picker runs as before.
func setPickers(ctx context.Context, t *testing.T, replicas int, container string) {
	t.Helper()
	before := pickerDeployment()
	must(t, the.Client.Get(ctx, client.ObjectKeyFromObject(before), before))
	own := before.Spec.Template.Spec.Containers[0]
	args, err := json.Marshal(own.Args)
	must(t, err)
	must(t, changePickers(ctx, pickersOf(replicas, container)))
	t.Cleanup(func() {
		// TCP sends again after pauses that double, so a tunnel that was cut needs up to as long again as it was cut.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute+2*harmTime())
		defer cancel()
		must(t, changePickers(ctx, pickersOf(1, fmt.Sprintf(`"image":%q,"args":%s`, own.Image, args))))
		eventually(ctx, t, "picking", func(ctx context.Context) error { return staysPut(ctx, llama) })
	})
}

func scalePickers(ctx context.Context, t *testing.T, replicas int) {
	t.Helper()
	must(t, changePickers(ctx, pickersOf(replicas, "")))
}

// rollPickers replaces all pickers by others, as an update does.
func rollPickers(ctx context.Context, t *testing.T) {
	t.Helper()
	must(t, changePickers(ctx, fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"test/rolled":%q}}}}}`, time.Now())))
}

// pickers lists the pods of the picker, including those that are being deleted.
func pickers(ctx context.Context, t *testing.T) []corev1.Pod {
	t.Helper()
	return pods(ctx, t, system, client.MatchingLabels{"app.kubernetes.io/name": pickerAccount})
}

func stayingPickers(ctx context.Context, t *testing.T) []corev1.Pod {
	t.Helper()
	return slices.DeleteFunc(pickers(ctx, t), func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// picker finds the only pod of the picker that is not being deleted.
func picker(ctx context.Context, t *testing.T) *corev1.Pod {
	t.Helper()
	staying := stayingPickers(ctx, t)
	if len(staying) != 1 {
		t.Fatalf("%d pickers, want 1", len(staying))
	}
	return &staying[0]
}

// pickerNamed finds a pod of the picker by its name.
func pickerNamed(ctx context.Context, t *testing.T, name string) *corev1.Pod {
	t.Helper()
	all := pickers(ctx, t)
	i := slices.IndexFunc(all, func(p corev1.Pod) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("there is no picker %s", name)
	}
	return &all[i]
}

// pickerProcess returns a number that changes when the picker restarts.
func pickerProcess(ctx context.Context, t *testing.T) int {
	t.Helper()
	pid, err := the.ProcessID(picker(ctx, t).UID)
	must(t, err)
	return pid
}

// homeOf waits until one picker alone picks for a pool of namespace models, called at these hosts, and returns its name.
func homeOf(ctx context.Context, t *testing.T, pool string, hosts ...string) (home string) {
	t.Helper()
	const calls = 4 // at each host
	eventually(ctx, t, "the picker of "+pool, func(ctx context.Context) error {
		before := picksBy(ctx, t, pool)
		for _, host := range hosts {
			for range calls {
				if err := say(ctx, the.caller, host); err != nil {
					return err
				}
			}
		}
		after := picksBy(ctx, t, pool)
		maps.DeleteFunc(after, func(picker string, n int) bool { return n == before[picker] })
		for picker, n := range after {
			if n-before[picker] == calls*len(hosts) && len(after) == 1 {
				home = picker
				return nil
			}
		}
		return fmt.Errorf("%d calls were picked by %v", calls*len(hosts), after)
	})
	return home
}

// picksOf counts our picker's picks for a pool of namespace models, in the series that have all of the labels.
func picksOf(ctx context.Context, t *testing.T, pool string, labels ...string) int {
	t.Helper()
	return picksIn(ctx, t, "models", pool, labels...)
}

func picksIn(ctx context.Context, t *testing.T, namespace, pool string, labels ...string) int {
	t.Helper()
	return countedIn(ctx, t, "picks_total", namespace, pool, labels...)
}

// countedIn returns the count of all pickers for a pool. The metric's name is given without its prefix.
func countedIn(ctx context.Context, t *testing.T, name, namespace, pool string, labels ...string) (sum int) {
	t.Helper()
	for _, p := range stayingPickers(ctx, t) {
		page, err := metricsOf(ctx, &p, "9090")
		must(t, err)
		sum += counted(t, page, name, namespace, pool, labels...)
	}
	return sum
}

// counted reads the count from a page of metrics.
func counted(t *testing.T, page, name, namespace, pool string, labels ...string) int {
	t.Helper()
	sum := 0.0
	for _, m := range regexp.MustCompile(`(?m)^inference_waypoint_`+name+`\{(.*)\} (\S+)$`).FindAllStringSubmatch(page, -1) {
		of := func(label string) bool { return strings.Contains(m[1], label) }
		if of(`pool="`+namespace+"/"+pool+`"`) && !slices.ContainsFunc(labels, func(l string) bool { return !of(l) }) {
			n, err := strconv.ParseFloat(m[2], 64)
			must(t, err)
			sum += n
		}
	}
	return int(sum)
}

// picksBy counts the picks for a pool of namespace models by the picker's name. A picker that does not answer is left out.
func picksBy(ctx context.Context, t *testing.T, pool string) map[string]int {
	t.Helper()
	return picksByIn(ctx, t, "models", pool)
}

func picksByIn(ctx context.Context, t *testing.T, namespace, pool string) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, p := range pickers(ctx, t) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		page, err := metricsOf(ctx, &p, "9090")
		cancel()
		if err == nil {
			out[p.Name] = counted(t, page, "picks_total", namespace, pool)
		}
	}
	return out
}

// mostOf returns the picker with the most picks.
func mostOf(picks map[string]int) (picker string) {
	for name, n := range picks {
		if picker == "" || n > picks[picker] {
			picker = name
		}
	}
	return picker
}

func sumOf(counts map[string]int) (sum int) {
	for n := range maps.Values(counts) {
		sum += n
	}
	return sum
}
