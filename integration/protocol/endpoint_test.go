package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Headers between the tests, Envoy and the endpoints.
const (
	scriptHeader   = "X-Test-Script"   // what the endpoint should do
	metadataHeader = "X-Test-Metadata" // Envoy's metadata envoy.lb / x-gateway-destination-endpoint, on the way to the endpoint
	servedHeader   = "X-Test-Served"   // Envoy's metadata envoy.lb / x-gateway-destination-endpoint-served, on the way back
	subsetHeader   = "X-Test-Subset"   // the subset for the metadata: an encoded Value
	followHeader   = "X-Test-Follow"   // which of the two Envoy follows: "header", else the metadata

	destinationHeader = "X-Gateway-Destination-Endpoint"
)

// heard is a call as an endpoint received it.
type heard struct {
	Endpoint string // address of the endpoint
	Header   string // the pick in the header
	Metadata string // the pick in Envoy's metadata
	Bytes    int64  // of the body
	SHA256   string // of the body
}

// endpoint is an HTTP server in place of a model server. It answers with what it received, unless the call names a script.
type endpoint struct {
	address string
	server  *http.Server
}

func startEndpoint(host string) (*endpoint, error) {
	listener, err := net.Listen("tcp", host+":0")
	if err != nil {
		return nil, fmt.Errorf("opening an endpoint: %w", err)
	}
	e := &endpoint{address: listener.Addr().String()}
	e.server = &http.Server{Handler: e, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	e.server.Protocols.SetHTTP1(true)
	e.server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = e.server.Serve(listener) }() // until it is closed
	return e, nil
}

// close cuts all calls and accepts no more.
func (e *endpoint) close() { _ = e.server.Close() }

var (
	scripts    sync.Map // of func(http.ResponseWriter, *http.Request), by name
	lastScript atomic.Int64
)

// script makes an endpoint run do for a call with this option.
func script(t *testing.T, do http.HandlerFunc) option {
	name := strconv.FormatInt(lastScript.Add(1), 10)
	scripts.Store(name, do)
	t.Cleanup(func() { scripts.Delete(name) })
	return header(scriptHeader, name)
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/metrics" { // read by the picker; there are none
		http.NotFound(w, r)
		return
	}
	if do, ok := scripts.Load(r.Header.Get(scriptHeader)); ok {
		do.(http.HandlerFunc)(w, r)
		return
	}
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	if err != nil {
		return // the proxy cancelled the call
	}
	_ = json.NewEncoder(w).Encode(heard{ // the proxy may have left
		Endpoint: e.address, Header: r.Header.Get(destinationHeader), Metadata: r.Header.Get(metadataHeader),
		Bytes: n, SHA256: hex.EncodeToString(hash.Sum(nil)),
	})
}
