// Command record calls real engines, and writes what a picker would know of it and what then happened: each call with its
// time, endpoint and tokens, each reading of each engine's page, and each call's true time to first token. Tests of the
// picker's estimates replay such records.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "record: %v\n", err)
		os.Exit(1)
	}
}

// options say what is called, and how.
type options struct {
	servers       []string // ip:port
	model         string
	rate          float64 // calls a second, of all together
	lasts         time.Duration
	interval      time.Duration // between two readings of a page
	conversations int
	stay          float64 // the share of turns that go to the endpoint of the turn before
	seed          uint64
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("record", flag.ContinueOnError)
	servers := flags.String("servers", "", "the engines, as ip:port,ip:port")
	flags.StringVar(&o.model, "model", "tiny", "the model that is called")
	flags.Float64Var(&o.rate, "rate", 1, "calls a second, which come at random")
	flags.DurationVar(&o.lasts, "for", time.Minute, "how long calls come")
	flags.DurationVar(&o.interval, "interval", 100*time.Millisecond, "the time between two readings of a page")
	flags.IntVar(&o.conversations, "conversations", 24, "how many conversations take turns")
	flags.Float64Var(&o.stay, "stay", 0.8, "the share of turns that go to the endpoint of the turn before")
	flags.Uint64Var(&o.seed, "seed", 1, "the seed of all that is random")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *servers == "" {
		return errors.New("no engines are named: -servers ip:port,ip:port")
	}
	o.servers = strings.Split(*servers, ",")
	r := &recorder{options: o, out: json.NewEncoder(out), began: time.Now()}
	return r.record(ctx)
}

// Event is one line of a record. Times are in seconds from the record's beginning.
type Event struct {
	At       float64
	Endpoint int
	// Reading is set where a page was read.
	Reading *Reading `json:",omitempty"`
	// Call numbers a call that begins, from 1 on, with the length of its prompt in bytes.
	Call, PromptBytes int `json:",omitempty"`
	// Answer is set where a call ended.
	Answer *Answer `json:",omitempty"`
}

// Reading is what an estimate needs of a reading.
type Reading struct {
	Waiting, Deferred, Running           int     `json:",omitempty"`
	WaitingSplit                         bool    `json:",omitempty"`
	KVUsage                              float64 `json:",omitempty"`
	CapacityTokens                       int64   `json:",omitempty"`
	MaxLoRA                              int     `json:",omitempty"`
	PromptTokens, CacheHits, FirstTokens int64   `json:",omitempty"`
	FirstTokenSeconds                    float64 `json:",omitempty"`
}

// Answer is how a call ended: its number, what the engine says of its tokens, and the time to its first token in seconds.
type Answer struct {
	Call, PromptTokens, CachedTokens, AnswerTokens int
	FirstToken                                     float64
	Error                                          string `json:",omitempty"`
}

type recorder struct {
	options
	began time.Time
	mu    sync.Mutex
	out   *json.Encoder
	err   error
	calls int
}

// seconds rounds to a tenth of a millisecond, which is less than the noise of any of these times.
func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1e4) / 1e4 }

// write writes one line, at the time at which it is written unless the event has a time.
func (r *recorder) write(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.At == 0 {
		e.At = seconds(time.Since(r.began))
	}
	r.err = errors.Join(r.err, r.out.Encode(e))
}

func (r *recorder) record(ctx context.Context) error {
	reading, stop := context.WithCancel(ctx)
	var readers, callers sync.WaitGroup
	for i := range r.servers {
		readers.Go(func() { r.read(reading, i) })
	}
	random := rand.New(rand.NewPCG(r.seed, 1))
	var held []*conversation
	for n := range r.conversations {
		held = append(held, r.newConversation(uint64(n), random))
	}
	for ctx.Err() == nil && time.Since(r.began) < r.lasts {
		time.Sleep(time.Duration(random.ExpFloat64() / r.rate * float64(time.Second)))
		free := random.Perm(len(held))
		for _, n := range free {
			if c := held[n]; c.mu.TryLock() {
				turn := r.next(c, random)
				callers.Go(func() { defer c.mu.Unlock(); r.take(ctx, c, turn) })
				break
			}
		}
	}
	callers.Wait()
	stop()
	readers.Wait()
	return r.err
}

// read reads one engine's page again and again.
func (r *recorder) read(ctx context.Context, endpoint int) {
	parser := modelmetrics.NewParser(modelmetrics.Detect)
	for ctx.Err() == nil {
		asked := time.Now()
		page, err := process.Get(ctx, "http://"+r.servers[endpoint]+"/metrics")
		if err == nil {
			var got modelmetrics.Reading
			if got, err = parser.Parse(page, asked); err == nil {
				r.write(Event{At: seconds(asked.Sub(r.began)), Endpoint: endpoint, Reading: &Reading{
					Waiting: got.Waiting, Deferred: got.Deferred, Running: got.Running, WaitingSplit: got.WaitingSplit,
					KVUsage: got.KVUsage, CapacityTokens: got.CapacityTokens, MaxLoRA: got.MaxLoRA,
					PromptTokens: got.PromptTokens, CacheHits: got.CacheHits,
					FirstTokens: got.FirstTokens, FirstTokenSeconds: got.FirstTokenSeconds,
				}})
			}
		}
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "record:", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(r.interval - time.Since(asked)):
		}
	}
}

// conversation is a chat whose turns come one after the other.
type conversation struct {
	mu       sync.Mutex
	held     *traffic.Conversation
	turns    int
	endpoint int
}

func (r *recorder) newConversation(n uint64, random *rand.Rand) *conversation {
	c := &conversation{}
	c.begin(r.seed, n, random)
	return c
}

func (c *conversation) begin(seed, n uint64, random *rand.Rand) {
	system := traffic.Text(rand.New(rand.NewPCG(seed, 2)), 150)
	c.held = traffic.NewConversation(system, n^random.Uint64())
	c.turns = 0
}

// turn is one call that is about to be made.
type turn struct{ endpoint, tokens, answer int }

// next says what the conversation's next turn is. A conversation ends after some turns, and another one begins.
func (r *recorder) next(c *conversation, random *rand.Rand) turn {
	if c.turns == 6 {
		c.begin(r.seed, random.Uint64(), random)
	}
	t := turn{endpoint: c.endpoint, tokens: 40 + random.IntN(300), answer: 8 + random.IntN(56)}
	if c.turns == 0 {
		t.tokens = 200 + random.IntN(2500)
	}
	if c.turns == 0 || random.Float64() > r.stay {
		t.endpoint = random.IntN(len(r.servers))
	}
	c.endpoint = t.endpoint
	c.turns++
	return t
}

func (r *recorder) take(ctx context.Context, c *conversation, t turn) {
	r.mu.Lock()
	r.calls++
	number := r.calls
	r.mu.Unlock()
	bytes := 4 * t.tokens
	for _, m := range c.held.Messages {
		bytes += len(m.Content)
	}
	r.write(Event{Endpoint: t.endpoint, Call: number, PromptBytes: bytes})
	answer, err := c.held.Ask(ctx, http.DefaultClient, "http://"+r.servers[t.endpoint], r.model, t.tokens, t.answer)
	out := &Answer{Call: number, AnswerTokens: t.answer}
	if err != nil {
		out.Error = err.Error()
	} else {
		out.PromptTokens, out.CachedTokens, out.FirstToken = answer.PromptTokens, answer.CachedTokens, seconds(answer.FirstToken)
	}
	r.write(Event{Endpoint: t.endpoint, Answer: out})
}
