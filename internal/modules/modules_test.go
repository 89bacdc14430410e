package modules

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const module = "sigs.k8s.io/gateway-api"

func TestDir(t *testing.T) {
	dir, err := Dir(t.Context(), "../..", module)
	if err != nil {
		t.Fatal(err)
	}
	if files, err := filepath.Glob(filepath.Join(dir, "config", "crd", "standard", "*.yaml")); err != nil || len(files) == 0 {
		t.Errorf("%s holds no definitions (%v)", dir, err)
	}
}

// Where the module cache is empty and a proxy is at hand, nothing is asked of the proxy.
func TestDirDownloadsNothing(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was downloaded", r.URL)
		http.NotFound(w, r)
	}))
	defer proxy.Close()
	cache := t.TempDir()
	t.Setenv("GOMODCACHE", cache)
	t.Setenv("GOPROXY", proxy.URL)
	if dir, err := Dir(t.Context(), "../..", module); err == nil || !strings.Contains(err.Error(), "make modules") {
		t.Errorf("an empty cache gives %q and %v, want an error that says what to do", dir, err)
	}
	if found, _ := os.ReadDir(filepath.Join(cache, "sigs.k8s.io")); len(found) != 0 {
		t.Errorf("the cache holds %v", found)
	}
}
