package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/browser"
)

// screenshot rewrites the page's pictures in docs/images.
var screenshot = flag.Bool("screenshot", false, "write the pictures of the picker's page in docs/images")

// TestPage opens the picker's page in a real browser while calls flow: it shows the pool and its picks, updates itself, can
// be read without scripts, and its content security policy blocks nothing on it.
func TestPage(t *testing.T) {
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skip("a browser is installed by npm, and there is none: ", err)
	}
	ctx := begin(t, 2*time.Minute)
	address := servePage(ctx, t, "9099") + "/"
	stop := flow(ctx, 6)
	defer stop()
	for _, scheme := range []string{"light", "dark"} {
		t.Run(scheme, func(t *testing.T) {
			page := openPage(ctx, t, scheme == "dark")
			must(t, page.Go(ctx, address))
			eventually(ctx, t, "endpoints and picks on the page", func(ctx context.Context) error {
				return shows(ctx, page, "models/llama", "4 of 4 endpoints ready", ":8000", "Recent picks", "llama-3.1-8b")
			})
			var first, later string
			must(t, page.Eval(ctx, `document.getElementById("time").dateTime`, &first))
			eventually(ctx, t, "a page that moved on by itself", func(ctx context.Context) error {
				err := page.Eval(ctx, `document.getElementById("time").dateTime`, &later)
				if err == nil && later == first {
					err = errors.New("it still is of " + first)
				}
				return err
			})
			var back string
			must(t, page.Eval(ctx, `getComputedStyle(document.body).backgroundColor`, &back))
			if dark := back != "rgb(255, 255, 255)"; dark != (scheme == "dark") {
				t.Errorf("the background is %s", back)
			}
			checkPicture(ctx, t, page, "picker-"+scheme+".png")
		})
	}
	t.Run("without scripts", func(t *testing.T) {
		page := openPage(ctx, t, false)
		must(t, page.Scripts(ctx, false))
		must(t, page.Go(ctx, address))
		must(t, shows(ctx, page, "models/llama", "4 of 4 endpoints ready", "llama-3.1-8b"))
	})
}

// servePage serves the picker's page as an administrator's machine does, and returns its address.
func servePage(ctx context.Context, t *testing.T, port string) string {
	t.Helper()
	path, err := plugin()
	must(t, err)
	address := net.JoinHostPort("127.0.0.1", port)
	cmd := exec.CommandContext(ctx, path, "page", "--address", address)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+the.Kubeconfig())
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // the error says that it was killed
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if !strings.Contains(line, address) {
		t.Fatalf("it says %q", line)
	}
	return "http://" + address
}

func openPage(ctx context.Context, t *testing.T, dark bool) *browser.Page {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	profile, err := os.MkdirTemp("", "profile")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(profile) }) // a helper process killed just now may still write
	page, wait, err := browser.Open(ctx, filepath.Join(the.Root, ".tools", "chromium"), profile, 1500, 760, dark)
	if wait != nil {
		t.Cleanup(wait)
	}
	t.Cleanup(cancel) // before waiting
	must(t, err)
	return page
}

// shows fails if the page lacks one of the texts.
func shows(ctx context.Context, page *browser.Page, texts ...string) error {
	var body string
	if err := page.Eval(ctx, `document.body.innerText`, &body); err != nil {
		return err
	}
	for _, text := range texts {
		if !strings.Contains(body, text) {
			return fmt.Errorf("the page lacks %q:\n%s", text, body)
		}
	}
	return nil
}

// checkPicture takes a picture, checks that it is not blank, and writes it if asked to.
func checkPicture(ctx context.Context, t *testing.T, page *browser.Page, name string) {
	t.Helper()
	picture, err := page.Screenshot(ctx)
	must(t, err)
	size, err := png.DecodeConfig(bytes.NewReader(picture))
	must(t, err)
	if size.Width != 1500 || size.Height != 760 || len(picture) < 20<<10 || len(picture) > 300_000 {
		t.Errorf("the picture has %d×%d pixels and %d bytes", size.Width, size.Height, len(picture))
	}
	if *screenshot {
		must(t, os.WriteFile(filepath.Join(the.Root, "docs", "images", name), picture, 0o644))
	}
}
