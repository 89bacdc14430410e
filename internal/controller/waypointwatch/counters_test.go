package waypointwatch

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// llama and canary are the names of two pools' counters.
const (
	llama  = "razngnfhlqc4z62i"
	canary = "aqj24wqd5q4fzox4"
)

// line is one of a page's as Envoy 1.40 writes it.
func line(port int, pool, counter string, value any) string {
	name := fmt.Sprintf("envoy_http_0_0_0_%d__ext_proc_%s_%s", port, pool, counter)
	return fmt.Sprintf("# TYPE %s counter\n%s{envoy_http_conn_manager_prefix=\"inbound_0\"} %v\n", name, name, value)
}

func TestParse(t *testing.T) {
	tests := map[string]struct {
		page string
		want map[string]counters
	}{
		"all that is read": {
			page: line(80, llama, "streams_started", 7) + line(80, llama, "streams_closed", 6) + line(80, llama, "streams_failed", 5) +
				line(80, llama, "message_timeouts", 4) + line(80, llama, "failure_mode_allowed", 3) + line(80, llama, "stream_msgs_sent", 2) +
				line(80, llama, "stream_msgs_received", 1) + line(80, llama, "spurious_msgs_received", 9),
			want: map[string]counters{llama: {started: 7, closed: 6, failed: 5, timeouts: 4, allowed: 3, sent: 2, received: 1}},
		},
		"ports are one pool's": {
			page: line(80, llama, "streams_started", 7) + line(8080, llama, "streams_started", 1) + line(80, canary, "streams_started", 0),
			want: map[string]counters{llama: {started: 8}, canary: {}},
		},
		"numbers that no counter has": {
			page: line(80, llama, "streams_started", "NaN") + line(80, llama, "streams_started", -1) + line(80, llama, "streams_started", 1e300) +
				line(80, llama, "streams_started", "+Inf") + line(80, llama, "streams_started", "x") + line(80, llama, "streams_started", ""),
			want: map[string]counters{},
		},
		"sums that no counter has": {
			page: line(80, llama, "streams_started", maxCount) + line(80, llama, "streams_started", maxCount),
			want: map[string]counters{llama: {started: maxCount}},
		},
		"names that are not ours": {
			page: "envoy_http_0_0_0_80__ext_proc_streams_started 198\n" + line(80, "LLAMA", "streams_started", 1) + line(80, llama+"a", "streams_started", 1) +
				"envoy_cluster_x_ext_proc_" + llama + "_streams_started 1\n" + line(80, llama, "streams_started_x", 1),
			want: map[string]counters{},
		},
		"the listener is a label": {
			page: "envoy_http_ext_proc_" + llama + `_streams_started{http_conn_manager_prefix="inbound_0.0.0.0_80;"} 3` + "\n",
			want: map[string]counters{llama: {started: 3}},
		},
		"labels that look like the end": {
			page: "envoy_http_0_0_0_80__ext_proc_" + llama + `_streams_started{a="} 5 {"} 3 1700000000` + "\n",
			want: map[string]counters{llama: {started: 3}},
		},
		"no page of counters": {page: "<html>no</html>\n\n{}\n", want: map[string]counters{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, bytes, err := parse(strings.NewReader(tt.page))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(counters{})); diff != "" || bytes != len(tt.page) {
				t.Errorf("%d bytes of %d are read, counters (-want +got):\n%s", bytes, len(tt.page), diff)
			}
		})
	}
}

func TestParseBounds(t *testing.T) {
	short := line(80, llama, "streams_started", 1)
	for name, page := range map[string]string{
		"too long":     strings.Repeat("# HELP\n", maxPage/7+1),
		"a long line":  short + strings.Repeat("x", maxLine+1),
		"without ends": strings.Repeat("x", 2*maxPage),
	} {
		if got, bytes, err := parse(strings.NewReader(page)); err == nil || bytes == 0 {
			t.Errorf("%s: %v and no error", name, got)
		}
	}
	whole := strings.Repeat("# HELP\n", (maxPage-len(short))/7) + short
	if got, bytes, err := parse(strings.NewReader(whole)); bytes != len(whole) || err != nil || got[llama].started != 1 {
		t.Errorf("a page of %d bytes gives %v, %v", len(whole), got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(line(80, llama, "streams_started", 7) + "x{y=\"}\"} 1 2\n")
	f.Fuzz(func(t *testing.T, page string) {
		got, _, _ := parse(strings.NewReader(page))
		for name, c := range got {
			if len(name) != len(llama) || min(c.started, c.closed, c.failed, c.timeouts, c.allowed, c.sent, c.received) < 0 ||
				max(c.started, c.closed, c.failed, c.timeouts, c.allowed, c.sent, c.received) > maxCount {
				t.Errorf("%s: %+v", name, c)
			}
		}
	})
}
