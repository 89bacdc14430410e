package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"k8s.io/client-go/rest"
)

// apiServer reads the API server's metrics.
type apiServer struct {
	client *http.Client
	url    string
}

func newAPIServer(config *rest.Config) (*apiServer, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("making a client of the API server: %w", err)
	}
	return &apiServer{client: client, url: config.Host + "/metrics"}, nil
}

// request is a kind of write.
type request struct{ verb, resource, subresource string }

// writes counts successful writes, by kind.
type writes map[request]int

// readVerbs are the verbs in apiserver_request_total that write nothing.
var readVerbs = map[string]bool{"GET": true, "LIST": true, "WATCH": true, "CONNECT": true}

// locks are the resources for leader election, which are written all the time: the controller's Lease, and istiod's
// ConfigMaps, which the controller has no right to.
var locks = map[string]bool{"leases": true, "configmaps": true}

// writes reads the counts, without those of locks.
func (a *apiServer) writes(ctx context.Context) (writes, error) {
	out := writes{}
	err := eachSample(ctx, a.client, a.url, func(name string, labels map[string]string, value float64) {
		if name == "apiserver_request_total" && !readVerbs[labels["verb"]] && !locks[labels["resource"]] && strings.HasPrefix(labels["code"], "2") {
			out[request{labels["verb"], labels["resource"], labels["subresource"]}] += int(value)
		}
	})
	return out, err
}

func (w writes) since(before writes) writes {
	out := writes{}
	for k, v := range w {
		if n := v - before[k]; n != 0 {
			out[k] = n
		}
	}
	return out
}

func (w writes) sum(match func(request) bool) int {
	n := 0
	for k, v := range w {
		if match(k) {
			n += v
		}
	}
	return n
}

// String lists the kinds, for people.
func (w writes) String() string {
	var out []string
	for k, v := range w {
		name := k.verb + " " + k.resource
		if k.subresource != "" {
			name += "/" + k.subresource
		}
		out = append(out, fmt.Sprintf("%s: %d", name, v))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func (w writes) total() int { return w.sum(func(request) bool { return true }) }

// objects counts the writes of objects of the kinds that the controller makes for a pool. Nobody else makes such objects
// here: istiod writes only their status.
func (w writes) objects() int {
	return w.sum(func(r request) bool {
		return (r.resource == "envoyfilters" || r.resource == "serviceentries") && r.subresource == ""
	})
}

// status counts the writes of pools' status.
func (w writes) status() int {
	return w.sum(func(r request) bool { return r.resource == "inferencepools" && r.subresource == "status" })
}

func (w writes) events() int { return w.sum(func(r request) bool { return r.resource == "events" }) }

// eachSample reads a page of metrics in Prometheus's text format.
func eachSample(ctx context.Context, client *http.Client, url string, do func(name string, labels map[string]string, value float64)) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("reading metrics: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("reading metrics: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("reading metrics: %s answers %s", url, response.Status)
	}
	return scanSamples(response.Body, do)
}

// scanSamples reads the API server's and istiod's format, which has no times and no spaces or escapes in labels.
func scanSamples(page io.Reader, do func(name string, labels map[string]string, value float64)) error {
	lines := bufio.NewScanner(page)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		series, number, ok := cutLast(lines.Text(), " ")
		if !ok || strings.HasPrefix(series, "#") {
			continue
		}
		value, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return fmt.Errorf("reading metrics: %q: %w", lines.Text(), err)
		}
		name, rest, _ := strings.Cut(series, "{")
		labels := map[string]string{}
		for pair := range strings.SplitSeq(strings.TrimSuffix(rest, "}"), `",`) {
			if key, v, ok := strings.Cut(pair, `="`); ok {
				labels[key] = strings.TrimSuffix(v, `"`)
			}
		}
		do(name, labels, value)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading metrics: %w", err)
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
