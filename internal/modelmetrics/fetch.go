package modelmetrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// MaxPage is how many bytes of a page are read; what comes behind is left unread, at the price of the connection.
const MaxPage = 4 << 20

// Buffers begin with newBuffer and double. Those up to ordinaryPage are kept for other pages, and as many can be in use as
// there are endpoints; of larger ones only so many as pages may be parsed at once.
const (
	newBuffer    = 64 << 10
	ordinaryPage = 512 << 10
)

// StatusError is of an answer with another status than 200.
type StatusError int

func (e StatusError) Error() string {
	return fmt.Sprintf("the metrics page was answered with status %d", int(e))
}

// dialFunc makes a connection, as net.Dialer does.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// fetcher asks for the page of one endpoint. It keeps one connection.
type fetcher struct {
	transport *http.Transport
	request   *http.Request
}

// newFetcher uses the transport by itself: a page is neither redirected nor cached nor fetched through a proxy, and
// the client around it would add to the cost.
func newFetcher(url string, dial dialFunc) (*fetcher, error) {
	request, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	if (request.URL.Scheme != "http" && request.URL.Scheme != "https") || request.URL.Host == "" {
		return nil, fmt.Errorf("%q is not the URL of a metrics page", url)
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
			MaxResponseHeaderBytes: 64 << 10,
		},
	}, nil
}

// rooms are what the pages of all endpoints share.
type rooms struct {
	buffers sync.Pool     // of *[]byte, for ordinary pages
	large   chan struct{} // one for each page longer than ordinaryPage, while it comes
	parsing chan struct{} // one for each page that is parsed
}

func newRooms(concurrency int) *rooms {
	return &rooms{
		buffers: sync.Pool{New: func() any { return new(make([]byte, newBuffer)) }},
		large:   make(chan struct{}, concurrency),
		parsing: make(chan struct{}, concurrency),
	}
}

// take waits for its turn.
func take(ctx context.Context, turns chan struct{}) error {
	select {
	case turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for other pages to be read: %w", ctx.Err())
	}
}

// fetch asks for the page and has it read. The page is the callback's only until it returns. However slowly a page comes,
// it holds up no other one: pages wait for each other once they are there, and only large ones while they come.
func (f *fetcher) fetch(ctx context.Context, shared *rooms, read func(page []byte) error) error {
	response, err := f.transport.RoundTrip(f.request.WithContext(ctx))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return StatusError(response.StatusCode)
	}
	buffer := shared.buffers.Get().(*[]byte)
	defer shared.buffers.Put(buffer)
	large := false
	defer func() {
		if large {
			<-shared.large
		}
	}()
	page, err := readPage(response.Body, *buffer, func() error {
		err := take(ctx, shared.large)
		large = err == nil
		return err
	})
	if !large {
		*buffer = page[:cap(page)] // it may have grown
	}
	if err != nil {
		return err
	}
	if err := take(ctx, shared.parsing); err != nil {
		return err
	}
	defer func() { <-shared.parsing }()
	return read(page)
}

// readPage reads into the buffer up to the page's end, or up to the last whole line of MaxPage bytes. It asks for leave
// before it takes a room for more than an ordinary page.
func readPage(body io.Reader, buffer []byte, leave func() error) ([]byte, error) {
	for n := 0; ; {
		got, err := body.Read(buffer[n:])
		n += got
		switch {
		case errors.Is(err, io.EOF):
			return buffer[:n], nil
		case err != nil:
			return buffer[:n], fmt.Errorf("reading the metrics page: %w", err)
		case n >= MaxPage:
			return buffer[:bytes.LastIndexByte(buffer[:n], '\n')+1], nil
		case n == len(buffer):
			if n == ordinaryPage {
				if err := leave(); err != nil {
					return buffer[:n], err
				}
			}
			larger := make([]byte, 2*len(buffer))
			copy(larger, buffer)
			buffer = larger
		}
	}
}

func (f *fetcher) close() {
	f.transport.CloseIdleConnections()
}

// defaultDial is a dialer without the race of address families: endpoints are addresses.
func defaultDial() dialFunc {
	return (&net.Dialer{KeepAlive: 15 * time.Second, FallbackDelay: -1}).DialContext
}
