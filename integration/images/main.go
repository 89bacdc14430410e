// Command images builds the container images of our programs with ko, without a daemon or a registry: for each program one
// OCI archive for all platforms, and SPDX bills of materials. The same commit gives the same bytes: the images' time is
// SOURCE_DATE_EPOCH, in seconds since 1970, or 1970 without it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/ko/pkg/build"
)

const (
	module = "github.com/inference-waypoint/inference-waypoint"
	// repository is the beginning of the images' names in manifests and samples.
	repository = "inference-waypoint"
)

// options are the command's flags and arguments.
type options struct {
	root, out, version string
	created            time.Time
	platforms          []v1.Platform
	programs           []string // packages, relative to the checkout
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	var platforms string
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.root, "root", "../..", "the checkout's `directory`")
	flags.StringVar(&o.out, "out", "dist/images", "the `directory` to write to, from the checkout's if it is relative")
	flags.StringVar(&o.version, "version", "dev", "the images' tag and label")
	flags.StringVar(&platforms, "platforms", "linux/amd64,linux/arm64", "what the images are built for")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.created = time.Unix(0, 0).UTC()
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return o, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		o.created = time.Unix(seconds, 0).UTC()
	}
	for p := range strings.SplitSeq(platforms, ",") {
		platform, err := v1.ParsePlatform(p)
		if err != nil || platform.OS == "" || platform.Architecture == "" {
			return o, fmt.Errorf("-platforms: %q is not os/architecture", p)
		}
		o.platforms = append(o.platforms, *platform)
	}
	if o.programs = flags.Args(); len(o.programs) == 0 {
		o.programs = []string{"cmd/controller", "cmd/picker", "samples/modelserver"}
	}
	if !filepath.IsAbs(o.out) {
		o.out = filepath.Join(o.root, o.out)
	}
	return o, nil
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("making the directory to write to: %w", err)
	}
	log.SetOutput(io.Discard) // ko's log of the checkout's state; its errors are returned
	made, err := base(o.platforms)
	if err != nil {
		return err
	}
	for _, program := range o.programs {
		image := repository + "/" + path.Base(program)
		builder, err := o.builder(ctx, o.moduleOf(program), made)
		if err != nil {
			return err
		}
		result, err := builder.Build(ctx, build.StrictScheme+path.Join(module, program))
		if err != nil {
			return fmt.Errorf("building %s: %w", image, err)
		}
		file := filepath.Join(o.out, path.Base(program)+".tar")
		if err := writeArchive(file, image, o.version, result); err != nil {
			return err
		}
		digest, err := result.Digest()
		if err != nil {
			return fmt.Errorf("digesting %s: %w", image, err)
		}
		_, _ = fmt.Fprintf(stderr, "%s:%s@%s in %s\n", image, o.version, digest, file)
	}
	return nil
}

// moduleOf returns the directory of a program's module: the nearest one above it with a go.mod.
func (o options) moduleOf(program string) string {
	for dir := program; dir != "." && dir != "/"; dir = path.Dir(dir) {
		if _, err := os.Stat(filepath.Join(o.root, dir, "go.mod")); err == nil {
			return filepath.Join(o.root, dir)
		}
	}
	return o.root
}

// builder returns ko's builder for the module in a directory, with a base image.
func (o options) builder(ctx context.Context, dir string, upon build.Result) (build.Interface, error) {
	reference, err := name.ParseReference(repository + "/base:" + o.version)
	if err != nil {
		return nil, fmt.Errorf("-version: %w", err)
	}
	settings := []build.Option{
		build.WithBaseImages(func(context.Context, string) (name.Reference, build.Result, error) { return reference, upon, nil }),
		build.WithCreationTime(v1.Time{Time: o.created}),
		build.WithTrimpath(true),
		build.WithDefaultEnv([]string{"CGO_ENABLED=0"}),
		build.WithDefaultLdflags([]string{"-s", "-w"}),
		build.WithSPDX("1"),
		build.WithSBOMDir(o.out),
		build.WithLabel("org.opencontainers.image.version", o.version),
		build.WithLabel("org.opencontainers.image.source", "https://"+module),
		build.WithLabel("org.opencontainers.image.licenses", "Apache-2.0"),
	}
	var platforms []string
	for _, p := range o.platforms {
		platforms = append(platforms, p.String())
	}
	builder, err := build.NewGo(ctx, dir, append(settings, build.WithPlatforms(platforms...))...)
	if err != nil {
		return nil, fmt.Errorf("setting ko up: %w", err)
	}
	return builder, nil
}
