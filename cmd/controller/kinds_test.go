package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// lateKind is an API server that has one kind only from a time on, and does not answer for a while before.
type lateKind struct {
	meta.RESTMapper
	kind        string
	unavailable time.Time
	from        time.Time
}

func (l lateKind) RESTMapping(kind schema.GroupKind, _ ...string) (*meta.RESTMapping, error) {
	switch now := time.Now(); {
	case kind.Kind != l.kind || now.After(l.from):
		return &meta.RESTMapping{}, nil
	case now.After(l.unavailable):
		return nil, errors.New("connection refused")
	}
	return nil, &meta.NoKindMatchError{GroupKind: kind}
}

// A replica, with the lease or without, ends once the cluster has a kind that it lacked, and not where the API server does
// not answer.
func TestEveryReplicaAwaitsKinds(t *testing.T) {
	for _, kind := range []string{"VirtualService", "DestinationRule", "GRPCRoute"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := time.Now().Add(10 * time.Minute)
				m := waitingManager(t, lateKind{kind: kind, unavailable: from.Add(-5 * time.Minute), from: from})
				if err := awaitKinds(m); err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithTimeout(t.Context(), time.Hour)
				defer stop()
				err := m.Start(ctx)
				if err == nil || !strings.Contains(err.Error(), "the cluster now has the kind "+kind) {
					t.Errorf("it ended with %v, want that the cluster now has the kind %s", err, kind)
				}
				if late := time.Since(from); late < 0 || late > time.Minute {
					t.Errorf("it ended %s after the kind was there", late)
				}
			})
		})
	}
}

// The controller of a cluster that has all kinds goes on.
func TestNoKindIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := waitingManager(t, lateKind{})
		if err := awaitKinds(m); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		if err := m.Start(ctx); err != nil {
			t.Error(err)
		}
	})
}
