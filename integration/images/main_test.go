package main

import (
	"archive/tar"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// program is small, so that a build for two platforms is quick.
const program = "integration/echo"

// epoch is the time of the images.
const epoch = 1_700_000_000

// An archive holds the program for each platform, for an unprivileged user, with the trusted authorities, at the requested
// time. The same checkout gives the same bytes.
func TestImages(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", strconv.Itoa(epoch))
	first, second := t.TempDir(), t.TempDir()
	for _, out := range []string{first, second} {
		if err := run(t.Context(), []string{"-out", out, "-version", "v1.2.3", program}, os.Stderr); err != nil {
			t.Fatal(err)
		}
	}
	one, two := read(t, filepath.Join(first, "echo.tar")), read(t, filepath.Join(second, "echo.tar"))
	if string(one) != string(two) {
		t.Error("two builds differ")
	}

	index := open(t, filepath.Join(first, "echo.tar"))
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, d := range manifest.Manifests {
		platforms = append(platforms, d.Platform.String())
		t.Run(d.Platform.String(), func(t *testing.T) {
			image, err := index.Image(d.Digest)
			if err != nil {
				t.Fatal(err)
			}
			checkImage(t, image, d.Platform)
		})
	}
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, platforms); diff != "" {
		t.Errorf("platforms (-want +got):\n%s", diff)
	}
	bills, err := filepath.Glob(filepath.Join(first, "*.spdx.json"))
	if err != nil || len(bills) == 0 {
		t.Errorf("no bill of materials was written (%v)", err)
	}
}

func checkImage(t *testing.T, image v1.Image, platform *v1.Platform) {
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != platform.OS || config.Architecture != platform.Architecture {
		t.Errorf("its configuration says %s/%s", config.OS, config.Architecture)
	}
	if config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{"/ko-app/echo"}) {
		t.Errorf("user %q, entrypoint %q", config.Config.User, config.Config.Entrypoint)
	}
	if got := config.Config.Labels["org.opencontainers.image.version"]; got != "v1.2.3" {
		t.Errorf("the label of the version is %q", got)
	}
	if config.Created.Unix() != epoch {
		t.Errorf("it was made at %s, want what SOURCE_DATE_EPOCH says", config.Created)
	}
	files := filesOf(t, image)
	elf := files["ko-app/echo"]
	machine := map[string]byte{"amd64": 62, "arm64": 183}[platform.Architecture] // e_machine of an ELF file
	if len(elf) < 20 || string(elf[:4]) != "\x7fELF" || elf[18] != machine {
		t.Errorf("the program is not one of %s", platform)
	}
	if !strings.Contains(string(files["etc/passwd"]), "nonroot:x:65532:65532:") {
		t.Errorf("/etc/passwd is %q", files["etc/passwd"])
	}
	if !x509.NewCertPool().AppendCertsFromPEM(files["etc/ssl/certs/ca-certificates.crt"]) {
		t.Error("it trusts no authority")
	}
	for name := range files {
		if strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "usr/") {
			t.Errorf("it holds %s, which nobody asked for", name)
		}
	}
}

func TestWrongOptions(t *testing.T) {
	err := run(t.Context(), []string{"-out", t.TempDir(), "-platforms", "linux"}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "-platforms") {
		t.Errorf("got %v, want an error that names the flag", err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "today")
	if err := run(t.Context(), []string{"-out", t.TempDir()}, io.Discard); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Errorf("got %v, want an error that names the variable", err)
	}
}

// open unpacks an archive and returns its only image.
func open(t *testing.T, archive string) v1.ImageIndex {
	t.Helper()
	dir := t.TempDir()
	unpack(t, archive, dir)
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := root.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Annotations["io.containerd.image.name"] != "docker.io/inference-waypoint/echo:v1.2.3" {
		text, _ := json.Marshal(manifest)
		t.Fatalf("the archive holds %s", text)
	}
	index, err := root.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	for name, content := range tarFiles(t, strings.NewReader(string(read(t, archive)))) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func filesOf(t *testing.T, image v1.Image) map[string][]byte {
	t.Helper()
	flat := mutate.Extract(image)
	defer func() { _ = flat.Close() }()
	return tarFiles(t, flat)
}

func tarFiles(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimPrefix(h.Name, "/")] = content
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
