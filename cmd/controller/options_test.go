package main

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

func TestParseOptions(t *testing.T) {
	picker := &translate.ServicePort{
		Service: types.NamespacedName{Namespace: "inference-system", Name: "inference-picker"},
		Port:    9002,
	}
	tests := map[string]struct {
		args       []string
		want       translate.Settings
		wantErrors []string
	}{
		"defaults": {
			want: translate.Settings{RootNamespace: "istio-system", HostSuffix: "inference.internal", ClusterDomain: "cluster.local", DefaultPicker: picker},
		},
		"no default picker": {
			args: []string{"--default-picker=", "--host-suffix=ai.example"},
			want: translate.Settings{RootNamespace: "istio-system", HostSuffix: "ai.example", ClusterDomain: "cluster.local"},
		},
		"hosts that pools may claim": {
			args: []string{"--default-picker=", "--allow-host=models=Chat.example.com", "--allow-host=*=*.example.com"},
			want: translate.Settings{RootNamespace: "istio-system", HostSuffix: "inference.internal", ClusterDomain: "cluster.local", HostClaims: []translate.HostClaim{
				{Namespace: "models", Host: "chat.example.com"}, {Namespace: "*", Host: "*.example.com"},
			}},
		},
		"all that is wrong at once": {
			args: []string{
				"--default-picker=picker:9002", "--host-suffix=-", "--cluster-domain=a_b", "--metrics-address=9090",
				"--health-address=x", "--log-level=loud", "--allow-host=chat.example.com", "--allow-host=models=*", "--leader-elect", "--leader-elect-namespace=A", "--watch-waypoints=1m", "--watch-pickers=1ms",
			},
			wantErrors: []string{
				"--default-picker", "--host-suffix", "--cluster-domain", "--metrics-address", "--health-address",
				"--log-level", "--leader-elect-namespace", `"chat.example.com" is not namespace=host`, "neither a host nor *.domain", "--watch-waypoints", "--watch-pickers",
			},
		},
		"uninstalling needs a lease": {args: []string{"--uninstall", "--leader-elect-namespace=A", "--drain=-1s"}, wantErrors: []string{"--leader-elect-namespace", "--drain"}},
		"port out of range":          {args: []string{"--default-picker=a/b:70000"}, wantErrors: []string{"--default-picker"}},
		"stray argument":             {args: []string{"serve"}, wantErrors: []string{"serve"}},
		"unknown flag":               {args: []string{"--verbose"}, wantErrors: []string{"--verbose"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := parseOptions(tt.args, io.Discard)
			if len(tt.wantErrors) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, o.settings()); diff != "" {
					t.Errorf("settings (-want +got):\n%s", diff)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.wantErrors {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %s", err, want)
				}
			}
		})
	}
}

func TestRunFailsWithoutAPIServer(t *testing.T) {
	err := run(t.Context(), []string{"--kubeconfig=/nonexistent/kubeconfig"}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "finding the API server") {
		t.Errorf("got %v, want an error that says what is missing", err)
	}
}
