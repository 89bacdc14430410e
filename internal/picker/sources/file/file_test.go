package file

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/sources/sourcestest"
)

var silent = slog.New(slog.DiscardHandler)

func TestOpenFile(t *testing.T) {
	tests := map[string]struct {
		content string
		want    map[string][]string
		wantErr []string // all of these are told
	}{
		"two pools": {
			content: "pools:\n- name: a/b\n  endpoints: ['10.0.0.1:80', '[fd00::1]:80']\n- name: a/c\n",
			want:    map[string][]string{"a/b": {"10.0.0.1:80", "[fd00::1]:80"}, "a/c": {}},
		},
		"annotations": {
			content: "pools:\n- name: a/b\n  annotations: {inference-waypoint.io/pick-session-header: x-chat}\n",
			want:    map[string][]string{"a/b": {}},
		},
		"wrong annotations": {
			content: "pools:\n- name: a/b\n  annotations: {inference-waypoint.io/pick-spread: much}\n", wantErr: []string{"pool a/b", "pick-spread"},
		},
		"no pools":      {content: "pools: []\n"},
		"empty":         {wantErr: []string{"pools"}},
		"not YAML":      {content: "pools: [\n", wantErr: []string{"yaml"}},
		"unknown field": {content: "pools:\n- name: a/b\n  weight: 1\n", wantErr: []string{"weight"}},
		"all that is wrong at once": {
			content: "pools:\n- name: ab\n- name: a/b\n  endpoints: ['host:80', '10.0.0.1', '10.0.0.1:0']\n- name: a/b\n",
			wantErr: []string{`"ab"`, `"host:80"`, `"10.0.0.1"`, `"10.0.0.1:0"`, "a/b is there twice"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pools.yaml")
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			f := sourcestest.NewFleet()
			_, err := Open(path, time.Second, f, silent)
			if (err != nil) != (tt.wantErr != nil) {
				t.Fatalf("error is %v, want one: %v", err, tt.wantErr != nil)
			}
			for _, want := range tt.wantErr {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not tell of %s: %v", want, err)
				}
			}
			if len(f.Names()) != len(tt.want) {
				t.Errorf("pools are %v", f.Names())
			}
			for name, want := range tt.want {
				if diff := cmp.Diff(want, sourcestest.AddressesOf(f, name)); diff != "" {
					t.Errorf("endpoints of %s (-want +got):\n%s", name, diff)
				}
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		f := sourcestest.NewFleet()
		if _, err := Open(filepath.Join(t.TempDir(), "none"), time.Second, f, silent); err == nil {
			t.Error("no error for a file that is not there")
		}
	})
}

func TestFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pools.yaml")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("pools:\n- name: a/b\n  endpoints: ['10.0.0.1:80']\n- name: a/c\n")
	f := sourcestest.NewFleet()
	var log sourcestest.Buffer
	s, err := Open(path, time.Millisecond, f, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	synced := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx, func() { close(synced) }) })
	defer running.Wait()
	defer stop()
	<-synced

	is := func(name string, want ...string) func() bool {
		return func() bool { return cmp.Equal(want, sourcestest.AddressesOf(f, name)) }
	}
	// 1. A change takes effect; a pool that is no longer there is gone.
	write("pools:\n- name: a/b\n  endpoints: ['10.0.0.2:80']\n")
	sourcestest.Eventually(t, "the new endpoint", is("a/b", "10.0.0.2:80"))
	sourcestest.Eventually(t, "the removal of a/c", func() bool { return sourcestest.AddressesOf(f, "a/c") == nil })
	// 2. A wrong file is logged once and changes nothing.
	write("pools: [")
	sourcestest.Eventually(t, "a word on the wrong file", func() bool { return strings.Contains(log.String(), "last good content stays") })
	time.Sleep(20 * time.Millisecond)
	if n := strings.Count(log.String(), "last good content stays"); n != 1 {
		t.Errorf("a wrong file is told %d times, want once", n)
	}
	if !is("a/b", "10.0.0.2:80")() {
		t.Errorf("a wrong file changed the endpoints to %v", sourcestest.AddressesOf(f, "a/b"))
	}
	// 3. So is a missing file.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	sourcestest.Eventually(t, "a word on the missing file", func() bool { return strings.Count(log.String(), "last good content stays") == 2 })
	if !is("a/b", "10.0.0.2:80")() {
		t.Errorf("a missing file changed the endpoints to %v", sourcestest.AddressesOf(f, "a/b"))
	}
	// 4. The next good file is applied.
	write("pools:\n- name: a/b\n  endpoints: ['10.0.0.3:80']\n")
	sourcestest.Eventually(t, "the mended file", is("a/b", "10.0.0.3:80"))
}

func TestSampleFile(t *testing.T) {
	f := sourcestest.NewFleet()
	if _, err := Open("../../../../samples/static/pools.yaml", time.Second, f, silent); err != nil {
		t.Fatal(err)
	}
	if len(f.Names()) != 2 {
		t.Errorf("the sample has pools %v, want two", f.Names())
	}
}
