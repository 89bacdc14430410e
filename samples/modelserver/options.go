package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/api"
	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
)

// options are the program's flags. A flag with the meaning of one of vLLM's has
// the same name.
type options struct {
	address         string
	name            string
	loraModules     []string
	shutdownTimeout time.Duration
	engine          engine.Config
}

// parseOptions parses and checks args, and returns all invalid values in one
// error. For --help it prints the help and returns pflag.ErrHelp.
func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := pflag.NewFlagSet("modelserver", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.StringVar(&o.address, "address", ":8000", "address to listen on, HTTP/1.1 and h2c")
	flags.StringVar(&o.name, "name", defaultName(), "name in the "+api.ServedByHeader+" header")
	flags.StringVar(&o.engine.Model, "model", "sample-model", "name of the base model")
	flags.IntVar(&o.engine.MaxModelLen, "max-model-len", 131072, "tokens of prompt and answer together, if the KV blocks hold as many")
	flags.IntVar(&o.engine.BlockSize, "block-size", 16, "tokens in a KV block")
	flags.IntVar(&o.engine.NumBlocks, "num-gpu-blocks", 16384, "KV blocks")
	flags.IntVar(&o.engine.MaxNumSeqs, "max-num-seqs", 256, "requests that run at once")
	flags.IntVar(&o.engine.MaxBatchedTokens, "max-num-batched-tokens", 2048, "tokens of one step")
	flags.Float64Var(&o.engine.PrefillTokensPerSecond, "prefill-tokens-per-second", 8000, "speed of prompts, of all requests together")
	flags.Float64Var(&o.engine.DecodeTokensPerSecond, "decode-tokens-per-second", 50, "speed of one answer alone; each other one adds 1% to a step")
	flags.IntVar(&o.engine.AnswerTokens, "answer-tokens", 128, "mean length of an answer that ends by itself")
	flags.StringSliceVar(&o.loraModules, "lora-modules", nil, "names of the LoRA adapters known at the start")
	flags.IntVar(&o.engine.MaxLoRAs, "max-loras", 4, "LoRA adapters that are resident at once; 0 turns LoRA off")
	flags.DurationVar(&o.engine.LoRALoadTime, "lora-load-time", time.Second, "time until an adapter is resident")
	flags.Float64Var(&o.engine.TimeScale, "time-scale", 1, "makes everything this many times faster")
	flags.DurationVar(&o.shutdownTimeout, "shutdown-timeout", 30*time.Second, "how long running requests may take after SIGTERM (not scaled)")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected arguments: %q", flags.Args())
	}
	return o, o.validate()
}

func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "modelserver"
	}
	return cmp.Or(os.Getenv("POD_NAME"), host)
}

func (o options) validate() error {
	var errs []error
	// The bounds keep every product of the values, such as the time of a step,
	// within the range of its type. The comparison is written to refuse NaN too.
	within := func(flag string, v, low, high float64) {
		if !(v >= low && v <= high) {
			errs = append(errs, fmt.Errorf("--%s must be from %v to %v, got %v", flag, low, high, v))
		}
	}
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	e := o.engine
	within("max-model-len", float64(e.MaxModelLen), 1, 1e8)
	within("block-size", float64(e.BlockSize), 1, 1e6)
	within("num-gpu-blocks", float64(e.NumBlocks), 1, 1e7)
	within("max-num-seqs", float64(e.MaxNumSeqs), 1, 1e5)
	within("max-num-batched-tokens", float64(e.MaxBatchedTokens), 1, 1e6)
	within("prefill-tokens-per-second", e.PrefillTokensPerSecond, 0.1, 1e9)
	within("decode-tokens-per-second", e.DecodeTokensPerSecond, 0.1, 1e9)
	within("answer-tokens", float64(e.AnswerTokens), 1, 1e8)
	within("max-loras", float64(e.MaxLoRAs), 0, 1e5)
	within("lora-load-time", e.LoRALoadTime.Seconds(), 0, 86400)
	within("time-scale", e.TimeScale, 0.1, 1e6)
	within("shutdown-timeout", o.shutdownTimeout.Seconds(), 0, 86400)
	check(o.address != "", "--address must not be empty")
	check(o.name != "", "--name must not be empty")
	check(e.Model != "", "--model must not be empty")
	check(e.MaxBatchedTokens >= e.MaxNumSeqs,
		"--max-num-batched-tokens must be at least --max-num-seqs (%d), got %d", e.MaxNumSeqs, e.MaxBatchedTokens)
	check(e.MaxLoRAs > 0 || len(o.loraModules) == 0, "--lora-modules needs --max-loras of at least 1, got %d", e.MaxLoRAs)
	for _, name := range o.loraModules {
		check(api.ValidAdapterName(name) && name != e.Model, "--lora-modules: %q is not a usable adapter name", name)
	}
	return errors.Join(errs...)
}
