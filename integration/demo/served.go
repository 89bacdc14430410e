package main

import (
	"context"
	"fmt"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/conversations"
	"github.com/inference-waypoint/inference-waypoint/integration/engines"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

// The values of -engine.
const (
	standIn = "stand-in"
	vllm    = "vllm"
)

// served is what serves the model, and what the demo shows with it.
type served struct {
	what        string // in words
	images      map[string]mesh.Image
	install     func(context.Context, *mesh.Mesh) error
	balancer    string // how the waypoint balances without picking
	comparisons []comparison
	split       bool          // whether a route splits calls over two pools
	limit       time.Duration // for all that is shown, on a machine under heavy load
}

// comparison is one set of conversations that are held with picking and without.
type comparison struct {
	suffix string
	models map[string]string
	goal   conversations.Goal
}

func servedBy(engine string) (*served, error) {
	switch engine {
	case standIn:
		return standIns(), nil
	case vllm:
		return vllms()
	}
	return nil, fmt.Errorf("the engine %q is not known: want %s or %s", engine, standIn, vllm)
}

func standIns() *served {
	return &served{
		what:        "4 model servers",
		install:     func(ctx context.Context, m *mesh.Mesh) error { return m.InstallQuickstart(ctx) },
		balancer:    "ROUND_ROBIN",
		comparisons: []comparison{{models: conversations.Everyone(conversations.StandIn), goal: conversations.Clearly}},
		split:       true,
		limit:       10 * time.Minute,
	}
}

// vllms are real engines. Their prompts take a second or so each on two cores, and least request is the better of what a
// waypoint can do by itself.
func vllms() (*served, error) {
	root, err := mesh.FindRoot()
	if err != nil {
		return nil, err
	}
	images, err := engines.Images(root)
	if err != nil {
		return nil, err
	}
	adapters := map[string]string{}
	for i, service := range conversations.Services {
		adapters[service] = engines.Adapters[i]
	}
	return &served{
		what:     fmt.Sprintf("%d real vLLMs on the CPU", engines.Servers),
		images:   images,
		install:  engines.Install,
		balancer: "LEAST_REQUEST",
		comparisons: []comparison{
			{models: conversations.Everyone(engines.Model), goal: conversations.Goal{Cached: 1.2, FirstToken: 0.8}},
			{suffix: ", each service with its LoRA adapter", models: adapters, goal: conversations.Goal{Cached: 1, FirstToken: 1}},
		},
		limit: 40 * time.Minute,
	}, nil
}
