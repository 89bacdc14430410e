package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/review"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// answerLimit bounds the length of a picker's answer, in bytes. 1,000 endpoints take about 400 KB.
const answerLimit = 64 << 20

// Picker is a running picker, called at its debug port.
type Picker struct {
	// Name identifies the picker for people.
	Name string

	http  *http.Client
	base  *url.URL
	token tokenSource // nil if no token is sent
}

// PickerAt is the picker at an address such as http://127.0.0.1:9091, reached without the API server. It gets the token of
// the cluster, if there is one, only if nobody on the way can read the token: at a loopback address, or over TLS.
func PickerAt(address string, c *Cluster) (*Picker, error) {
	base, err := url.Parse(address)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("%q is not an address such as http://127.0.0.1:9091", address)
	}
	out := &Picker{Name: address, http: http.DefaultClient, base: base}
	if ip := net.ParseIP(base.Hostname()); c != nil && (base.Scheme == "https" || base.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		out.token = c.tokenIfAny
	}
	return out, nil
}

// tokenPatience is how long a command waits for a token if the picker may not need one.
const tokenPatience = 3 * time.Second

// tokenIfAny is the token to send, or none if none is found in time: a picker without Kubernetes needs none.
func (c *Cluster) tokenIfAny(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenPatience)
	defer cancel()
	found := make(chan string, 1)
	go func() {
		token, err := c.token(ctx)
		if err != nil {
			token = "" // the picker answers 401 if it needs one
		}
		found <- token
	}()
	select {
	case token := <-found:
		return token, nil
	case <-ctx.Done(): // the discovery of the API server's kinds ignores the context
		return "", nil
	}
}

// PickerIn is a pod's picker, reached through the API server's proxy to pods. It needs the right to get pods/proxy, and
// for explain also to create pods/proxy.
func (c *Cluster) PickerIn(pod *corev1.Pod) *Picker {
	return &Picker{Name: "pod " + pod.Namespace + "/" + pod.Name, http: c.http, base: c.proxied(pod, debugPort(pod)), token: c.token}
}

// proxied is the URL of a pod's port behind the API server.
func (c *Cluster) proxied(pod *corev1.Pod, port int32) *url.URL {
	return c.base.JoinPath(fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:%d/proxy/", pod.Namespace, pod.Name, port))
}

// debugPort is the container port named debug, by default 9091.
func debugPort(pod *corev1.Pod) int32 {
	for _, container := range pod.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name == "debug" {
				return port.ContainerPort
			}
		}
	}
	return 9091
}

// PickerPods are the pods of a pool's picker, ready ones first. The reason says why there are none, or why they cannot be
// asked.
func (s *Snapshot) PickerPods(p *inferencev1.InferencePool) (_ []*corev1.Pod, reason string) {
	at, named := translate.PickerOf(p, s.Settings)
	if !named {
		return nil, "it names no picker"
	}
	service := Find(s.Services, at.Service.Namespace, at.Service.Name)
	switch {
	case service == nil && s.Services.Problem != nil:
		return nil, s.Services.Problem.Text
	case service == nil:
		return nil, fmt.Sprintf("its picker's Service %s does not exist", at.Service)
	case !translate.IsOwnPicker(at, service, s.Settings):
		return nil, fmt.Sprintf("its picker %s is not Inference Waypoint's, and cannot explain picks", at)
	case s.Pods.Problem != nil:
		return nil, s.Pods.Problem.Text
	}
	return s.PodsOf(service), ""
}

// PodsOf are the pods that a Service selects and that are not being deleted, ready ones first.
func (s *Snapshot) PodsOf(service *corev1.Service) []*corev1.Pod {
	var out []*corev1.Pod
	selector := labels.SelectorFromSet(service.Spec.Selector)
	for _, pod := range s.Pods.Items {
		if len(service.Spec.Selector) > 0 && pod.Namespace == service.Namespace && pod.DeletionTimestamp == nil && selector.Matches(labels.Set(pod.Labels)) {
			out = append(out, pod)
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int {
		if x, y := pool.Serving(a), pool.Serving(b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return out
}

// Picker finds a picker of a pool that can be asked. Of several it is the one that picked last for the pool: waypoints ask
// one of them about a pool.
func (c *Cluster) Picker(ctx context.Context, namespace, name string) (*Picker, error) {
	s, err := c.Read(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	if s.Pools.Problem != nil {
		return nil, s.Pools.Problem
	}
	if len(s.Pools.Items) == 0 {
		return nil, NoSuchPool(namespace, name)
	}
	pods, reason := s.PickerPods(s.Pools.Items[0])
	if reason != "" {
		return nil, fmt.Errorf("pool %s/%s cannot be asked about: %s", namespace, name, reason)
	}
	ready := slices.DeleteFunc(pods, func(p *corev1.Pod) bool { return !pool.Serving(p) })
	if len(ready) == 0 {
		return nil, fmt.Errorf("no picker of pool %s/%s is ready: see kubectl inference status %s -n %s", namespace, name, name, namespace)
	}
	return c.lastToPick(ctx, ready, namespace+"/"+name), nil
}

// lastToPick is the picker that picked last for a pool; the first one where none did, or where none may be asked.
func (c *Cluster) lastToPick(ctx context.Context, pods []*corev1.Pod, pool string) *Picker {
	if len(pods) == 1 {
		return c.PickerIn(pods[0])
	}
	picked := make([]time.Time, len(pods))
	for i, a := range c.AskPickers(ctx, pods, pool) {
		if len(a.State.Pools) > 0 && len(a.State.Pools[0].Picks) > 0 {
			picked[i] = a.State.Pools[0].Picks[0].Time
		}
	}
	last := 0
	for i := range pods {
		if picked[i].After(picked[last]) {
			last = i
		}
	}
	return c.PickerIn(pods[last])
}

// AnyPicker finds a picker of ours that can be asked, in the pod of this name or, if the name is empty, in any. Others are
// the names of the other pods that can be asked.
func (c *Cluster) AnyPicker(ctx context.Context, name string) (_ *Picker, others []string, _ error) {
	s, err := c.Read(ctx, "", "")
	if err != nil {
		return nil, nil, err
	}
	var found *corev1.Pod
	for _, p := range s.OwnPickers() {
		if found == nil && (name == "" || p.Name == name) {
			found = p
		} else {
			others = append(others, p.Name)
		}
	}
	switch {
	case found != nil:
		return c.PickerIn(found), others, nil
	case len(others) > 0:
		return nil, nil, fmt.Errorf("no ready picker is called %s; there are: %s", name, strings.Join(others, ", "))
	default:
		return nil, nil, errors.New("no picker is ready: see kubectl inference doctor")
	}
}

// Proxy passes requests for the page on to the picker, with the token.
func (p *Picker) Proxy() http.Handler {
	base := *p.base
	base.Path = "/" + strings.TrimLeft(base.Path, "/") // HTTP/2 takes no path without a slash in front
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&base)
			r.Out.Header.Del("Cookie") // of other pages on this machine
			if token, err := p.shown(r.In.Context()); err == nil && token != "" {
				r.Out.Header.Set(review.TokenHeader, "Bearer "+token)
			}
		},
		Transport: p.http.Transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("the picker, %s, does not answer: %s", p.Name, oneLine(rootOf(err))), http.StatusBadGateway)
		},
	}
}

