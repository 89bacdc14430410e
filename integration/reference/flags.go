package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programs are the programs and their commands, in the order of the page.
var programs = []struct {
	name, what string
	commands   []string
}{
	{"controller", "It turns InferencePools into Istio objects.", nil},
	{"picker", "It is the endpoint picker.", nil},
	{"kubectl-inference", "It is a plugin of kubectl: `kubectl inference`.", []string{"status", "doctor", "explain", "top", "page", "render"}},
}

// flagsPage builds the programs of the checkout at root and asks each for its flags.
func flagsPage(root string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "reference-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if out, err := exec.Command("go", "build", "-C", root, "-o", dir+"/", "./cmd/...").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the programs: %w: %s", err, out)
	}
	var page bytes.Buffer
	page.WriteString("# Flags\n\nWritten from the programs' own `--help` by `make docs`.\n")
	for _, p := range programs {
		fmt.Fprintf(&page, "\n## %s\n\n%s\n", p.name, p.what)
		for _, command := range append([]string{""}, p.commands...) {
			text, err := help(filepath.Join(dir, p.name), strings.Fields(command)...)
			if err != nil {
				return nil, err
			}
			if command != "" {
				fmt.Fprintf(&page, "\n### %s %s\n", p.name, command)
			}
			fmt.Fprintf(&page, "\n```text\n%s\n```\n", text)
		}
	}
	return page.Bytes(), nil
}

// help returns the help of a program or of one of its commands, without the flags that all commands share.
func help(program string, command ...string) (string, error) {
	cmd := exec.Command(program, append(command, "--help")...)
	cmd.Env = []string{"HOME=$HOME"} // for defaults that contain it
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("asking %s for its help: %w: %s", filepath.Base(program), err, out)
	}
	own, _, _ := strings.Cut(string(out), "\nGlobal Flags:")
	return strings.TrimSpace(own), nil
}
