//go:build standalone

package main

import (
	"errors"
	"log/slog"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

// With the build tag standalone the picker is built without Kubernetes, in half the time. The preview uses it.

var errStandalone = errors.New("this picker is built without Kubernetes: give its pools with --static FILE")

func fromCluster(Options, *poolstate.Fleet, *others, *slog.Logger) (source, func(pool, token string) bool, error) {
	return nil, nil, errStandalone
}

func toReaders(Options, forOperators) (forOperators, error) { return forOperators{}, errStandalone }
