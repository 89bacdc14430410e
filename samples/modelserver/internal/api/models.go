package api

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
)

// catalog is the base model and the known adapters. A known adapter need not be
// resident: the engine decides that.
type catalog struct {
	base        string
	maxModelLen int
	created     int64
	loras       bool

	mu       sync.Mutex
	adapters map[string]adapterInfo
}

type adapterInfo struct {
	root    string
	created int64
}

func newCatalog(cfg engine.Config, adapters []string) *catalog {
	c := &catalog{
		base: cfg.Model, maxModelLen: cfg.ContextLength(), created: time.Now().Unix(),
		loras: cfg.MaxLoRAs > 0, adapters: make(map[string]adapterInfo),
	}
	for _, name := range adapters {
		c.adapters[name] = adapterInfo{root: name, created: c.created}
	}
	return c
}

// adapter returns the adapter for a model's name, empty for the base model. An
// empty name means the base model, as in vLLM.
func (c *catalog) adapter(model string) (adapter string, ok bool) {
	if model == "" || model == c.base {
		return "", true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok = c.adapters[model]
	return model, ok
}

func (c *catalog) add(name, path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.adapters[name]; ok || name == c.base {
		return badRequest("The lora adapter '%s' has already been loaded.", name)
	}
	c.adapters[name] = adapterInfo{root: path, created: time.Now().Unix()}
	return nil
}

func (c *catalog) remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.adapters[name]; !ok {
		return &requestError{http.StatusNotFound, fmt.Sprintf("The lora adapter '%s' cannot be found.", name)}
	}
	delete(c.adapters, name)
	return nil
}

type modelCard struct {
	ID          string  `json:"id"`
	Object      string  `json:"object"`
	Created     int64   `json:"created"`
	OwnedBy     string  `json:"owned_by"`
	Root        string  `json:"root"`
	Parent      *string `json:"parent"`
	MaxModelLen *int    `json:"max_model_len"`
}

// cards lists the base model, then the adapters by name.
func (c *catalog) cards() []modelCard {
	cards := []modelCard{{ID: c.base, Object: "model", Created: c.created, OwnedBy: ownedBy, Root: c.base, MaxModelLen: &c.maxModelLen}}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.adapters)) {
		a := c.adapters[name]
		cards = append(cards, modelCard{ID: name, Object: "model", Created: a.created, OwnedBy: ownedBy, Root: a.root, Parent: &c.base})
	}
	return cards
}

// ownedBy is vLLM's value, which some clients look for.
const ownedBy = "vllm"

func (s *Server) listModels(w http.ResponseWriter, _ *http.Request) {
	s.writeJSON(w, http.StatusOK, struct {
		Object string      `json:"object"`
		Data   []modelCard `json:"data"`
	}{"list", s.models.cards()})
}

type adapterRequest struct {
	Name string `json:"lora_name"`
	Path string `json:"lora_path"`
}

// ValidAdapterName reports whether an adapter may have this name: the metrics
// page joins names by commas.
func ValidAdapterName(name string) bool {
	return name != "" && !strings.ContainsAny(name, ", \t\n")
}

func (s *Server) loadAdapter(w http.ResponseWriter, r *http.Request) {
	var req adapterRequest
	if err := readJSON(w, r, &req); err != nil {
		s.fail(w, err)
		return
	}
	switch {
	case !s.models.loras:
		s.fail(w, badRequest("LoRA is not enabled."))
		return
	case req.Path == "" || !ValidAdapterName(req.Name):
		s.fail(w, badRequest("Both 'lora_name', without commas or spaces, and 'lora_path' must be provided."))
		return
	}
	if err := s.models.add(req.Name, req.Path); err != nil {
		s.fail(w, err)
		return
	}
	fmt.Fprintf(w, "Success: LoRA adapter '%s' added successfully.", req.Name)
}

func (s *Server) unloadAdapter(w http.ResponseWriter, r *http.Request) {
	var req adapterRequest
	if err := readJSON(w, r, &req); err != nil {
		s.fail(w, err)
		return
	}
	if err := s.models.remove(req.Name); err != nil {
		s.fail(w, err)
		return
	}
	s.engine.UnloadAdapter(req.Name)
	fmt.Fprintf(w, "Success: LoRA adapter '%s' removed successfully.", req.Name)
}
