package kvevents

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// sourcesPath is where vLLM says which sockets publish events. Older versions and SGLang do not say it.
	sourcesPath    = "/kv_event_sources"
	maxSourcesPage = 64 << 10
	maxRanks       = 64
	// defaultPort is where vLLM and SGLang publish events unless told otherwise.
	defaultPort = 5557
)

// errNoSources is the error where a server says that it publishes no events over ZeroMQ.
var errNoSources = errors.New("the server publishes no cache events: start it with KV cache events enabled and the zmq publisher")

// source is where a data-parallel rank's events come from. The ports are those of the endpoint's own address: the
// server's word for an address is not taken, as it could name any other. replay is 0 where there is none.
type source struct{ port, replay uint16 }

// fetchSources asks a server for its sources, by rank.
func fetchSources(ctx context.Context, url string, timeout time.Duration, fallback uint16) (map[int]source, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+sourcesPath, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "inference-waypoint")
	// A transport without a client follows no redirects, and this one uses no proxy and keeps no connection.
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 8 << 10}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return map[int]source{0: {port: fallback}}, nil
	default:
		return nil, fmt.Errorf("the request was answered with status %d", response.StatusCode)
	}
	page, err := io.ReadAll(io.LimitReader(response.Body, maxSourcesPage+1))
	if err != nil {
		return nil, err
	}
	if len(page) > maxSourcesPage {
		return nil, errTooLarge
	}
	return parseSources(page)
}

// parseSources reads the page of sources. Ranks that publish nothing over ZeroMQ are left out.
func parseSources(page []byte) (map[int]source, error) {
	var said map[string]struct {
		Enabled   bool   `json:"enable_kv_cache_events"`
		Publisher string `json:"publisher"`
		Endpoint  string `json:"endpoint"`
		Replay    string `json:"replay_endpoint"`
	}
	if err := json.Unmarshal(page, &said); err != nil {
		return nil, err
	}
	if len(said) > maxRanks {
		return nil, fmt.Errorf("it names %d ranks where %d are the most", len(said), maxRanks)
	}
	sources := map[int]source{}
	for number, s := range said {
		rank, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("rank %.20q is not a number", number)
		}
		if !s.Enabled || s.Publisher != "zmq" {
			continue
		}
		port, err := portOf(s.Endpoint)
		if err != nil {
			return nil, err
		}
		source := source{port: port}
		if s.Replay != "" {
			if source.replay, err = portOf(s.Replay); err != nil {
				return nil, err
			}
		}
		sources[int(rank)] = source
	}
	if len(sources) == 0 {
		return nil, errNoSources
	}
	return sources, nil
}

// portOf returns the port of an address such as tcp://*:5557.
func portOf(address string) (uint16, error) {
	port, err := strconv.ParseUint(address[strings.LastIndexByte(address, ':')+1:], 10, 16)
	if err != nil || port == 0 || !strings.HasPrefix(address, "tcp://") {
		return 0, fmt.Errorf("%.100q is not an address such as tcp://*:5557", address)
	}
	return uint16(port), nil
}
