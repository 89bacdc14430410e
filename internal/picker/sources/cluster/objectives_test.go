package cluster

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// apis is an API server that has lists of InferenceObjectives by API group, and no more events after the list.
func apis(t *testing.T, lists map[string]string) *Objectives {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for group, items := range lists {
			if !strings.HasPrefix(r.URL.Path, "/apis/"+group+"/v1alpha2/inferenceobjectives") {
				continue
			}
			if r.URL.Query().Get("sendInitialEvents") != "" { // the watch falls back to a list
				break
			}
			w.Header().Set("Content-Type", "application/json")
			if r.URL.Query().Get("watch") != "" {
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			_, _ = fmt.Fprintf(w, `{"apiVersion":"%s/v1alpha2","kind":"InferenceObjectiveList","metadata":{"resourceVersion":"1"},"items":[%s]}`, group, items)
			return
		}
		reason, code := "NotFound", http.StatusNotFound
		if r.URL.Query().Get("sendInitialEvents") != "" {
			reason, code = "Invalid", http.StatusUnprocessableEntity
		}
		http.Error(w, fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, code), code)
	}))
	t.Cleanup(server.Close)
	fleet := poolstate.New(poolstate.Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry())})
	o, err := NewObjectives(&rest.Config{Host: server.URL}, fleet)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func objective(group, name, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"%s/v1alpha2","kind":"InferenceObjective","metadata":{"name":%q,"namespace":"models"},"spec":{%s}}`, group, name, spec)
}

// Objectives of both API groups count, those of the newer before those of the older, and only those of InferencePools.
func TestObjectives(t *testing.T) {
	const older, newer = "inference.networking.x-k8s.io", "llm-d.ai"
	o := apis(t, map[string]string{
		older: strings.Join([]string{
			objective(older, "both", `"priority":1,"poolRef":{"group":"inference.networking.k8s.io","kind":"InferencePool","name":"llama"}`),
			objective(older, "old", `"priority":-7,"poolRef":{"name":"llama"}`),
			objective(older, "unset", `"poolRef":{"name":"llama"}`),
			objective(older, "absurd", `"priority":2147483647,"poolRef":{"name":"other"}`),
		}, ","),
		newer: strings.Join([]string{
			objective(newer, "both", `"priority":2,"poolRef":{"name":"llama"}`),
			objective(newer, "elsewhere", `"priority":3,"poolRef":{"group":"example.com","name":"llama"}`),
			objective(newer, "a-service", `"priority":3,"poolRef":{"kind":"Service","name":"llama"}`),
		}, ","),
	})
	synced := make(chan struct{})
	go o.Run(t.Context(), func() { close(synced) })
	select {
	case <-synced:
	case <-time.After(5 * time.Second):
		t.Fatal("calls wait for priorities")
	}
	want := map[types.NamespacedName]map[string]int{
		{Namespace: "models", Name: "llama"}: {"both": 2, "old": -7, "unset": 0},
		{Namespace: "models", Name: "other"}: {"absurd": 1000},
	}
	var diff string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if diff = cmp.Diff(want, o.give(nil)); diff == "" {
			return
		}
	}
	t.Errorf("objectives (-want +got):\n%s", diff)
}

// A cluster without these APIs has no objectives, and is not watched for them.
func TestNoObjectives(t *testing.T) {
	o := apis(t, nil)
	for i := range o.apis {
		if o.apis[i].exists(t.Context()) {
			t.Errorf("the API %s exists", objectiveVersions[i])
		}
	}
	if got := o.give(map[types.NamespacedName]map[string]int{{Namespace: "models", Name: "llama"}: {"gone": 1}}); len(got) != 0 {
		t.Errorf("there are objectives: %v", got)
	}
}

func TestObjectivesAreCopied(t *testing.T) {
	var list ObjectiveList
	if err := json.Unmarshal([]byte(`{"items":[`+objective("llm-d.ai", "a", `"priority":1,"poolRef":{"name":"p"}`)+`]}`), &list); err != nil {
		t.Fatal(err)
	}
	list.Items[0].Labels = map[string]string{"a": "b"}
	twin := list.DeepCopyObject().(*ObjectiveList)
	twin.Items[0].Labels["a"], twin.Items[0].Spec.Priority = "c", 2
	if list.Items[0].Labels["a"] != "b" || list.Items[0].Spec.Priority != 1 {
		t.Errorf("a copy shares memory: %+v", list)
	}
}
