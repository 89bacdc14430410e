package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"path/filepath"
	"strconv"

	"github.com/inference-waypoint/inference-waypoint/integration/conversations"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/sandbox"
)

// firstProxyPort is the port of the first service's proxy inside the mesh. The other proxies have the next ports.
const firstProxyPort = 8001

// serveProxies keeps the mesh running and serves an HTTP proxy for each service, through which a person calls as that
// service. It returns when ctx ends.
func (d *demo) serveProxies(ctx context.Context) error {
	_, _ = fmt.Fprintf(d.out, "\nThe mesh is left running; Ctrl-C ends it. From another terminal, as root:\n\n"+
		"  nsenter --target %d --net --pid --mount\n\nand in the shell that opens:\n\n", sandbox.OutsidePID)
	_, _ = fmt.Fprintf(d.out, "  export KUBECONFIG=%s   # for kubectl and istioctl\n", d.mesh.Kubeconfig())
	_, _ = fmt.Fprintf(d.out, "  %s analyze --all-namespaces\n", filepath.Join(d.mesh.Root, ".tools", "istioctl"))
	for i, service := range conversations.Services {
		proxy := net.JoinHostPort("127.0.0.1", strconv.Itoa(firstProxyPort+i))
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", proxy)
		if err != nil {
			return fmt.Errorf("listening for calls: %w", err)
		}
		_, _ = fmt.Fprintf(d.out, "  curl -x http://%s %s/v1/models   # as %s\n", proxy, pickedHost, service)
		server := &http.Server{Handler: &httputil.ReverseProxy{
			Rewrite:       func(*httputil.ProxyRequest) {}, // a proxy's request already has the full URL
			Transport:     d.callers[service].HTTP.Transport,
			FlushInterval: -1,
		}}
		stop := context.AfterFunc(ctx, func() { _ = server.Close() })
		defer stop()
		go func() {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				_, _ = fmt.Fprintf(d.out, "the proxy of %s: %v\n", service, err)
			}
		}()
	}
	<-ctx.Done()
	return ctx.Err()
}
