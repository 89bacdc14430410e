// Package file keeps a fleet's pools as a YAML file has them, and reads the file when it changes. It needs no cluster.
package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// File is the YAML file, whose pools the fleet has.
type File struct {
	path     string
	interval time.Duration
	fleet    *poolstate.Fleet
	log      *slog.Logger
	content  []byte // as last read, right or wrong
}

// Open reads the pools of a file into the fleet; Run then reads the file every interval. Only Open fails if the file
// cannot be read or is wrong.
func Open(path string, interval time.Duration, f *poolstate.Fleet, log *slog.Logger) (*File, error) {
	s := &File{path: path, interval: interval, fleet: f, log: log}
	if _, err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

// Run applies the file's changes until the context ends; it calls synced at once. A wrong file leaves the pools as they
// are and is logged once. Run compares the content and needs no file watch, which works on every file system and with
// the symbolic links of mounted ConfigMaps.
func (s *File) Run(ctx context.Context, synced func()) {
	synced()
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch changed, err := s.load(); {
		case err != nil && changed:
			s.log.Error("the pools file is wrong; its last good content stays in force", "file", s.path, "error", err)
		case changed:
			s.log.Info("read the changed pools file", "file", s.path, "pools", len(s.fleet.Names()))
		}
	}
}

// load reads the file and applies it. It reports whether the content has changed; a file that cannot be read counts as
// empty.
func (s *File) load() (changed bool, err error) {
	content, err := os.ReadFile(s.path)
	if s.content != nil && bytes.Equal(s.content, content) {
		return false, err
	}
	s.content = append([]byte{}, content...)
	if err != nil {
		return true, fmt.Errorf("reading pools: %w", err)
	}
	pools, err := parseFile(content)
	if err != nil {
		return true, fmt.Errorf("reading pools from %s: %w", s.path, err)
	}
	s.apply(pools)
	return true, nil
}

func (s *File) apply(pools []filePool) {
	named := make(map[types.NamespacedName]bool, len(pools))
	for _, p := range pools {
		named[p.name] = true
		s.fleet.Configure(p.name, p.settings)
		s.fleet.SetPool(pool.Pool{Name: p.name}, p.endpoints)
	}
	for _, name := range s.fleet.Names() {
		if !named[name] {
			s.fleet.RemovePool(name)
		}
	}
}

// filePool is one valid pool of a file.
type filePool struct {
	name      types.NamespacedName
	endpoints []pool.Endpoint
	settings  picksettings.Settings
}

// parseFile parses the file: a list "pools", each with a name "namespace/name", its endpoints "ip:port", and the
// annotations that it would have as an InferencePool. The error lists all that is wrong.
func parseFile(content []byte) ([]filePool, error) {
	var doc struct {
		Pools []struct {
			Name        string            `json:"name"`
			Endpoints   []string          `json:"endpoints"`
			Annotations map[string]string `json:"annotations"`
		} `json:"pools"`
	}
	if err := yaml.UnmarshalStrict(content, &doc); err != nil {
		return nil, err
	}
	if doc.Pools == nil {
		return nil, errors.New(`the list "pools" is missing`) // also the case while the file is being written
	}
	var out []filePool
	var wrong []error
	seen := map[types.NamespacedName]bool{}
	for i, p := range doc.Pools {
		name, ok := pool.ParseName(p.Name)
		if !ok {
			wrong = append(wrong, fmt.Errorf("pools[%d].name is %q: want namespace/name", i, p.Name))
			continue
		}
		if seen[name] {
			wrong = append(wrong, fmt.Errorf("pools[%d].name: %s is there twice", i, name))
		}
		seen[name] = true
		endpoints, err := parseEndpoints(p.Endpoints)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("pool %s: %w", name, err))
		}
		settings, invalid := picksettings.Parse(p.Annotations)
		for _, err := range invalid {
			wrong = append(wrong, fmt.Errorf("pool %s: %w", name, err))
		}
		out = append(out, filePool{name: name, endpoints: endpoints, settings: settings})
	}
	return out, errors.Join(wrong...)
}

func parseEndpoints(texts []string) ([]pool.Endpoint, error) {
	var out []pool.Endpoint
	var wrong []error
	for _, text := range texts {
		addr, err := netip.ParseAddrPort(text)
		if err != nil || addr.Port() == 0 {
			wrong = append(wrong, fmt.Errorf("endpoint %q: want ip:port", text))
			continue
		}
		out = append(out, pool.Endpoint{Address: addr})
	}
	return out, errors.Join(wrong...)
}
