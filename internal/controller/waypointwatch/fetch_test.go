package waypointwatch

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve runs a pod's page, and returns how it is fetched.
func serve(t *testing.T, page http.HandlerFunc) func() (map[string]counters, int, error) {
	t.Helper()
	server := httptest.NewServer(page)
	t.Cleanup(server.CloseClientConnections)
	t.Cleanup(func() { go server.Close() }) // pages that never end
	f := newFetcher(server.Listener.Addr().(*net.TCPAddr).Port)
	return func() (map[string]counters, int, error) {
		return f.fetch(t.Context(), netip.MustParseAddr("127.0.0.1"))
	}
}

func TestFetch(t *testing.T) {
	asked := atomic.Pointer[http.Request]{}
	fetch := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r)
		_, _ = io.WriteString(w, line(80, llama, "streams_started", 7))
	})
	got, bytes, err := fetch()
	if err != nil || got[llama].started != 7 || bytes == 0 {
		t.Errorf("got %v of %d bytes, %v", got, bytes, err)
	}
	r := asked.Load()
	if r.URL.Path != "/stats/prometheus" {
		t.Errorf("the page is asked for at %s", r.URL.Path)
	}
	filter := regexp.MustCompile(r.FormValue("filter"))
	for name, want := range map[string]bool{
		"http.inbound_0.0.0.0_80;.ext_proc." + llama + ".streams_started":           true,
		"http.inbound_0.0.0.0_80;.ext_proc." + llama + ".stream_msgs_received":      true,
		"http.inbound_0.0.0.0_80;.ext_proc." + llama + ".clear_route_cache_ignored": false,
		"http.inbound_0.0.0.0_80;.ext_proc.streams_started":                         false,
		"http.inbound_0.0.0.0_80;.downstream_rq_total":                              false,
	} {
		if filter.MatchString(name) != want {
			t.Errorf("%s is asked for: %t, want %t", name, !want, want)
		}
	}
}

// A waypoint's pods belong to a tenant, and may answer anything.
func TestFetchOfAPodThatMisbehaves(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	pad := strings.Repeat("# HELP\n", 1<<10)
	for name, page := range map[string]http.HandlerFunc{
		"an endless page": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, pad); err != nil {
					return
				}
			}
		},
		"a page that drips": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, "#\n")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(50 * time.Millisecond)
			}
		},
		"no answer":  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"a redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) },
		"an error": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, line(80, llama, "streams_started", 7), 500)
		},
		"a long header": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 2*maxHeader)) },
		"a broken connection": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, line(80, llama, "streams_started", 7))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			got, _, err := serve(t, page)()
			if err == nil {
				t.Errorf("it is taken for %v", got)
			}
			if took := time.Since(start); took > readTimeout+time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
	t.Run("another program's page", func(t *testing.T) {
		got, _, err := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>hello</html>") })()
		if err != nil || got == nil || len(got) > 0 {
			t.Errorf("it is taken for %v, %v: want a page without counters", got, err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = listener.Close()
		if _, _, err := newFetcher(listener.Addr().(*net.TCPAddr).Port).fetch(t.Context(), netip.MustParseAddr("127.0.0.1")); err == nil {
			t.Error("no error")
		}
	})
}
