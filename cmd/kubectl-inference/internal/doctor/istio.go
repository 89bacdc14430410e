package doctor

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
)

// The oldest supported versions, with which the whole product was run.
const (
	minKubernetes = "1.33"
	minIstio      = "1.31"
	minGatewayAPI = "1.6"
	minInference  = "1.0" // InferencePool v1
)

const installIstio = "istioctl install -f manifests/istio/overlay.yaml"

// family is a set of definitions that are installed together.
type family struct {
	name, title string
	kinds       []Kind
	// definition and annotation say where the version is; if they are empty, no version is checked.
	definition, annotation, min string
	next                        string
}

// families are in the order in which to install them.
var families = []family{
	{
		name: "gateway-api", title: "Gateway API",
		kinds:      []Kind{{"gateway.networking.k8s.io/v1", "gateways"}, {"gateway.networking.k8s.io/v1", "httproutes"}, {"gateway.networking.k8s.io/v1beta1", "referencegrants"}},
		definition: "gateways.gateway.networking.k8s.io", annotation: "gateway.networking.k8s.io/bundle-version", min: minGatewayAPI,
		next: "kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.3/standard-install.yaml",
	},
	{
		name: "inference-extension", title: "Inference Extension",
		kinds:      []Kind{{"inference.networking.k8s.io/v1", "inferencepools"}},
		definition: "inferencepools.inference.networking.k8s.io", annotation: "inference.networking.k8s.io/bundle-version", min: minInference,
		next: "kubectl apply -f https://github.com/kubernetes-sigs/gateway-api-inference-extension/releases/download/v1.6.0/manifests.yaml",
	},
	{
		name: "istio-crds", title: "Istio's definitions",
		kinds: []Kind{{"networking.istio.io/v1", "serviceentries"}, {"networking.istio.io/v1alpha3", "envoyfilters"}},
		next:  installIstio,
	},
}

// Kinds are all kinds that the product needs.
func Kinds() []Kind {
	var out []Kind
	for _, f := range families {
		out = append(out, f.kinds...)
	}
	return out
}

func (e *examination) server() bool {
	if e.ServerProblem != nil {
		e.unread("kubernetes", "Kubernetes", e.ServerProblem)
		return false
	}
	e.atLeast("kubernetes", "Kubernetes", e.Server.GitVersion, minKubernetes, Failed, "upgrade the cluster")
	return true
}

// atLeast checks a version. Old is the result for an older version. A text that is no version number, as in a private build,
// is a warning.
func (e *examination) atLeast(name, title, text, least string, old Result, next string) {
	found, err := version.ParseGeneric(text)
	switch {
	case err != nil || found.Major() == 0 && found.Minor() == 0:
		e.add(name, Warning, "make sure that it is "+least+" or newer", "%s %s: this is not a version number", title, text)
	case !found.AtLeast(version.MustParseGeneric(least)):
		e.add(name, old, next, "%s %s is too old: want %s or newer", title, text, least)
	default:
		e.add(name, OK, "", "%s %s", title, text)
	}
}

func (e *examination) kinds() {
	for _, f := range families {
		e.family(f)
	}
}

func (e *examination) family(f family) {
	var missing []string
	for _, k := range f.kinds {
		served, asked := e.Served[k]
		if !asked {
			e.add(f.name, Unknown, "kubectl api-resources", "%s: the API server does not say whether it has %s of %s", f.title, k.Resource, k.GroupVersion)
			return
		}
		if !served {
			missing = append(missing, k.Resource+" "+k.GroupVersion)
		}
	}
	if len(missing) > 0 {
		e.add(f.name, Failed, f.next, "%s: the cluster does not know %s", f.title, strings.Join(missing, ", "))
		return
	}
	if f.definition == "" {
		e.add(f.name, OK, "", "%s are installed", f.title)
		return
	}
	for _, d := range e.Definitions.Items {
		if v := d.Annotations[f.annotation]; d.Name == f.definition && v != "" {
			e.atLeast(f.name, f.title, v, f.min, Warning, f.next) // only a warning: all needed kinds exist
			return
		}
	}
	if p := e.Definitions.Problem; p != nil {
		e.add(f.name, OK, "", "%s is installed (its release is not known: %s)", f.title, p.Text)
		return
	}
	e.add(f.name, OK, "", "%s is installed (its definitions name no release)", f.title)
}

