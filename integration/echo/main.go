// Command echo answers with the request that reached it, and echoes messages of WebSockets and gRPC. The integration tests
// put it behind routes, to see what those change in a request.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// Heard is a request as it arrived.
type Heard struct {
	Server  string      `json:"server"`
	Method  string      `json:"method"`
	Host    string      `json:"host"`
	Path    string      `json:"path"` // with the query
	Proto   string      `json:"proto"`
	Headers http.Header `json:"headers"`
	// Count is the number of requests so far with the same value of the query parameter key, including this one.
	Count int `json:"count"`
	// Length is the number of the body's bytes, where the query has the parameter read.
	Length int64 `json:"length"`
}

func main() {
	address := flag.String("address", ":8000", "host:port to listen on")
	name := flag.String("name", "echo", "what it calls itself")
	flag.Parse()
	e := &echo{name: *name, counts: map[string]int{}}
	e.streams = map[string]http.Handler{"websocket": e.webSocket(), "application/grpc": e.gRPC()}
	server := &http.Server{Addr: *address, Handler: e, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	if err := server.ListenAndServe(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type echo struct {
	name    string
	streams map[string]http.Handler // by a header that requests one

	mu     sync.Mutex
	counts map[string]int
}

// ServeHTTP answers with the received request, after a time (?sleep=1s) and with a status (?status=503, with ?times=2 only
// for the first two requests of a key). /count?key=x returns the count of a key without changing it.
func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, name := range []string{"Upgrade", "Content-Type"} {
		if stream := e.streams[r.Header.Get(name)]; stream != nil {
			stream.ServeHTTP(w, r)
			return
		}
	}
	query := r.URL.Query()
	key := query.Get("key")
	e.mu.Lock()
	if r.URL.Path != "/count" {
		e.counts[key]++
	}
	count := e.counts[key]
	e.mu.Unlock()
	if sleep, err := time.ParseDuration(query.Get("sleep")); err == nil {
		select {
		case <-time.After(sleep):
		case <-r.Context().Done():
			return
		}
	}
	if r.ContentLength < 0 { // the body may be endless, and Go would read it before it answers
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 always is
	}
	length := int64(0)
	if query.Has("read") {
		length, _ = io.Copy(io.Discard, r.Body) // as far as it came
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Served-By", e.name)
	w.Header().Set("X-Internal", "secret")
	status, statusErr := strconv.Atoi(query.Get("status"))
	times, timesErr := strconv.Atoi(query.Get("times"))
	if statusErr == nil && (timesErr != nil || count <= times) {
		w.WriteHeader(status)
	}
	_ = json.NewEncoder(w).Encode(Heard{ // the caller may have left
		Server: e.name, Method: r.Method, Host: r.Host, Path: r.URL.RequestURI(), Proto: r.Proto, Headers: r.Header, Count: count, Length: length,
	})
}
