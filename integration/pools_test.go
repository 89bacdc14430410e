package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// twoPorts runs two model servers in one pod, on two ports, each with its own cache.
const twoPorts = "test/two-ports"

// Each port of each pod is an endpoint: conversations spread over all four, and each stays at one.
func TestTargetPortsAreEndpoints(t *testing.T) {
	ctx := begin(t, time.Minute)
	serve(ctx, t, "models", "ports", twoPorts, 2)
	must(t, the.Client.Patch(ctx, pool("ports"), client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"targetPorts":[{"number":8000},{"number":8001}]}}`))))
	defer func() { must(t, the.Client.Delete(ctx, pool("ports"))) }()
	host := "http://ports.models.inference.internal"
	eventually(ctx, t, "calls on both ports of both pods", func(ctx context.Context) error {
		reached := map[string]bool{}
		for n := range 12 {
			conversation := traffic.NewConversation("Ports.", uint64(time.Now().UnixNano())+uint64(n))
			first, err := conversation.Ask(ctx, the.caller.HTTP, host, "sample-model", 300, 1)
			if err != nil {
				return err
			}
			next, err := conversation.Ask(ctx, the.caller.HTTP, host, "sample-model", 30, 1)
			if err != nil {
				return err
			}
			if next.Endpoint != first.Endpoint {
				return fmt.Errorf("%w: %s and then %s", errWandered, first.Endpoint, next.Endpoint)
			}
			reached[first.Endpoint] = true
		}
		if len(reached) != 4 {
			return fmt.Errorf("calls reached %v only", reached)
		}
		return nil
	})
}

// Endpoints of a pool with cleartext HTTP/2 get HTTP/2, also where the caller speaks HTTP/1.1.
func TestCleartextHTTP2(t *testing.T) {
	ctx := begin(t, time.Minute)
	serve(ctx, t, "models", "h2c", echoServer, 1)
	defer func() { must(t, the.Client.Delete(ctx, pool("h2c"))) }()
	proto := func(want string) {
		t.Helper()
		eventually(ctx, t, want, func(ctx context.Context) error {
			h, err := send(ctx, http.MethodGet, "http://h2c.models.inference.internal/x", "")
			if err != nil {
				return err
			}
			if h.Proto != want {
				return fmt.Errorf("it was spoken to in %q, want %s", h.Proto, want)
			}
			return nil
		})
	}
	proto("HTTP/1.1")
	must(t, the.Client.Patch(ctx, pool("h2c"), client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"appProtocol":"kubernetes.io/h2c"}}`))))
	proto("HTTP/2.0")
}

// The pool's status reports a missing picker Service, and calls fail closed or open as the pool says. All is well again
// once the reference is corrected.
func TestPickerThatDoesNotExist(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	serve(ctx, t, "models", "unpicked", echoServer, 1)
	defer func() { must(t, the.Client.Delete(ctx, pool("unpicked"))) }()
	host := "http://unpicked.models.inference.internal/x"
	patch := func(spec string) {
		t.Helper()
		must(t, the.Client.Patch(ctx, pool("unpicked"), client.RawPatch("application/merge-patch+json", []byte(spec))))
	}
	patch(`{"spec":{"endpointPickerRef":{"name":"absent","port":{"number":9002}}}}`)
	wantCondition(ctx, t, "models", "unpicked", "waypoint", "ResolvedRefs", metav1.ConditionFalse, "InvalidExtensionRef")
	eventually(ctx, t, "calls that fail closed", func(ctx context.Context) error {
		h, err := send(ctx, http.MethodPost, host, "{}")
		if err == nil && h.Status < 500 {
			err = fmt.Errorf("a call got %d", h.Status)
		}
		return err
	})
	must(t, ask(ctx, "Are others still served?"))
	patch(`{"spec":{"endpointPickerRef":{"failureMode":"FailOpen"}}}`)
	eventually(ctx, t, "calls that fail open", func(ctx context.Context) error { return wantHeard(ctx, host, "unpicked-") })
	patch(`{"spec":{"endpointPickerRef":null}}`)
	wantCondition(ctx, t, "models", "unpicked", "waypoint", "ResolvedRefs", metav1.ConditionTrue, "ResolvedRefs")
	eventually(ctx, t, "a served call", func(ctx context.Context) error { return wantHeard(ctx, host, "unpicked-") })
}

// An object of others with the name of one of ours is left alone, and the pool's status names it.
func TestTakenNameIsLeftAlone(t *testing.T) {
	ctx := begin(t, time.Minute)
	const theirs = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: taken, namespace: models}
