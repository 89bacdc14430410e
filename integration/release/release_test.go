// Package release tests the contents of a release, which it builds for one platform.
package release

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const version = "v0.0.0-test.1"

func build(t *testing.T, out string, environment ...string) (string, error) {
	t.Helper()
	tools, err := filepath.Abs("../../.tools")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("./release.sh", version, out)
	platform := runtime.GOOS + "/" + runtime.GOARCH
	cmd.Env = append(os.Environ(), append([]string{
		"TOOLS_DIR=" + tools, "IMAGE_PLATFORMS=" + platform, "PLUGIN_PLATFORMS=" + platform,
	}, environment...)...)
	text, err := cmd.CombinedOutput()
	return string(text), err
}

func TestRelease(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	if text, err := build(t, out, "TRIAL=1"); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	plugin := fmt.Sprintf("kubectl-inference_%s_%s_%s.tar.gz", version, runtime.GOOS, runtime.GOARCH)
	wanted := []string{
		"CHANGELOG.md", "controller.cdx.json", "install-monitoring.yaml", "install.yaml", "istio-overlay.yaml",
		"kubectl-inference.cdx.json", "picker.cdx.json", plugin, "inference-waypoint-" + strings.TrimPrefix(version, "v") + ".tgz",
	}
	sums := checksums(t, out)
	for _, name := range wanted {
		if sums[name] == "" {
			t.Errorf("SHA256SUMS has no %s", name)
		}
	}
	install, err := os.ReadFile(filepath.Join(out, "install.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{"kind: Namespace": true, "kind: Deployment": true, ":" + version: true, "kind: Job": false} {
		if strings.Contains(string(install), text) != want {
			t.Errorf("install.yaml has %q: %v, want %v", text, !want, want)
		}
	}
	images := 0
	for name, sum := range sums {
		content, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(content)); got != sum {
			t.Errorf("%s has the checksum %s, want %s", name, got, sum)
		}
		if strings.HasPrefix(name, "images/") && strings.HasSuffix(name, ".tar") {
			images++
		}
	}
	if images < 2 {
		t.Errorf("%d images, want those of the controller and the picker", images)
	}
	if got := names(t, filepath.Join(out, plugin)); !slices.Contains(got, "./kubectl-inference") || !slices.Contains(got, "./LICENSE") {
		t.Errorf("the plugin's archive has %v", got)
	}
	materials(t, filepath.Join(out, "picker.cdx.json"))
	changelog(t, filepath.Join(out, "CHANGELOG.md"))
}

func TestReleaseRefuses(t *testing.T) {
	there := t.TempDir()
	for name, test := range map[string]struct{ version, out, want string }{
		"no version":         {"1.2", filepath.Join(there, "new"), "is no version"},
		"an output in place": {version, there, "is there already"},
		"no tag":             {"v99.99.99", filepath.Join(there, "new"), "TRIAL=1"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("./release.sh", test.version, test.out)
			text, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !strings.Contains(string(text), test.want) {
				t.Errorf("got %v: %s", err, text)
			}
			if _, err := os.Stat(filepath.Join(there, "new")); err == nil {
				t.Error("something was built")
			}
		})
	}
}

// checksums returns the checksums in SHA256SUMS by file name.
func checksums(t *testing.T, out string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(out, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(text)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		sums[name] = sum
	}
	return sums
}

func names(t *testing.T, archive string) []string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

// materials checks that a bill of materials has a module of the picker.
func materials(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		Components []struct {
			Name string `json:"name"`
		} `json:"components"`
	}
	if err := json.Unmarshal(text, &bill); err != nil {
		t.Fatal(err)
	}
	for _, c := range bill.Components {
		if c.Name == "google.golang.org/grpc" {
			return
		}
	}
	t.Errorf("the bill of materials of the picker has %d components, and not gRPC", len(bill.Components))
}

// changelog checks that a changelog has each unreleased change.
func changelog(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := filepath.Glob("../../docs/changes/unreleased/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range changes {
		content, err := os.ReadFile(change)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(strings.TrimSpace(string(content)), "\n") {
			kind, title, ok := strings.Cut(line, ": ")
			ok = ok && slices.Contains([]string{"breaking", "security", "feature", "fix"}, kind)
			if i == 0 && !ok {
				t.Errorf("%s does not begin with its kind: %q", change, line)
			}
			want := "\n  " + line
			if ok {
				want = "\n- " + title
			}
			if !strings.Contains(string(text), want) {
				t.Errorf("the changelog does not have %q", want)
			}
		}
	}
}
