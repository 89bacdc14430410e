package mesh

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
)

func (m *Mesh) logger(name string) (*slog.Logger, error) {
	file, err := os.Create(filepath.Join(m.logs, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("opening the log of the %s: %w", name, err)
	}
	return slog.New(slog.NewTextHandler(file, nil)), nil
}

// ShowLogs writes the last lines of every log.
func (m *Mesh) ShowLogs(w io.Writer, lines int) {
	files, _ := filepath.Glob(filepath.Join(m.logs, "*.log")) // the pattern is a constant: it cannot be malformed
	for _, file := range files {
		_, _ = fmt.Fprintf(w, "==> %s\n%s\n", filepath.Base(file), process.LogTail(file, lines))
	}
}

// KeepLogs copies all logs to a directory that outlives the mesh.
func (m *Mesh) KeepLogs(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("keeping logs: %w", err)
	}
	if err := os.CopyFS(dir, os.DirFS(m.logs)); err != nil {
		return fmt.Errorf("keeping logs: %w", err)
	}
	return nil
}