// shown is the token to send; empty for none.
func (p *Picker) shown(ctx context.Context) (string, error) {
	if p.token == nil {
		return "", nil
	}
	return p.token(ctx)
}

// NoSuchPool says that there is no such pool.
func NoSuchPool(namespace, name string) error {
	return fmt.Errorf("there is no InferencePool %s in namespace %s: kubectl get inferencepools -A lists all", name, namespace)
}

// OwnPickers are the ready pods of our pickers: the default one's, and those that pools name.
func (s *Snapshot) OwnPickers() []*corev1.Pod {
	var out []*corev1.Pod
	add := func(at translate.ServicePort) {
		service := Find(s.Services, at.Service.Namespace, at.Service.Name)
		if service == nil || !translate.IsOwnPicker(at, service, s.Settings) {
			return
		}
		for _, p := range s.PodsOf(service) {
			if pool.Serving(p) && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	if s.Settings.DefaultPicker != nil {
		add(*s.Settings.DefaultPicker)
	}
	for _, p := range s.Pools.Items {
		if at, named := translate.PickerOf(p, s.Settings); named {
			add(at)
		}
	}
	return out
}

// State reads a picker's state of a pool, namespace/name, or of all pools if the name is empty.
func (p *Picker) State(ctx context.Context, pool string) (out livestate.State, err error) {
	query := url.Values{}
	if pool != "" {
		query.Set("pool", pool)
	}
	err = p.Ask(ctx, http.MethodGet, "debug/pools", query, nil, &out)
	return out, err
}

// Healthy asks whether the picker answers at all.
func (p *Picker) Healthy(ctx context.Context) error {
	return p.Ask(ctx, http.MethodGet, "healthz", nil, nil, nil)
}

// Ask makes a request and decodes the answer into a value, if there is one.
func (p *Picker) Ask(ctx context.Context, method, path string, query url.Values, body []byte, into any) error {
	target := p.base.JoinPath(path)
	target.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("calling the picker, %s: %w", p.Name, err)
	}
	if len(body) > 0 {
		request.Header.Set("Content-Type", "application/json")
	}
	token, err := p.shown(ctx)
	if err != nil {
		return err
	}
	if token != "" {
		request.Header.Set(review.TokenHeader, "Bearer "+token)
	}
	response, err := p.http.Do(request)
	if err != nil {
		return fmt.Errorf("the picker, %s, does not answer: %s", p.Name, oneLine(rootOf(err)))
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if err != nil {
		return fmt.Errorf("reading the answer of the picker, %s: %w", p.Name, err)
	}
	if response.StatusCode != http.StatusOK {
		return p.refusal(response.StatusCode, text)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("the answer of the picker, %s, is not what was expected: is it of another version? %w", p.Name, err)
	}
	return nil
}

// refusal makes an error of a status code, and distinguishes refusals of the API server from refusals of the picker.
func (p *Picker) refusal(code int, text []byte) error {
	var status metav1.Status
	if json.Unmarshal(text, &status) == nil && status.Kind == "Status" {
		if code == http.StatusForbidden {
			return &Problem{NotPermitted, fmt.Sprintf("not permitted to reach the picker, %s, through the API server (pods/proxy); "+
				"port-forward to its port 9091 and use --picker-url", p.Name)}
		}
		return fmt.Errorf("the API server cannot reach the picker, %s: %s; port-forward to its port 9091 and use --picker-url",
			p.Name, oneLine(errors.New(status.Message)))
	}
	var own struct{ Error string }
	if json.Unmarshal(text, &own) == nil && own.Error != "" {
		return fmt.Errorf("the picker, %s, answers %d: %s", p.Name, code, own.Error)
	}
	said := oneLine(errors.New(string(text[:min(len(text), 300)])))
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return &Problem{NotPermitted, fmt.Sprintf("the picker, %s, refuses: %s", p.Name, said)}
	case http.StatusBadGateway:
		return fmt.Errorf("the picker, %s, cannot be reached: %s", p.Name, said)
	default:
		return fmt.Errorf("the picker, %s, answers %d to this: is it of another version?", p.Name, code)
	}
}
