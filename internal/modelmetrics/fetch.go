package modelmetrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// MaxPage is how many bytes of a page are read; what comes behind is left unread, at the price of the connection.
const MaxPage = 4 << 20

// Buffers begin with room for an ordinary page, and are not kept when a page has made them larger than keptBuffer.
const (
	newBuffer  = 64 << 10
	keptBuffer = 512 << 10
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

// fetch asks for the page and has it read with a buffer that is free. The page is the callback's only until it returns.
func (f *fetcher) fetch(ctx context.Context, buffers chan []byte, read func(page []byte) error) error {
	response, err := f.transport.RoundTrip(f.request.WithContext(ctx))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return StatusError(response.StatusCode)
	}
	select {
	case buffer := <-buffers:
		page, err := readPage(response.Body, buffer)
		if err == nil {
			err = read(page)
		}
		if cap(page) > keptBuffer {
			page = nil
		}
		buffers <- page
		return err
	case <-ctx.Done():
		return fmt.Errorf("waiting for other pages to be read: %w", ctx.Err())
	}
}

// readPage reads into the buffer up to the page's end, or up to the last whole line of MaxPage bytes.
func readPage(body io.Reader, buffer []byte) ([]byte, error) {
	if cap(buffer) == 0 {
		buffer = make([]byte, newBuffer)
	}
	buffer = buffer[:cap(buffer)]
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
			larger := make([]byte, min(2*len(buffer), MaxPage))
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
