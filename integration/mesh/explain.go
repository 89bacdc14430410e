package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"

	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/review"
)

// Token returns a fresh token of a service account.
func (m *Mesh) Token(ctx context.Context, namespace, account string) (string, error) {
	return m.cluster.Token(ctx, namespace, account)
}

// readersToken returns the token of an account that may read the picker's state. The token is made once: pickers cache its
// rights, and limit how often they ask the API server.
func (m *Mesh) readersToken(ctx context.Context) (string, error) {
	m.reader.Lock()
	defer m.reader.Unlock()
	var err error
	if m.reader.token == "" {
		m.reader.token, err = m.Token(ctx, "inference-system", "inference-reader")
	}
	return m.reader.token, err
}

func (m *Mesh) forgetReader() {
	m.reader.Lock()
	defer m.reader.Unlock()
	m.reader.token = ""
}

// Explain asks the picker which endpoint it would pick for a chat completion with this body, and why.
func (m *Mesh) Explain(ctx context.Context, pool string, body []byte) (*livestate.Explanation, error) {
	picker, err := m.cluster.ReadyPod(ctx, "inference-system", map[string]string{"app.kubernetes.io/name": "inference-picker"})
	if err != nil {
		return nil, err
	}
	return m.ExplainAt(ctx, picker, pool, body)
}

// ExplainAt is Explain at one of several pickers.
func (m *Mesh) ExplainAt(ctx context.Context, picker *corev1.Pod, pool string, body []byte) (*livestate.Explanation, error) {
	target := url.URL{
		Scheme: "http", Host: net.JoinHostPort(picker.Status.PodIP, "9091"), Path: "/debug/explain",
		RawQuery: url.Values{"pool": {pool}}.Encode(),
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("asking for an explanation: %w", err)
	}
	token, err := m.readersToken(ctx)
	if err != nil {
		return nil, err
	}
	request.Header.Set(review.TokenHeader, "Bearer "+token)
	text, err := process.Ask(request)
	if err != nil {
		m.forgetReader() // the account is gone, as after the product's uninstallation
		return nil, fmt.Errorf("asking for an explanation: %w", err)
	}
	out := &livestate.Explanation{}
	if err := json.Unmarshal(text, out); err != nil {
		return nil, fmt.Errorf("reading an explanation: %w", err)
	}
	return out, nil
}