spec: {hosts: [elsewhere.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
`
	must(t, the.ApplyYAML(ctx, theirs))
	must(t, the.ApplyYAML(ctx, strings.ReplaceAll(poolYAML, "NAME", "taken")))
	defer func() { must(t, the.Client.Delete(ctx, pool("taken"))) }()
	eventually(ctx, t, "the status that names it", func(ctx context.Context) error {
		var p inferencev1.InferencePool
		if err := the.Client.Get(ctx, client.ObjectKey{Namespace: "models", Name: "taken"}, &p); err != nil {
			return err
		}
		parent := parentOf(&p, "waypoint")
		if parent == nil || !strings.Contains(fmt.Sprint(parent.Conditions), "ServiceEntry") {
			return fmt.Errorf("it says %+v", p.Status.Parents)
		}
		return nil
	})
	entry := serviceEntry("taken")
	must(t, the.Client.Get(ctx, client.ObjectKeyFromObject(entry), entry))
	if got := entry.Spec.Hosts; len(got) != 1 || got[0] != "elsewhere.example" {
		t.Errorf("their object's hosts became %v", got)
	}
	must(t, the.Client.Delete(ctx, entry))
	// The controller retries within half a minute, as no event says that a name is free.
	wantCondition(ctx, t, "models", "taken", "waypoint", "Accepted", metav1.ConditionTrue, "Accepted")
}

// Nobody else can take hosts of pools.
func TestHostsArePools(t *testing.T) {
	ctx := begin(t, time.Minute)
	entry := func(host string) error {
		e := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "grab"}}
		e.Spec.Hosts = []string{"mine.example", host}
		e.Spec.Ports = []*networkingapi.ServicePort{{Number: 80, Name: "http", Protocol: "HTTP"}}
		e.Spec.Resolution = networkingapi.ServiceEntry_STATIC
		return the.Client.Create(ctx, e, client.DryRunAll)
	}
	for _, host := range []string{"other.example", "*.example", "inference.internal.example", "other-inference.internal", "*.other.internal"} {
		if err := entry(host); err != nil {
			t.Errorf("a ServiceEntry for %s: %v", host, err)
		}
	}
	for _, host := range []string{
		"llama.models.inference.internal", "later.models.inference.internal", "*.models.inference.internal", "llama.models.Inference.INTERNAL", "llama.models.inference.internal.",
		"inference.internal", "*.inference.internal", "*inference.internal", "*.internal", "*.Internal.", "*.models.inference.internal.",
	} {
		if err := entry(host); err == nil || !strings.Contains(err.Error(), "belong to InferencePools") {
			t.Errorf("a ServiceEntry for %s: %v, want it refused", host, err)
		}
	}
}

// Others cannot change or delete the controller's objects. Where they still do, the controller repairs them.
func TestDriftIsRepaired(t *testing.T) {
	ctx := begin(t, time.Minute)
	before := filtersOf(ctx, t, "models", "llama.models.inference.internal")
	if before == 0 {
		t.Fatal("the pool has no EnvoyFilter")
	}
	entry := serviceEntry("llama")
	merge := func(ctx context.Context, patch string) error {
		return the.Client.Patch(ctx, entry.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(patch)))
	}
	change := func(ctx context.Context) error { return merge(ctx, `{"spec":{"hosts":["wrong.example"]}}`) }
	remove := func(ctx context.Context) error {
		return deleteFilters(ctx, "models", "llama.models.inference.internal")
	}
	disown := func(ctx context.Context) error {
		return merge(ctx, `{"metadata":{"labels":{"inference-waypoint.io/owned":null}}}`)
	}
	for name, edit := range map[string]func(context.Context) error{"changing": change, "deleting": remove, "disowning": disown} {
		if err := edit(ctx); err == nil || !strings.Contains(err.Error(), "Inference Waypoint makes this") {
			t.Errorf("%s what the controller made: %v, want it refused", name, err)
		}
	}
	must(t, merge(ctx, `{"metadata":{"labels":{"theirs":"yes"}}}`)) // others' labels do no harm
	// The deletion of a namespace deletes its objects.
	must(t, asOf(t, "kube-system", "namespace-controller").Delete(ctx, entry.DeepCopy(), client.DryRunAll))

	unguard(ctx, t)
	eventually(ctx, t, "a change by force", change)
	eventually(ctx, t, "a deletion by force", remove)
	eventually(ctx, t, "the repair", func(ctx context.Context) error {
		entry := serviceEntry("llama")
		if err := the.Client.Get(ctx, client.ObjectKeyFromObject(entry), entry); err != nil {
			return err
		}
		if entry.Spec.Hosts[0] == "wrong.example" {
			return errors.New("the ServiceEntry is still wrong")
		}
		if n := filtersOf(ctx, t, "models", "llama.models.inference.internal"); n != before {
			return fmt.Errorf("%d EnvoyFilters, want %d", n, before)
		}
		return nil
	})
	eventually(ctx, t, "picking", func(ctx context.Context) error { return staysPut(ctx, llama) })
}

// unguard lets everybody write the controller's objects, until the end of the test.
func unguard(ctx context.Context, t *testing.T) {
	t.Helper()
	guard := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "inference-owned"}}
	must(t, the.Client.Get(ctx, client.ObjectKeyFromObject(guard), guard))
	must(t, the.Client.Delete(ctx, guard.DeepCopy()))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		guard.ResourceVersion = ""
		must(t, the.Client.Create(ctx, guard))
		must(t, the.Await(ctx, "the guard", func(ctx context.Context) error {
			if the.Client.Delete(ctx, serviceEntry("llama"), client.DryRunAll) == nil {
				return errors.New("it lets everybody delete")
			}
			return nil
		}))
	})
}