// istio checks istiod, and reports whether there is one.
func (e *examination) istio() bool {
	switch {
	case len(e.Istiods.Items) == 0 && e.Istiods.Problem != nil:
		e.unread("istio", "Istio", e.Istiods.Problem)
		return false
	case len(e.Istiods.Items) == 0:
		e.add("istio", Failed, installIstio, "Istio is not installed: no Deployment has the label app=istiod")
		return false
	}
	for _, d := range e.Istiods.Items {
		name := d.Namespace + "/" + d.Name
		e.atLeast("istio-version", "Istio ("+name+")", istioVersion(d), minIstio, Failed, "upgrade Istio, and then "+installIstio)
		if d.Status.ReadyReplicas == 0 {
			e.add("istiod-ready", Failed, fmt.Sprintf("kubectl describe deployment %s -n %s", d.Name, d.Namespace), "no pod of istiod (%s) is ready", name)
		}
		e.flags(d)
	}
	return true
}

var versionTag = regexp.MustCompile(`:v?(\d+\.\d+\.\d+[^@]*|[^:@/]+)(@|$)`)

// istioVersion is the tag of istiod's image.
func istioVersion(d *appsv1.Deployment) string {
	for _, c := range d.Spec.Template.Spec.Containers {
		if c.Name != "discovery" {
			continue
		}
		if tag := versionTag.FindStringSubmatch(c.Image); tag != nil {
			return tag[1]
		}
		return c.Image
	}
	return "of an unknown image"
}

const (
	ambientFlag      = "PILOT_ENABLE_AMBIENT"
	autoAllocateFlag = "PILOT_ENABLE_IP_AUTOALLOCATE"
	inferenceFlag    = "ENABLE_GATEWAY_API_INFERENCE_EXTENSION"
)

// flags checks istiod's environment variables. Ambient mode has its own check.
func (e *examination) flags(d *appsv1.Deployment) {
	env := environment(d)
	if strings.EqualFold(env[autoAllocateFlag], "false") {
		e.add("istio-flags", Failed, installIstio, "istiod allocates no addresses for hosts: %s is false, so no pool can be called", autoAllocateFlag)
		return
	}
	if strings.EqualFold(env[inferenceFlag], "true") {
		e.add("istio-flags", Warning, "remove "+inferenceFlag+" from istiod, unless an ingress Gateway leads to a pool",
			"istiod runs with %s=true: calls are served all the same, but istiod removes the controller's entries from pools' status", inferenceFlag)
		return
	}
	e.add("istio-flags", OK, "", "istiod allocates addresses of hosts")
}

func environment(d *appsv1.Deployment) map[string]string {
	out := map[string]string{}
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, v := range c.Env {
			out[v.Name] = v.Value
		}
	}
	return out
}

// ambientMode checks that the mesh is ambient and does not only have sidecars.
func (e *examination) ambientMode() {
	on := false
	for _, d := range e.Istiods.Items {
		on = on || strings.EqualFold(environment(d)[ambientFlag], "true")
	}
	if !on {
		e.add("ambient-mode", Failed, installIstio, "Istio runs sidecars only: ambient mode is off (istiod's %s), and without it there are no waypoints", ambientFlag)
		return
	}
	for _, d := range e.DaemonSets.Items {
		if d.Name != "ztunnel" && d.Labels["app"] != "ztunnel" {
			continue
		}
		if want, ready := d.Status.DesiredNumberScheduled, d.Status.NumberReady; ready < want {
			e.add("ambient-mode", Failed, fmt.Sprintf("kubectl get pods -n %s -l app=ztunnel", d.Namespace), "ztunnel is ready on %d of %d nodes", ready, want)
			return
		}
		e.add("ambient-mode", OK, "", "ambient mode is on, with ztunnel on every node")
		return
	}
	if e.DaemonSets.Problem != nil {
		e.unread("ambient-mode", "ambient mode", e.DaemonSets.Problem)
		return
	}
	e.add("ambient-mode", Failed, installIstio, "istiod has ambient mode on, but no ztunnel runs beside it: pods are not in the mesh")
}

// rejects reports configuration that proxies refused. The counter is for all proxies and never falls, so it is only a
// warning.
func (e *examination) rejects() {
	istiod := e.Istiods.Items[0]
	logs := fmt.Sprintf("kubectl logs -n %s deployment/%s | grep 'ACK ERROR'", istiod.Namespace, istiod.Name)
	var problem *cluster.Problem
	switch {
	case errors.As(e.RejectsErr, &problem):
		e.add("config-accepted", Unknown, problem.Next(), "it is unknown whether waypoints accept their configuration: %v", e.RejectsErr)
	case e.RejectsErr != nil:
		e.add("config-accepted", Unknown, logs, "it is unknown whether waypoints accept their configuration: %v", e.RejectsErr)
	case e.Rejects > 0:
		e.add("config-accepted", Warning, logs, "proxies have refused configuration %d times since istiod started", e.Rejects)
	default:
		e.add("config-accepted", OK, "", "no proxy has refused configuration since istiod started")
	}
}
