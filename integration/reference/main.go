// Reference writes docs/reference from the code: the flags of each program as printed by --help, and the metrics that the
// programs register. With -check it only reports whether the pages are up to date.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const dir = "docs/reference"

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}

func run(args []string, stderr io.Writer) error {
	set := flag.NewFlagSet("reference", flag.ContinueOnError)
	set.SetOutput(stderr)
	root := set.String("root", "..", "the checkout's `directory`")
	check := set.Bool("check", false, "write nothing; fail where "+dir+" is not up to date")
	if err := set.Parse(args); err != nil {
		return err
	}
	flags, err := flagsPage(*root)
	if err != nil {
		return err
	}
	metrics, err := metricsPage()
	if err != nil {
		return err
	}
	var errs []error
	for name, page := range map[string][]byte{"flags.md": flags, "metrics.md": metrics} {
		errs = append(errs, settle(filepath.Join(*root, dir, name), page, *check))
	}
	return errors.Join(errs...)
}

// settle writes a page, or compares it with the existing one.
func settle(path string, page []byte, check bool) error {
	if !check {
		return os.WriteFile(path, page, 0o644)
	}
	there, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(there, page) {
		return fmt.Errorf("%s is not up to date: run make docs", path)
	}
	return nil
}
