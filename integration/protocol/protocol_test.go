package protocol

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// Envoy follows the pick, whether it reads the header or the metadata.
func TestDestination(t *testing.T) {
	for _, mode := range modes {
		for _, body := range []string{"without a body", "with a body"} {
			for _, follow := range []string{"header", "metadata"} {
				t.Run(fmt.Sprintf("%s %s, followed by %s", mode, body, follow), func(t *testing.T) {
					var sent io.Reader
					if body == "with a body" {
						sent = ask(t.Name())
					}
					checkDestination(t, served(t, mode, sent, header(followHeader, follow)))
				})
			}
		}
	}
	t.Run("not two values in header and metadata, whatever the client sends", func(t *testing.T) {
		for _, mode := range modes {
			checkDestination(t, served(t, mode, ask(t.Name()), header(destinationHeader, "127.0.0.1:1")))
		}
	})
}

func checkDestination(t *testing.T, h heard) {
	t.Helper()
	if h.Header == "" || h.Metadata != h.Header {
		t.Errorf("communicate endpoints by header and by metadata, the same: they say %q and %q", h.Header, h.Metadata)
	}
	picked := strings.Split(h.Header, ",")
	for _, endpoint := range picked {
		if _, err := netip.ParseAddrPort(endpoint); err != nil {
			t.Errorf("ip:port,ip:port…: %q is none", endpoint)
		}
		if !slices.Contains(the.pools["general"].addresses(), endpoint) {
			t.Errorf("without a subset, select from the pool: %s is not of it", endpoint)
		}
	}
	if distinct := slices.Compact(slices.Sorted(slices.Values(picked))); len(distinct) < 2 || len(distinct) != len(picked) {
		t.Errorf("the list is %v, want two different endpoints or more where there are", picked)
	}
	if h.Endpoint != picked[0] {
		t.Errorf("%s served, want the first of %v", h.Endpoint, picked)
	}
}

// A retry goes to the next endpoint of the pick. The picker moves its reservation and its memory of the prompt.
func TestRetry(t *testing.T) {
	body := prompt("a prompt that one endpoint knows", 4000)
	p := the.pickers["main"]
	first := served(t, "retried", strings.NewReader(string(body))).Endpoint
	eventually(t, "the prompt to be known at the endpoint", func() bool { return p.explain(t, "retried", body)[first].CachedTokens > 0 })
	for _, e := range the.pools["retried"].endpoints {
		if e.address == first {
			e.close()
		}
	}
	time.Sleep(time.Until(the.started.Add(5 * time.Second))) // until then the picker does not blame an endpoint, as it is new
	elsewhere := p.metric(t, "served_elsewhere_total", `pool="protocol/retried"`)
	arrived, leave := make(chan struct{}), make(chan struct{})
	held := script(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush() // the headers
		close(arrived)
		<-leave
	})
	response := open(t, "retried", strings.NewReader(string(body)), held) //nolint:bodyclose // the test's end closes it
	<-arrived
	second := response.Header.Get(servedHeader)
	if response.StatusCode != http.StatusOK || second == first || !slices.Contains(the.pools["retried"].addresses(), second) {
		t.Fatalf("with %s dead, the answer is %s by %q, want 200 by the next of the list", first, response.Status, second)
	}
	eventually(t, "the picker to hear who served", func() bool {
		return p.metric(t, "served_elsewhere_total", `pool="protocol/retried"`) == elsewhere+1
	})
	now := p.explain(t, "retried", body)
	if now[first].InFlight != 0 || now[second].InFlight != 1 {
		t.Errorf("%d calls are reserved at the dead endpoint and %d at the one that serves, want 0 and 1", now[first].InFlight, now[second].InFlight)
	}
	if now[second].CachedTokens == 0 {
		t.Error("the prompt is not known where it was served")
	}
	close(leave)
	eventually(t, "the reservation's end", func() bool { return p.explain(t, "retried", body)[second].InFlight == 0 })
}

// With a subset, the picker names only endpoints of the subset, and no other endpoint serves.
func TestSubset(t *testing.T) {
	all := the.pools["general"].addresses()
	port := func(address string) string { return address[strings.LastIndexByte(address, ':'):] }
	tests := map[string]struct {
		subset any
		want   []string // empty: refused
	}{
		"a list of one":                 {[]any{all[1]}, all[1:2]},
		"a list of two":                 {[]any{all[0], all[2]}, []string{all[0], all[2]}},
		"a list with one of IPv6":       {[]any{all[2]}, all[2:]},
		"a list with strangers":         {[]any{"10.9.9.9:8000", all[1], "nonsense", 7}, all[1:2]},
		"a text of one":                 {all[0], all[:1]},
		"a text of two":                 {all[0] + "," + all[1], all[:2]},
		"a text with blanks":            {" " + all[0] + " , " + all[2], []string{all[0], all[2]}},
		"addresses without a port":      {[]any{"::1"}, all[2:]},
		"an empty list":                 {[]any{}, nil},
		"an empty text":                 {"", nil},
		"a list of strangers":           {[]any{"10.9.9.9:8000"}, nil},
		"the address with no such port": {[]any{"127.0.0.1:1"}, nil},
		"the port of another address":   {[]any{"127.0.0.9" + port(all[0])}, nil},
	}
	for name, test := range tests {
		for _, mode := range modes {
			t.Run(fmt.Sprintf("only select from the list: %s, %s", name, mode), func(t *testing.T) {
				for _, body := range []io.Reader{ask(t.Name()), nil} {
					if len(test.want) == 0 {
						isRefused(t, call(t, mode, body, within(t, test.subset)), "not_in_subset")
						continue
					}
					h := served(t, mode, body, within(t, test.subset))
					got := slices.Sorted(strings.SplitSeq(h.Header, ","))
					if want := slices.Sorted(slices.Values(test.want)); !slices.Equal(got, want) || h.Metadata != h.Header {
						t.Errorf("picked %v and in metadata %q, want %v", got, h.Metadata, want)
					}
				}
			})
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, sent := range map[string]func() io.Reader{
		"with a body":    func() io.Reader { return ask("refused") },
		"without a body": func() io.Reader { return nil },
	} {
		t.Run("503 as ImmediateResponse where no endpoint is ready, "+name, func(t *testing.T) {
			isRefused(t, call(t, "empty", sent()), "no_endpoints")
		})
		t.Run("503 as ImmediateResponse where there is no such pool, "+name, func(t *testing.T) {
			isRefused(t, call(t, "unknown", sent()), "unknown_pool")
		})
	}
	t.Run("what the failure mode says for a call that there is no room for", func(t *testing.T) {
		arrived, leave := make(chan struct{}), make(chan struct{})
		held := script(t, func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			close(arrived)
			<-leave
		})
		open(t, "narrow closed", ask("the one that there is room for"), held) //nolint:bodyclose // the test's end closes it
		<-arrived
		for door, fails := range map[string]bool{"narrow closed": true, "narrow open": false} {
			if a := call(t, door, ask("one too many")); (a.status >= http.StatusInternalServerError) != fails {
				t.Errorf("%s: the answer is %d %s", door, a.status, a.body)
			}
		}
		close(leave)
		eventually(t, "room again", func() bool { return call(t, "narrow closed", nil).status == http.StatusOK })
	})
	// A pool of one endpoint gives a pick of one.
	t.Run("at least one endpoint", func(t *testing.T) {
		if h := served(t, "single", ask("single")); h.Header != the.pools["single"].addresses()[0] {
			t.Errorf("picked %q", h.Header)
		}
	})
}
