package cluster

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const countedRejects = `# TYPE pilot_total_xds_rejects counter
pilot_total_xds_rejects{type="cds"} 2
pilot_total_xds_rejects{type="rds"} 1
`

// TestRejects reads istiod's metrics through an API server. A page that breaks off, or is none, is no page without
// rejects.
func TestRejects(t *testing.T) {
	tests := map[string]struct {
		page    http.HandlerFunc
		want    int
		problem string
	}{
		"counted":       {writes(countedRejects), 3, ""},
		"none":          {writes("# TYPE pilot_xds gauge\npilot_xds 4\n"), 0, ""},
		"a long line":   {writes(countedRejects + `pilot_info{text="` + strings.Repeat("x", 1<<20) + "\"} 1\n"), 3, ""},
		"no metrics":    {writes("<html>a proxy's page</html>"), 0, "not as expected"},
		"half a line":   {writes(countedRejects + `pilot_total_xds_rejects{type="l`), 0, "not as expected"},
		"broken off":    {breaksOff, 0, "not as expected"},
		"not permitted": {fails(http.StatusForbidden), 0, "not permitted"},
		"no answer":     {fails(http.StatusServiceUnavailable), 0, "503"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(apiServer(tt.page))
			defer server.Close()
			c, err := New(&rest.Config{Host: server.URL}, "inference-system")
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Rejects(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod"}})
			switch {
			case tt.problem == "" && (err != nil || got != tt.want):
				t.Errorf("%d rejects, %v, want %d", got, err, tt.want)
			case tt.problem != "" && (err == nil || !strings.Contains(err.Error(), tt.problem)):
				t.Errorf("%d rejects, %v, want an error with %q", got, err, tt.problem)
			}
		})
	}
}

// apiServer has one pod of istiod, whose metrics are the page.
func apiServer(page http.Handler) http.Handler {
	answer := func(value any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(value)
		}
	}
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod-0"}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	mux := http.NewServeMux()
	mux.Handle("GET /api", answer(metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}))
	mux.Handle("GET /apis", answer(metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}))
	mux.Handle("GET /api/v1", answer(metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList"}, GroupVersion: "v1",
		APIResources: []metav1.APIResource{{Name: "pods", Namespaced: true, Kind: "Pod"}},
	}))
	mux.Handle("GET /api/v1/namespaces/istio-system/pods", answer(corev1.PodList{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{pod},
	}))
	mux.Handle("GET /api/v1/namespaces/istio-system/pods/istiod-0:15014/proxy/metrics", page)
	return mux
}

func writes(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

func fails(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

// breaksOff promises more than it writes.
func breaksOff(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(w, countedRejects)
}
