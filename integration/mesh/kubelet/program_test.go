package kubelet

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A program's environment holds the pod's fields that its variables refer to, and its arguments hold the variables.
func TestVariablesTakeFieldsOfThePod(t *testing.T) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "llama-0"},
		Spec:       corev1.PodSpec{NodeName: "machine-0"},
		Status:     corev1.PodStatus{PodIP: "10.244.0.7"},
	}
	for path, want := range map[string]string{
		"metadata.name": "llama-0", "metadata.namespace": "models", "spec.serviceAccountName": "default", "spec.nodeName": "machine-0",
		"status.podIP": "10.244.0.7", "status.hostIP": "",
	} {
		e := corev1.EnvVar{Name: "FIELD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
		if got := valueOf(e, p); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	environment := map[string]string{"POD": valueOf(corev1.EnvVar{Name: "POD", Value: "llama-0"}, p)}
	if got := expand("--name=$(POD).$(OTHER)", environment); got != "--name=llama-0.$(OTHER)" {
		t.Errorf("the argument is %s", got)
	}
}
