// Command echo is the backend of the conformance tests: it answers each request with the request's data, in the JSON that
// the Gateway API's conformance tests read (package sigs.k8s.io/gateway-api/conformance/utils/roundtripper,
// CapturedRequest). The Gateway API's own image listens on all addresses of the machine. The mesh's pods share one network
// namespace, so each must listen only on its own address.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("echo", flag.ContinueOnError)
	address := flags.String("address", "", "the pod's `IP`")
	http1 := flags.String("http", "", "`ports` that speak HTTP/1.1, with commas between them")
	h2c := flags.String("h2c", "", "`ports` that speak cleartext HTTP/2, with commas between them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for protocol, ports := range map[string]string{"http": *http1, "h2c": *h2c} {
		for port := range strings.SplitSeq(ports, ",") {
			if port != "" {
				group.Go(func() error { return serve(ctx, *address, port, protocol == "h2c") })
			}
		}
	}
	return group.Wait()
}

// serve answers on one port until ctx ends. A port has only one protocol, so that an answer shows the protocol used.
func serve(ctx context.Context, address, port string, h2c bool) error {
	server := &http.Server{
		Addr:              net.JoinHostPort(address, port),
		Handler:           echo(port),
		ReadHeaderTimeout: 10 * time.Second,
		Protocols:         new(http.Protocols),
	}
	server.Protocols.SetHTTP1(!h2c)
	server.Protocols.SetUnencryptedHTTP2(h2c)
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving port %s: %w", port, err)
	}
	return nil
}

// answer has the fields of CapturedRequest.
type answer struct {
	Path      string      `json:"path"`
	Host      string      `json:"host"`
	Method    string      `json:"method"`
	Proto     string      `json:"proto"`
	Headers   http.Header `json:"headers"`
	HTTPPort  string      `json:"httpPort"`
	Namespace string      `json:"namespace"`
	Pod       string      `json:"pod"`
}

// setHeader lists headers for the answer: "name:value,name:value".
const setHeader = "X-Echo-Set-Header"

func echo(port string) http.HandlerFunc {
	namespace, pod := os.Getenv("NAMESPACE"), os.Getenv("POD_NAME")
	return func(w http.ResponseWriter, r *http.Request) {
		for _, list := range r.Header[setHeader] {
			for pair := range strings.SplitSeq(list, ",") {
				if name, value, ok := strings.Cut(strings.TrimSpace(pair), ":"); ok && name != "" {
					w.Header().Add(name, value)
				}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer{
			Path: r.RequestURI, Host: r.Host, Method: r.Method, Proto: r.Proto, Headers: r.Header,
			HTTPPort: port, Namespace: namespace, Pod: pod,
		})
	}
}
