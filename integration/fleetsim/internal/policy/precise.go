package policy

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/kvevents"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

const (
	// toldAfter is how long an event takes from the server to the picker, and tokenizedAfter a prompt's tokens.
	toldAfter      = 20 * time.Millisecond
	tokenizedAfter = 50 * time.Millisecond
)

// whole stands for a body that was read to its end.
var whole = []byte("{}")

// precise hears the servers' events.
type precise struct{ *holding }

func (p *precise) Members(now time.Duration, members []int) {
	p.ours.Members(now, members)
	for _, n := range members {
		p.pool.CacheChanged(address(n), kvevents.Change{BlockTokens: server.BlockTokens})
	}
}

func (p *precise) Changed(now time.Duration, n int, blocks []server.Changed) {
	blocks = slices.Clone(blocks)
	p.after(now+toldAfter, func() {
		for _, b := range blocks {
			c := kvevents.Change{BlockTokens: server.BlockTokens}
			if b.Stored {
				c.Stored = []uint64{b.Name}
			} else {
				c.Removed = []uint64{b.Name}
			}
			p.pool.CacheChanged(address(n), c)
		}
	})
}

func (p *ours) after(at time.Duration, f func()) { p.due = append(p.due, timer{at, f}) }

// tokenizer learns the tokens of the call that is being picked.
type tokenizer ours

func (r *tokenizer) Tokenize(_ netip.AddrPort, _ string, _ *request.Facts, _ []byte, then func(poolstate.Tokens)) {
	p, c := (*ours)(r), r.tokenized
	p.after(p.now+tokenizedAfter, func() { then(tokens{c}) })
}

// tokens are those of a simulated prompt.
type tokens struct{ call *workload.Call }

func (t tokens) Count() int { return t.call.Prompt }

func (t tokens) Before(part float64) int { return int(math.Round(part * float64(t.call.Prompt))) }

func (t tokens) Names(int) []uint64 { return server.Names(t.call) }
