package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Goals from the controller's manifest, which requests 50 mCPU, and from users: a change should be in force before the user
// checks.
const (
	restCPU    = 0.05 // cores
	changeTime = time.Second
)

// watchRest measures the controller while nothing changes.
func (w *world) watchRest(ctx context.Context) error {
	settling, cancel := limited(ctx, "rest")
	defer cancel()
	before, err := w.settle(settling)
	if err != nil {
		return err
	}
	pids, err := w.controllers(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	cpuBefore, err := cpuOf(pids)
	if err != nil {
		return err
	}
	w.say("watching %s of rest", w.rest)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(w.rest):
	}
	cpuAfter, err := cpuOf(pids)
	if err != nil {
		return err
	}
	cores := (cpuAfter - cpuBefore).Seconds() / time.Since(began).Seconds()
	after, err := w.api.writes(ctx)
	if err != nil {
		return err
	}
	memory := 0
	for _, pid := range pids {
		n, err := memoryOf(pid)
		if err != nil {
			return err
		}
		memory = max(memory, n)
	}
	made := after.since(before).total()
	w.say("written during rest: %s", after.since(before))
	w.table.goal(fmt.Sprintf("writes by anybody during %s of rest, locks aside", w.rest), strconv.Itoa(made), "none", made == 0)
	w.table.goal(fmt.Sprintf("CPU at rest, all %d replicas", len(pids)), fmt.Sprintf("%.2f %% of a core", 100*cores), fmt.Sprintf("at most %.0f %%", 100*restCPU), cores <= restCPU)
	w.table.add("memory at rest, the larger replica", fmt.Sprintf("%d MiB", memory>>20))
	return nil
}

// clockTick is the unit of times in /proc/<pid>/stat: hundredths of a second on every architecture (USER_HZ, proc(5)).
const clockTick = 10 * time.Millisecond

// cpuOf returns the CPU time that processes have used.
func cpuOf(pids []int) (time.Duration, error) {
	var ticks int
	for _, pid := range pids {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("reading a process's time: %w", err)
		}
		// The process's name, in brackets, may hold anything; utime and stime are the 12th and 13th fields after it.
		_, rest, _ := cutLast(string(content), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			return 0, fmt.Errorf("reading a process's time: %q", content)
		}
		for _, f := range fields[11:13] {
			n, err := strconv.Atoi(f)
			if err != nil {
				return 0, fmt.Errorf("reading a process's time: %w", err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * clockTick, nil
}

// memoryOf returns a process's resident memory, in bytes.
func memoryOf(pid int) (int, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading a process's memory: %w", err)
	}
	_, rest, found := strings.Cut(string(content), "VmRSS:")
	var kib int
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); !found || err != nil {
		return 0, fmt.Errorf("reading a process's memory: no VmRSS in /proc/%d/status", pid)
	}
	return kib << 10, nil
}

// changePools changes one pool after the other and measures the time until each change is in the pool's EnvoyFilter.
func (w *world) changePools(ctx context.Context) error {
	ctx, cancel := limited(ctx, "changes")
	defer cancel()
	filters, err := w.watchFilters(ctx)
	if err != nil {
		return err
	}
	defer filters.Stop()
	before, err := w.api.writes(ctx)
	if err != nil {
		return err
	}
	var took []time.Duration
	for i := range w.changes {
		name := types.NamespacedName{Namespace: namespaceOf(i % w.waypoints), Name: poolName(i / w.waypoints % w.pools)}
		d, err := w.changePool(ctx, name, filters)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	after, err := w.settle(ctx)
	if err != nil {
		return err
	}
	slices.Sort(took)
	p99 := took[(len(took)*99+99)/100-1]
	w.table.add(fmt.Sprintf("a pool's change to its EnvoyFilter, median of %d", len(took)), round(took[len(took)/2]).String())
	w.table.goal("the same, p99", round(p99).String(), fmt.Sprint("at most ", changeTime), p99 <= changeTime)
	made := after.since(before).objects()
	w.table.goal("objects' writes per change", per(made, w.changes), "1", made == w.changes)
	w.say("written during %d changes: %s", w.changes, after.since(before))
	return nil
}

// watchFilters watches the metadata of all EnvoyFilters from now on.
func (w *world) watchFilters(ctx context.Context) (watch.Interface, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(networkingv1alpha3.SchemeGroupVersion.WithKind("EnvoyFilterList"))
	if err := w.Client.List(ctx, list); err != nil {
		return nil, fmt.Errorf("listing EnvoyFilters: %w", err)
	}
	from := &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}}
	out, err := w.Client.Watch(ctx, list, from)
	if err != nil {
		return nil, fmt.Errorf("watching EnvoyFilters: %w", err)
	}
	return out, nil
}

// changePool flips a pool's failure mode, and waits for the event of its EnvoyFilter.
func (w *world) changePool(ctx context.Context, name types.NamespacedName, filters watch.Interface) (time.Duration, error) {
	p := &inferencev1.InferencePool{}
	if err := w.Client.Get(ctx, name, p); err != nil {
		return 0, fmt.Errorf("reading a pool: %w", err)
	}
	mode := pool.FailClose
	if p.Annotations[pool.FailureModeAnnotation] == string(mode) {
		mode = pool.FailOpen
	}
	began := time.Now()
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, pool.FailureModeAnnotation, mode)
	if err := w.Client.Patch(ctx, p, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return 0, fmt.Errorf("changing a pool: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("waiting for the EnvoyFilter of %s: %w", name, context.Cause(ctx))
		case event, open := <-filters.ResultChan():
			if !open {
				return 0, errors.New("the watch of EnvoyFilters ended")
			}
			if o, ok := event.Object.(client.Object); ok && event.Type == watch.Modified {
				if owner, ours := apply.Owner(o); ours && owner == name {
					return time.Since(began), nil
				}
			}
		}
	}
}
