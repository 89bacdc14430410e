//go:build standalone

package main

import (
	"errors"
	"log/slog"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

// A picker that is built with the tag standalone knows no Kubernetes. It is built in half the time, and is what the preview
// shows.

var errStandalone = errors.New("this picker is built without Kubernetes: name its pools by --static FILE")

func fromCluster(Options, *poolstate.Fleet, *slog.Logger) (source, func(pool, token string) bool, error) {
	return nil, nil, errStandalone
}

func toReaders(Options, forOperators) (forOperators, error) { return forOperators{}, errStandalone }
