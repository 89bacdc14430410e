package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/review"
)

// readerYAML lets an account of another namespace read the picker's state of the pools in namespace models.
const readerYAML = `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: models}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: inference-waypoint-edit}
subjects: [{kind: ServiceAccount, name: reader, namespace: readers}]
`

// The picker shows its state of a pool only to accounts that the API server lets read it. Metrics have a port of their own,
// which anybody may read.
func TestReadersOfWhatThePickerKnows(t *testing.T) {
	ctx := begin(t, time.Minute)
	applyYAML(ctx, t, `{apiVersion: v1, kind: Namespace, metadata: {name: readers}}`)
	applyYAML(ctx, t, `{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: readers}}`)
	token, err := the.Token(ctx, "readers", "reader")
	must(t, err)
	pod := picker(ctx, t).Status.PodIP
	ask := func(ctx context.Context, port, method, path, token string) (int, string, error) {
		body := strings.NewReader(`{"model":"llama-3.1-8b","messages":[{"role":"user","content":"secret"}]}`)
		request, err := http.NewRequestWithContext(ctx, method, "http://"+net.JoinHostPort(pod, port)+path, body)
		if err != nil {
			return 0, "", err
		}
		if token != "" {
			request.Header.Set(review.TokenHeader, "Bearer "+token)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, "", err
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		return response.StatusCode, string(text), err
	}
	want := func(port, method, path, token string, status int) {
		t.Helper()
		got, text, err := ask(ctx, port, method, path, token)
		must(t, err)
		if got != status || status != http.StatusOK && strings.Contains(text, "10.244.") {
			t.Errorf("%s %s at %s: %d %q, want %d", method, path, port, got, text, status)
		}
	}
	const explain, one, all = "/debug/explain?pool=models/llama", "/debug/pools?pool=models/llama", "/debug/pools"
	for _, path := range []string{one, all, "/", "/tables"} {
		want("9091", http.MethodGet, path, "", http.StatusUnauthorized)
		want("9091", http.MethodGet, path, "forged", http.StatusUnauthorized)
		want("9091", http.MethodGet, path, token, http.StatusForbidden)
		want("9090", http.MethodGet, path, token, http.StatusNotFound)
	}
	want("9091", http.MethodPost, explain, "", http.StatusUnauthorized)
	want("9091", http.MethodPost, explain, token, http.StatusForbidden)
	want("9090", http.MethodPost, explain, token, http.StatusNotFound)
	want("9090", http.MethodGet, "/metrics", "", http.StatusOK)
	want("9091", http.MethodGet, "/healthz", "", http.StatusOK)

	applyYAML(ctx, t, readerYAML)
	eventually(ctx, t, "an explanation for who may have it", func(ctx context.Context) error { // a refusal is cached for 10 s
		status, text, err := ask(ctx, "9091", http.MethodPost, explain, token)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, text)
		}
		return err
	})
	want("9091", http.MethodPost, "/debug/explain?pool=shop/other", token, http.StatusForbidden)
	// The right to one pool does not open the page of all pools.
	want("9091", http.MethodGet, "/?pool=models/llama", token, http.StatusForbidden)
}
