// Package conversations holds conversations of three services with a model at one host, shows each call, and compares two
// such runs. The demo and its preview share it. It knows nothing of the way that calls take.
package conversations

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

const (
	// StandIn is the model that the stand-ins for model servers have.
	StandIn = "llama-3.1-8b"
	// NextTokens is the length of each question after the first.
	NextTokens = 130
	// AnswerTokens is the length of an answer.
	AnswerTokens = 48

	conversations = 28
	turns         = 7
	systemTokens  = 200  // shared by all conversations, like a product's system prompt
	firstTokens   = 1000 // the document of a conversation
)

// Services are the callers: each has an identity of its own.
var Services = []string{"checkout", "search", "support"}

// ServerFlags are the flags of model servers whose caches are too small for all conversations, as in samples/quickstart.
var ServerFlags = []string{"--model=" + StandIn, "--num-gpu-blocks=1152", "--time-scale=4"}

// Everyone is the Models of services that all call one model.
func Everyone(model string) map[string]string {
	out := map[string]string{}
	for _, service := range Services {
		out[service] = model
	}
	return out
}

// Call is one line of the table.
type Call struct {
	Service            string
	Conversation, Turn int
	*traffic.Answer
	Err error
}

// Run says how to hold conversations.
type Run struct {
	Out     io.Writer
	Callers map[string]*http.Client // by service
	// Models are the models that the services call, by service: base models or adapters.
	Models map[string]string
	// Last is the first conversation, up to its last turn.
	Last *traffic.Conversation
}

// Hold holds all conversations at a host and shows each call as it ends. Conversations run side by side, like those of many
// users: all take a turn, in a random order, before any takes its next. Each service has two calls in flight.
func (r *Run) Hold(ctx context.Context, title, host string) ([]Call, error) {
	system := traffic.Text(rand.New(rand.NewPCG(1, 1)), systemTokens)
	held := make([]*traffic.Conversation, conversations)
	for n := range held {
		held[n] = traffic.NewConversation(system, uint64(n))
	}
	table := newTable(r.Out, title)
	order := rand.New(rand.NewPCG(2, 2))
	var calls []Call
	for turn := range turns {
		for c := range r.takeTurns(ctx, host, turn, held, order.Perm(conversations)) {
			table.row(c)
			calls = append(calls, c)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	r.Last = held[0]
	return calls, nil
}

// takeTurns takes one turn of each conversation, in the given order, and returns the calls as they end.
func (r *Run) takeTurns(ctx context.Context, host string, turn int, held []*traffic.Conversation, order []int) <-chan Call {
	waiting := map[string]chan int{}
	for _, service := range Services {
		waiting[service] = make(chan int, len(order))
	}
	for _, n := range order {
		waiting[Services[n%len(Services)]] <- n
	}
	tokens := NextTokens
	if turn == 0 {
		tokens = firstTokens
	}
	results := make(chan Call)
	var workers sync.WaitGroup
	for _, service := range Services {
		close(waiting[service])
		for range 2 {
			workers.Go(func() {
				for n := range waiting[service] {
					answer, err := held[n].Ask(ctx, r.Callers[service], host, r.Models[service], tokens, AnswerTokens)
					results <- Call{Service: service, Conversation: n + 1, Turn: turn + 1, Answer: answer, Err: err}
				}
			})
		}
	}
	go func() {
		workers.Wait()
		close(results)
	}()
	return results
}
