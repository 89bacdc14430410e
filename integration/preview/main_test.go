package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestPreview runs the preview, which fails if calls fail or if picking is not clearly better than Envoy's round robin, as
// when no call is picked.
func TestPreview(t *testing.T) {
	const envoy = "../../.tools/envoy"
	if _, err := os.Stat(envoy); err != nil {
		t.Fatalf("there is no Envoy: make tools installs one: %v", err)
	}
	bin := t.TempDir()
	for module, pkg := range map[string]string{"../..": "./cmd/picker", "../../samples/modelserver": "."} {
		if out, err := exec.Command("go", "build", "-C", module, "-tags", "standalone", "-o", bin+"/", pkg).CombinedOutput(); err != nil {
			t.Fatalf("building: %v: %s", err, out)
		}
	}
	if said, err := exec.Command(bin + "/picker").CombinedOutput(); err == nil || !strings.Contains(string(said), "--static FILE") {
		t.Errorf("without a file of pools the picker ends with %v and says %q", err, said)
	}
	var out strings.Builder
	if err := run(t.Context(), []string{"-envoy", envoy, "-bin", bin}, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"with picking:", "with Envoy's round robin:", "196 of 196"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output does not say %q:\n%s", want, out.String())
		}
	}
}

// TestPreviewSaysWhatIsMissing expects an error that names the missing program.
func TestPreviewSaysWhatIsMissing(t *testing.T) {
	err := run(t.Context(), []string{"-bin", t.TempDir()}, &strings.Builder{})
	if err == nil || !strings.Contains(err.Error(), "modelserver") {
		t.Errorf("error %v, want one that names the program", err)
	}
}
