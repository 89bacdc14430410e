package main

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/ko/pkg/build"
)

// writeArchive writes ko's result, an image or an index of several platforms, as a tar of an OCI image layout. docker load,
// podman load, skopeo, crane and kind accept it. The same image gives the same bytes.
func writeArchive(file, name, tag string, built build.Result) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".layout-*")
	if err != nil {
		return fmt.Errorf("making a directory for the layout: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("writing the layout of %s: %w", name, err)
	}
	// The first annotation is the layout's own. docker and containerd name the image by the second.
	names := layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag,
		"io.containerd.image.name":          "docker.io/" + name + ":" + tag,
	})
	switch built := built.(type) {
	case v1.ImageIndex:
		err = path.AppendIndex(built, names)
	case v1.Image:
		err = path.AppendImage(built, names)
	default:
		err = fmt.Errorf("a %T is neither an image nor an index", built)
	}
	if err != nil {
		return fmt.Errorf("writing the layout of %s: %w", name, err)
	}
	out, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("writing the archive of %s: %w", name, err)
	}
	defer func() {
		if closing := out.Close(); err == nil && closing != nil {
			err = fmt.Errorf("writing the archive of %s: %w", name, closing)
		}
	}()
	if err := pack(out, dir); err != nil {
		return fmt.Errorf("writing the archive of %s: %w", name, err)
	}
	return nil
}

// pack writes a directory's files in the order of their names, without owners or times.
func pack(out io.Writer, dir string) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: filepath.ToSlash(name), Mode: 0o644, Size: info.Size(), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = io.Copy(w, file)
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}
