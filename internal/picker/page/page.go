// Package page shows the picker's live state in a browser: its pools, their endpoints with load and adapters, and some
// recent picks with their reasons. It must not know how the livestate.State comes about, and cannot change anything.
// The server renders everything. A short script fetches the tables anew every second; without it, reloading does the
// same.
package page

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

//go:embed page.html page.css page.js
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"total": total, "percent": percent, "seconds": seconds, "times": times, "count": count, "clock": clock, "names": names, "note": note,
	"known": func(v float64) *float64 { return &v },
}).ParseFS(files, "page.html"))

// policy allows the page its own script, style and address, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Handler serves the page at /, its tables alone at /tables, and the page's script and style.
func Handler(state func() livestate.State) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", rendered("page", state))
	mux.Handle("GET /tables", rendered("tables", state))
	mux.Handle("GET /page.css", asset("page.css", "text/css; charset=utf-8"))
	mux.Handle("GET /page.js", asset("page.js", "text/javascript; charset=utf-8"))
	return mux
}

func rendered(name string, state func() livestate.State) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var out bytes.Buffer // complete before the status is sent
		if err := templates.ExecuteTemplate(&out, name, state()); err != nil {
			http.Error(w, "the page cannot be rendered", http.StatusInternalServerError)
			return
		}
		send(w, "text/html; charset=utf-8", out.Bytes())
	})
}

func asset(name, kind string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		content, err := files.ReadFile(name)
		if err != nil {
			http.Error(w, "the file cannot be read", http.StatusInternalServerError)
			return
		}
		send(w, kind, content)
	})
}

func send(w http.ResponseWriter, kind string, content []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(content) // it is no error that a client is gone
}

// totals are the sums over a pool's endpoints.
type totals struct{ Ready, Running, Waiting, Reserved int }

func total(p livestate.Pool) totals {
	var t totals
	for _, e := range p.Endpoints {
		if e.Ready {
			t.Ready++
		}
		if e.Reading != nil {
			t.Running += e.Reading.Running
			t.Waiting += e.Reading.Waiting
		}
		t.Reserved += e.ReservedRequests
	}
	return t
}

// unknown stands for an unknown value.
const unknown = "–"

func percent(share *float64) string {
	if share == nil {
		return unknown
	}
	return fmt.Sprintf("%.0f %%", 100**share)
}

// seconds formats a time for people; v is a float64 or, where it may be unknown, a pointer to one.
func seconds(v any) string {
	var s float64
	switch v := v.(type) {
	case float64:
		s = v
	case *float64:
		if v == nil {
			return unknown
		}
		s = *v
	}
	if s < 1 {
		return fmt.Sprintf("%.0f ms", 1000*s)
	}
	return fmt.Sprintf("%.1f s", s)
}

// times formats a multiple in two digits at least.
func times(of *float64) string {
	switch {
	case of == nil:
		return unknown
	case *of < 9.95: // from here on %#.2g ends in a point
		return fmt.Sprintf("%#.2g ×", *of)
	default:
		return fmt.Sprintf("%.0f ×", *of)
	}
}

// count formats a number with commas between thousands; n is an int or a float64.
func count(n any) string {
	text := ""
	switch n := n.(type) {
	case int:
		text = strconv.Itoa(n)
	case float64:
		text = strconv.FormatFloat(n, 'f', 0, 64)
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func clock(t time.Time) string { return t.Format("15:04:05.0") }

func names(of []string) string { return strings.Join(of, ", ") }

// note is an endpoint's state if it is not simply ready; else "".
func note(e livestate.Endpoint) string {
	switch {
	case !e.Ready:
		return "leaving"
	case e.Health.AvoidedFor > 0:
		return fmt.Sprintf("avoided for %s", seconds(e.Health.AvoidedFor))
	case e.Reading == nil:
		return "not read"
	case e.Reading.Age > staleAge:
		return "stale"
	}
	return ""
}

// staleAge is the age of a reading, in seconds, from which on the reading loses weight in picks.
const staleAge = 3
