package modelmetrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"time"
)

// StatusError is the error of an answer whose status is not 200.
type StatusError int

func (e StatusError) Error() string {
	return fmt.Sprintf("the metrics page was answered with status %d", int(e))
}

// dialFunc makes a connection, as net.Dialer does.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// fetcher fetches the page of one endpoint, over one connection that it keeps.
type fetcher struct {
	transport *http.Transport
	request   *http.Request
	size      int // the index in pageSizes of the size that the last page needed
}

// newFetcher uses an http.Transport without an http.Client, which would add to the cost: a page is neither redirected,
// nor cached, nor fetched through a proxy.
func newFetcher(url string, dial dialFunc) (*fetcher, error) {
	request, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	if (request.URL.Scheme != "http" && request.URL.Scheme != "https") || request.URL.Host == "" {
		return nil, fmt.Errorf("%q is not the URL of a metrics page: want http(s)://host/path", url)
	}
	// Without an Accept header some servers send OpenMetrics, which is longer and ends differently.
	request.Header.Set("Accept", "text/plain")
	request.Header.Set("User-Agent", "inference-waypoint")
	return &fetcher{
		request: request,
		transport: &http.Transport{
			DialContext:            dial,
			DisableCompression:     true, // unpacking costs more than the bytes on a cluster's network
			MaxConnsPerHost:        1,
			MaxResponseHeaderBytes: 8 << 10, // counts in no tenant's memory
		},
	}, nil
}

// fetch fetches the page and calls read, which may use the page only until it returns. The page waits behind other
// pages of its tenant before it is requested and before it is parsed, and the timeout counts neither wait. While it is
// received, it only takes memory of its tenant's share, so that a slow page delays no other tenant's pages.
func (f *fetcher) fetch(ctx context.Context, t *tenant, timeout time.Duration, read func(page []byte, asked time.Time) error) error {
	room, err := newRoom(ctx, t, f.size)
	if err != nil {
		return err
	}
	defer room.close()
	asked := time.Now()
	page, err := f.ask(ctx, timeout, &room)
	if err != nil {
		return err
	}
	return t.parse(ctx, func() error { return read(page, asked) })
}

// ask receives the page into the room, within the timeout.
func (f *fetcher) ask(ctx context.Context, timeout time.Duration, room *room) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := f.transport.RoundTrip(f.request.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, StatusError(response.StatusCode)
	}
	page, err := readPage(response.Body, room)
	f.size = sizeFor(len(page))
	return page, err
}

// piece is how many bytes of a page are read or parsed before other goroutines may run: 50 µs of work. Go itself
// preempts a busy goroutine only after 10 ms, so ten endless pages at full speed would delay a pick by 100 ms.
const piece = 64 << 10

// readPage reads up to the page's end, or up to the last whole line of MaxPage bytes.
func readPage(body io.Reader, room *room) ([]byte, error) {
	buffer := room.open()
	for n := 0; ; {
		got, err := body.Read(buffer[n:min(n+piece, len(buffer))])
		n += got
		runtime.Gosched()
		switch {
		case errors.Is(err, io.EOF):
			return buffer[:n], nil
		case err != nil:
			return buffer[:n], fmt.Errorf("reading the metrics page: %w", err)
		case n == MaxPage:
			return buffer[:bytes.LastIndexByte(buffer, '\n')+1], nil
		case n == len(buffer):
			larger, err := room.grow()
			if err != nil {
				return buffer[:n], err
			}
			buffer = larger
		}
	}
}

func (f *fetcher) close() {
	f.transport.CloseIdleConnections()
}

// defaultDial returns a dialer that does not race IPv4 against IPv6, as endpoints are addresses.
func defaultDial() dialFunc {
	return (&net.Dialer{KeepAlive: 15 * time.Second, FallbackDelay: -1}).DialContext
}
