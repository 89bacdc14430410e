package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/reconcile"
	"github.com/inference-waypoint/inference-waypoint/internal/poolkey"
)

func fakeClient(t *testing.T) client.WithWatch {
	t.Helper()
	scheme, err := reconcile.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).Build()
}

// anothers is a lease that another replica always holds.
type anothers struct{ resourcelock.Interface }

func (anothers) Identity() string   { return "this replica" }
func (anothers) Describe() string   { return "a lease" }
func (anothers) RecordEvent(string) {}

func (anothers) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	now := metav1.Now()
	record := &resourcelock.LeaderElectionRecord{HolderIdentity: "another replica", LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}
	return record, []byte(now.String()), nil
}

// waitingManager is the manager of a replica that never leads.
func waitingManager(t *testing.T, mapper meta.RESTMapper) manager.Manager {
	t.Helper()
	scheme, err := reconcile.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	m, err := ctrl.NewManager(&rest.Config{}, ctrl.Options{
		Scheme:                              scheme,
		MapperProvider:                      func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return mapper, nil },
		Metrics:                             metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress:              "0",
		LeaderElection:                      true,
		LeaderElectionID:                    leaseName,
		LeaderElectionResourceLockInterface: anothers{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A replica without the lease ends too when the Secret has another key. Only the leading replica writes.
func TestEveryReplicaKeepsTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := fakeClient(t), waitingManager(t, meta.NewDefaultRESTMapper(nil))
		acted := false
		if err := m.Add(manager.RunnableFunc(func(context.Context) error { acted = true; return nil })); err != nil {
			t.Fatal(err)
		}
		key, err := poolkey.Ensure(t.Context(), c, "pickers", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := keepKey(m, c, "pickers", key); err != nil {
			t.Fatal(err)
		}
		if err := poolkey.Delete(t.Context(), c, "pickers"); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
		defer stop()
		if err := m.Start(ctx); err == nil || !strings.Contains(err.Error(), "has changed") {
			t.Errorf("it ended with %v, want that the key has changed", err)
		}
		if acted {
			t.Error("it acted without the lease")
		}
	})
}

// Uninstall deletes the picker's objects in the picker's namespace, whatever namespace the lease is in.
func TestKeyIsTakenBackFromWhereItWasMade(t *testing.T) {
	for name, picker := range map[string]string{"beside the picker": "pickers/inference-picker:9002", "without a picker any more": ""} {
		t.Run(name, func(t *testing.T) {
			o, err := parseOptions([]string{"--default-picker=" + picker, "--leader-elect", "--leader-elect-namespace=leases", "--drain=0s"}, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			c := fakeClient(t)
			if _, err := poolkey.Ensure(t.Context(), c, o.pickerNamespace(), time.Now()); err != nil {
				t.Fatal(err)
			}
			if err := o.takeBack(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			var left corev1.SecretList
			if err := c.List(t.Context(), &left); err != nil || len(left.Items) != 0 {
				t.Errorf("left are %d Secrets (%v)", len(left.Items), err)
			}
		})
	}
}
