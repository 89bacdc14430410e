// Package modules finds the folders of Go modules, for what is read out of modules beside code: definitions of kinds of
// objects, mostly. It downloads nothing, since its callers are in namespaces without a network; make modules downloads.
package modules

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Dir is the folder of a module, in the version that the go.mod in the directory pin requires. A module that has not
// been downloaded is an error, wherever the caller is, so that a missing download is seen on machines with a network too.
func Dir(ctx context.Context, pin, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-C", pin, "-m", "-f", "{{.Dir}}", module)
	cmd.Env = append(os.Environ(), "GOPROXY=off")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("finding module %s, which make modules downloads: %w: %s", module, err, strings.TrimSpace(stderr.String()))
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		return "", fmt.Errorf("finding module %s: it is not in Go's module cache: run make modules", module)
	}
	return dir, nil
}
