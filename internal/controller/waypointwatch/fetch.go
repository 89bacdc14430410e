package waypointwatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// StatsPort is where Istio's proxies show their counters to everybody.
const StatsPort = 15090

const (
	// readTimeout is how long a page may take from the connection to its last byte.
	readTimeout = 2 * time.Second
	// maxHeader is the length of the longest header of a page, in bytes.
	maxHeader = 8 << 10
)

// fetcher reads pods' pages.
type fetcher struct {
	transport *http.Transport
	port      int
}

// newFetcher makes a fetcher that uses an http.Transport directly, so it follows no redirects and uses no proxy. It keeps
// no connections between readings, as a pod could keep them from closing.
func newFetcher(port int) *fetcher {
	return &fetcher{port: port, transport: &http.Transport{
		DialContext:            (&net.Dialer{}).DialContext,
		DisableCompression:     true, // a page is bounded as it comes
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         maxLine,
	}}
}

// fetch reads the counters of a pod, and returns how many bytes of its page it read.
func (f *fetcher) fetch(ctx context.Context, pod netip.Addr) (page map[string]counters, bytes int, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	at := url.URL{
		Scheme:   "http",
		Host:     net.JoinHostPort(pod.String(), strconv.Itoa(f.port)),
		Path:     "/stats/prometheus",
		RawQuery: url.Values{"filter": {dotted}}.Encode(),
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), http.NoBody)
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Accept", "text/plain")
	request.Header.Set("User-Agent", "inference-waypoint")
	response, err := f.transport.RoundTrip(request)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = response.Body.Close() }() // drops the rest of a page
	if response.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("its page of counters was answered with status %d", response.StatusCode)
	}
	page, bytes, err = parse(response.Body)
	if ctx.Err() != nil {
		return nil, bytes, errors.Join(fmt.Errorf("its page of counters took longer than %s", readTimeout), err)
	}
	return page, bytes, err
}
