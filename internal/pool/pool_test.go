package pool

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
)

func TestHost(t *testing.T) {
	long := strings.Repeat("a", 70)
	tests := map[string]struct {
		name string
		want string
	}{
		"plain":                      {"llama", "llama.models.inference.internal"},
		"dots":                       {"llama.v1", "llama.v1.models.inference.internal"},
		"longest label":              {strings.Repeat("a", 63), strings.Repeat("a", 63) + ".models.inference.internal"},
		"label too long":             {long, strings.Repeat("a", 52) + "-6bd5e50348.models.inference.internal"},
		"another of the same head":   {long + "b", strings.Repeat("a", 52) + "-ffe7dc5b4f.models.inference.internal"},
		"host too long":              {strings.Repeat("abcdefg.", 31) + "abcd", "abcdefg-abcdefg-abcdefg-abcdefg-abcdefg-abcdefg-abcd-69485d826f.models.inference.internal"},
		"the head ends at a hyphen":  {strings.Repeat("a", 51) + "--" + long, strings.Repeat("a", 51) + "-80acd57c0f.models.inference.internal"},
		"a long label among shorter": {"v1." + long, "v1-" + strings.Repeat("a", 49) + "-907679c4a5.models.inference.internal"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := Pool{Name: types.NamespacedName{Namespace: "models", Name: tt.name}}
			got := p.Host("inference.internal")
			if got != tt.want {
				t.Errorf("host %s, want %s", got, tt.want)
			}
			for label := range strings.SplitSeq(got, ".") {
				if problems := validation.IsDNS1123Label(label); len(problems) > 0 {
					t.Errorf("label %q: %v", label, problems)
				}
			}
		})
	}
}

// A CounterName must never change: it is part of counters' names in Envoy and Prometheus, also in EnvoyFilters of older
// controllers.
func TestCounterName(t *testing.T) {
	of := func(namespace, name string) string {
		return CounterName(types.NamespacedName{Namespace: namespace, Name: name})
	}
	if got, want := of("models", "llama"), "razngnfhlqc4z62i"; got != want {
		t.Errorf("models/llama is counted as %s, want %s", got, want)
	}
	whole := regexp.MustCompile(fmt.Sprintf("^[a-z2-7]{%d}$", CounterNameLength))
	seen := map[string]bool{}
	for _, name := range []string{"llama", "llama.v1", "llama-v1", strings.Repeat("a", 253)} {
		for _, namespace := range []string{"a", "b", "a-b"} {
			got := of(namespace, name)
			if seen[got] || !whole.MatchString(got) {
				t.Errorf("%s/%s is counted as %q", namespace, name, got)
			}
			seen[got] = true
		}
	}
}

func TestFromAPIPicker(t *testing.T) {
	group := inferencev1.Group("example.com")
	port := inferencev1.Port{Number: 9002}
	tests := map[string]struct {
		ref       *inferencev1.EndpointPickerRef
		want      *PickerRef
		wantMode  FailureMode
		wantError bool
	}{
		"none":                     {nil, nil, FailOpen, false},
		"a Service":                {&inferencev1.EndpointPickerRef{Name: "epp", Port: &port}, &PickerRef{"epp", 9002}, FailClose, false},
		"a Service by kind":        {&inferencev1.EndpointPickerRef{Kind: "Service", Name: "epp", Port: &port, FailureMode: "FailOpen"}, &PickerRef{"epp", 9002}, FailOpen, false},
		"a Service without a port": {&inferencev1.EndpointPickerRef{Name: "epp"}, &PickerRef{}, FailClose, true},
		"another kind, no port":    {&inferencev1.EndpointPickerRef{Group: &group, Kind: "Picker", Name: "epp"}, &PickerRef{}, FailClose, false},
		"another group's Service":  {&inferencev1.EndpointPickerRef{Group: &group, Kind: "Service", Name: "epp", Port: &port}, &PickerRef{}, FailClose, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := FromAPI(&inferencev1.InferencePool{
				ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "llama"},
				Spec:       inferencev1.InferencePoolSpec{TargetPorts: []inferencev1.Port{{Number: 8000}}, EndpointPickerRef: tt.ref},
			})
			if (err != nil) != tt.wantError {
				t.Errorf("error %v, want one: %t", err, tt.wantError)
			}
			if diff := cmp.Diff(tt.want, got.Picker); diff != "" {
				t.Errorf("picker (-want +got):\n%s", diff)
			}
			if got.FailureMode != tt.wantMode {
				t.Errorf("failure mode %s, want %s", got.FailureMode, tt.wantMode)
			}
		})
	}
}

// Two ports of a pod are two endpoints of one process; a container that was started again makes another.
func TestEndpointsTellProcessesApart(t *testing.T) {
	p := Pool{Name: types.NamespacedName{Namespace: "models", Name: "llama"}, Selector: map[string]string{"app": "llama"}, TargetPorts: []int32{8000, 8001}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "a", UID: "uid", Labels: map[string]string{"app": "llama"}},
		Status: corev1.PodStatus{
			PodIP:             "10.244.0.1",
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{RestartCount: 1}, {RestartCount: 2}},
		},
	}
	for _, e := range p.Endpoints([]*corev1.Pod{pod}) {
		if e.Process != "uid/3" {
			t.Errorf("the process of %s is %q, want uid/3", e.Address, e.Process)
		}
	}
}
