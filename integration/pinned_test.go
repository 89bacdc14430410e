package integration

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// pinnedPools is how many pools are called. Were their pickers drawn, all of them would have the same one of three once in
// 2,187 times.
const pinnedPools = 8

const secondWaypointYAML = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: second, namespace: models, labels: {istio.io/waypoint-for: service}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`

const frontYAML = `
apiVersion: v1
kind: Service
metadata:
  name: NAME-front
  namespace: models
  labels: {istio.io/use-waypoint: second}
  annotations: {inference-waypoint.io/pool: NAME}
spec: {selector: {app: nothing}, ports: [{name: http, port: 80, targetPort: 8000}]}
`

// Each of several pickers has its own pools, the same ones at both waypoints. The pools of a picker that hangs go to the
// others, the others' pools stay, and all are at home again after it went on.
func TestPoolsHaveTheirPicker(t *testing.T) {
	ctx := begin(t, 5*time.Minute)
	setPickers(ctx, t, 3, "")
	must(t, the.ApplyYAML(ctx, secondWaypointYAML))
	t.Cleanup(func() {
		must(t, the.Client.Delete(context.WithoutCancel(ctx), &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "second"}}))
	})
	var names []string
	for i := range pinnedPools {
		name := fmt.Sprintf("pinned-%d", i)
		names = append(names, name)
		must(t, the.ApplyYAML(ctx, strings.ReplaceAll(poolYAML+"---"+frontYAML, "NAME", name)))
		t.Cleanup(func() {
			ctx := context.WithoutCancel(ctx)
			must(t, the.Client.Delete(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name + "-front"}}))
			must(t, the.Client.Delete(ctx, pool(name)))
		})
	}
	homes := map[string]string{}
	for _, name := range names {
		homes[name] = homeOf(ctx, t, name, hostOf(name), "http://"+name+"-front.models")
	}
	perPicker := map[string]int{}
	for _, home := range homes {
		perPicker[home]++
	}
	t.Logf("pools by picker: %v", perPicker)
	for _, name := range names {
		if said := kubectl(ctx, t, "", "", "top", name, "-n", "models", "--once").out; !strings.Contains(said, "by pod inference-system/"+homes[name]) {
			t.Errorf("kubectl inference top of %s, which is at home at %s, says:\n%s", name, homes[name], said)
		}
	}
	if len(perPicker) == 1 {
		t.Error("all pools have the same picker")
	}
	saysWhoPicks(ctx, t, names[0], map[string]string{homes[names[0]]: "picks for the pool"}, "stands by, at most ")

	gone := pickerNamed(ctx, t, homes[names[0]])
	process, err := the.ProcessID(gone.UID)
	must(t, err)
	must(t, syscall.Kill(process, syscall.SIGSTOP))
	goOn := func() { must(t, syscall.Kill(process, syscall.SIGCONT)) }
	defer func() { goOn() }()
	for _, name := range names {
		now := homeOf(ctx, t, name, hostOf(name))
		if moved := now != homes[name]; moved != (homes[name] == gone.Name) {
			t.Errorf("%s was at home at %s, and is at %s while %s hangs", name, homes[name], now, gone.Name)
		}
	}
	now := homeOf(ctx, t, names[0], hostOf(names[0]))
	saysWhoPicks(ctx, t, names[0], map[string]string{now: "picks for the pool", gone.Name: "not known: "}, "stands by, at most ")
	goOn()
	goOn = func() {}
	eventually(ctx, t, "all pools at home", func(ctx context.Context) error {
		for _, name := range names {
			if now := homeOf(ctx, t, name, hostOf(name)); now != homes[name] {
				return fmt.Errorf("%s is at %s, and its home is %s", name, now, homes[name])
			}
		}
		return nil
	})
}

// saysWhoPicks checks what status says of each picker of a pool; others is what it says of those that are not named.
func saysWhoPicks(ctx context.Context, t *testing.T, pool string, picker map[string]string, others string) {
	t.Helper()
	soon, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	all := pickers(ctx, t)
	eventually(soon, t, "a status that tells who picks", func(context.Context) error { // the last status ends by itself, so that the error tells it
		_ = say(ctx, the.caller, hostOf(pool)) // is picked, also where the server has no such model
		got := kubectl(ctx, t, "", "", "status", pool, "-n", "models").out
		for _, p := range all {
			want := "inference-system/" + p.Name + ", " + cmp.Or(picker[p.Name], others)
			if !strings.Contains(got, want) {
				return fmt.Errorf("it does not say %q:\n%s", want, got)
			}
		}
		return nil
	})
}

func hostOf(pool string) string { return "http://" + pool + ".models.inference.internal" }
