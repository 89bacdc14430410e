package integration

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// What happens to a pool's pickers while conversations go on costs no call, and next to nothing of what is cached: each picker
// knows what the others decided. Where none does, 0.8 of the share is left in the first second after the picker is killed.
func TestPickersKnowWhatOthersDecided(t *testing.T) {
	ctx := begin(t, 8*time.Minute)
	setPickers(ctx, t, 2, "")
	c := choose(ctx, t, "shared", 4, 4, "", "--time-scale=20")
	_, err := c.say(ctx, "Who picks?")
	must(t, err)
	home := mostOf(picksBy(ctx, t, c.name))

	talk := converse(ctx, c)
	defer talk.stop()
	const settled = 16 * time.Second
	time.Sleep(settled)
	before := talk.since(time.Now().Add(-settled / 2))
	t.Logf("before: %s", before)
	if before.share() < 0.75 { // it is 0.81 where each call finds its conversation
		t.Fatalf("only %.2f of the prompts is cached", before.share())
	}
	for _, harm := range []struct {
		name   string
		do     func(t *testing.T)
		sudden bool
	}{
		{"the pool's picker is killed", func(t *testing.T) { killPicker(ctx, t, c, home) }, true},
		{"the pickers do not reach each other for 10 s, and meet again", func(t *testing.T) {
			heard := split(ctx, t)
			saysWhoPicks(ctx, t, c.name, map[string]string{home: "picks for the pool"}, "stands by\n")
			time.Sleep(10 * time.Second)
			heard()
			saysWhoPicks(ctx, t, c.name, map[string]string{home: "picks for the pool"}, "stands by, at most ")
		}, false},
		{"the pool's picker is killed after that", func(t *testing.T) { killPicker(ctx, t, c, home) }, true},
		{"the node of the pool's picker is lost for 10 s", func(t *testing.T) {
			defer cutOff(t, pickerNamed(ctx, t, home))()
			time.Sleep(10 * time.Second)
		}, true},
		{"all pickers are replaced, one after another", func(t *testing.T) { rollPickers(ctx, t) }, false},
		{"one picker is left", func(t *testing.T) { scalePickers(ctx, t, 1) }, false},
		{"there are five", func(t *testing.T) { scalePickers(ctx, t, 5) }, false},
		{"and two", func(t *testing.T) { scalePickers(ctx, t, 2) }, false},
	} {
		t.Run(harm.name, func(t *testing.T) {
			began, picked := time.Now(), sumOf(picksBy(ctx, t, c.name))
			harm.do(t)
			took := time.Since(began)
			time.Sleep(5 * time.Second)
			got := talk.since(began)
			t.Logf("%s, of which the change took %s; picks of all pickers: %d before, %d now", got, took.Round(time.Millisecond), picked, sumOf(picksBy(ctx, t, c.name)))
			if got.failed > 0 {
				t.Errorf("%d of %d calls failed, the first with: %v", got.failed, got.calls, got.err)
			}
			if got.share() < 0.9*before.share() { // it is 0.97 and more, but for the chance of some hundred calls
				t.Errorf("%.3f of the prompts was cached, and %.3f before", got.share(), before.share())
			}
			if first := talk.between(began, began.Add(time.Second)); harm.sudden && first.share() < 0.87*before.share() {
				t.Errorf("%.3f of the prompts of the first second was cached, and %.3f before", first.share(), before.share())
			}
			talk.log(t, began)
		})
	}
}

// killPicker kills a picker, and logs how long it takes until another one picks for the pool.
func killPicker(ctx context.Context, t *testing.T, c choice, name string) {
	t.Helper()
	others := func() (n int) {
		for picker, picks := range picksBy(ctx, t, c.name) {
			if picker != name {
				n += picks
			}
		}
		return n
	}
	picked, victim := others(), pickerNamed(ctx, t, name)
	killed := time.Now()
	must(t, the.Kill(victim.UID))
	eventually(ctx, t, "a pick by another picker", func(context.Context) error {
		if others() == picked {
			return fmt.Errorf("none after %s", time.Since(killed))
		}
		return nil
	})
	t.Logf("another picker picks %s after the pool's is killed", time.Since(killed).Round(time.Millisecond))
}

// split keeps all pickers from each other. Waypoints still reach them.
func split(ctx context.Context, t *testing.T) (end func()) {
	var rules []string
	for _, p := range pickers(ctx, t) {
		rules = append(rules, "to "+p.Status.PodIP+" ipproto tcp dport 9004")
	}
	return swallow(t, rules...)
}

// talk are conversations that go on, and what their calls found in caches.
type talk struct {
	stop func()
	mu   sync.Mutex
	all  []turn
}

type turn struct {
	at             time.Time
	prompt, cached int
	err            error
}

// found is what calls found in caches, in tokens.
type found struct {
	calls, failed  int
	prompt, cached int
	err            error
}

func (f found) share() float64 { return float64(f.cached) / float64(max(f.prompt, 1)) }

func (f found) String() string {
	return fmt.Sprintf("%d calls, %d failed, %.3f of the prompts cached", f.calls, f.failed, f.share())
}

// converse has eight callers each hold ten conversations in turn, of ten turns, one call at a time. The first conversations are
// shorter, each of another length, so that at any time as many begin. Each caller has one of the clients, if any are given.
func converse(ctx context.Context, c choice, clients ...*http.Client) *talk {
	const conversations, turns = 10, 10
	out := &talk{}
	var wait sync.WaitGroup
	var stopped atomic.Bool
	for caller := range callers {
		from := c.client()
		if len(clients) > 0 {
			from = clients[caller%len(clients)]
		}
		wait.Go(func() {
			held := make([]*traffic.Conversation, conversations)
			began := make([]int, conversations) // the turns, of all conversations, at which they began
			for n := 0; !stopped.Load() && ctx.Err() == nil; n++ {
				which := n % conversations
				most := turns
				if held[which] != nil && began[which] == which {
					most = which + 1
				}
				if held[which] == nil || len(held[which].Messages) > 2*most {
					began[which] = n
					held[which] = traffic.NewConversation(fmt.Sprint("Conversation ", caller, n, time.Now()), uint64(caller<<32+n))
				}
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				answer, err := held[which].Ask(ctx, from, c.host, "sample-model", 300, 2)
				cancel()
				one := turn{at: time.Now(), err: err}
				if err == nil {
					one.prompt, one.cached = answer.PromptTokens, answer.CachedTokens
				}
				out.mu.Lock()
				out.all = append(out.all, one)
				out.mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	out.stop = sync.OnceFunc(func() {
		stopped.Store(true)
		wait.Wait()
	})
	return out
}

// since sums the calls that ended after a time.
func (t *talk) since(from time.Time) found { return t.between(from, time.Now()) }

func (t *talk) between(from, to time.Time) (f found) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.all {
		if one.at.Before(from) || !one.at.Before(to) {
			continue
		}
		f.calls++
		f.prompt, f.cached = f.prompt+one.prompt, f.cached+one.cached
		if one.err != nil {
			f.failed++
			f.err = one.err
		}
	}
	return f
}

// log logs the share of each second from a time on.
func (t *talk) log(to *testing.T, from time.Time) {
	to.Helper()
	var shares []string
	for at := from; at.Before(time.Now()); at = at.Add(time.Second) {
		shares = append(shares, fmt.Sprintf("%.2f", t.between(at, at.Add(time.Second)).share()))
	}
	to.Logf("second by second: %v", shares)
}
