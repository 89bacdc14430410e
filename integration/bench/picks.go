package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/load"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/report"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/server"
)

// cell is one measurement at full speed: a server under a load, once in every round.
type cell struct {
	server *contender
	load   load.Load

	cpu, rate, mallocs []float64 // seconds, calls a second, objects a call; one value for each round
}

func (c *cell) cpuPerPick() float64     { return report.Median(c.cpu) }
func (c *cell) callsPerSecond() float64 { return report.Median(c.rate) }
func (c *cell) allocations() float64    { return report.Median(c.mallocs) }

// measure takes all cells in turn, round by round, so that a temporary disturbance of the machine affects all.
func (b *bench) measure(ctx context.Context, cells []*cell) error {
	for range b.plan.rounds {
		for _, c := range cells {
			if err := b.measureOnce(ctx, c); err != nil {
				return fmt.Errorf("%s, %s, %s, %s: %w", c.server.Name, c.load.Pool, c.load.Mode, report.Kilobytes(len(c.load.Bodies[0])), err)
			}
		}
	}
	return nil
}

// reading is what a server has used and done up to a moment.
type reading struct {
	at      time.Time
	cpu     time.Duration
	calls   int
	mallocs float64
}

func (b *bench) measureOnce(ctx context.Context, c *cell) error {
	d, err := load.New(c.load)
	if err != nil {
		return err
	}
	defer d.Close()
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- d.Closed(running) }()

	if err := warmUp(ctx, d); err != nil {
		return err
	}
	from, err := read(ctx, c.server, d)
	if err != nil {
		return err
	}
	if err := pause(ctx, b.plan.window); err != nil {
		return err
	}
	to, err := read(ctx, c.server, d)
	if err != nil {
		return err
	}
	stop()
	if err := <-ended; err != nil {
		return err
	}
	calls, length := float64(to.calls-from.calls), to.at.Sub(from.at)
	if calls == 0 {
		return fmt.Errorf("no call was answered in %s", length)
	}
	c.cpu = append(c.cpu, max(0, (to.cpu-from.cpu).Seconds()-c.server.idle*length.Seconds())/calls)
	c.rate = append(c.rate, calls/length.Seconds())
	c.mallocs = append(c.mallocs, (to.mallocs-from.mallocs)/calls)
	return c.server.Running()
}

// warmUp waits until connections are open and warm prompts were sent: for a moment, and for two calls of each prompt.
func warmUp(ctx context.Context, d *load.Driver) error {
	const least, most = 100 * time.Millisecond, 3 * time.Second
	for begin := time.Now(); time.Since(begin) < most; {
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
		if time.Since(begin) > least && d.Ended() >= 2*warmPrompts {
			break
		}
	}
	return nil
}

func read(ctx context.Context, c *contender, d *load.Driver) (reading, error) {
	values, err := c.Values(ctx)
	if err != nil {
		return reading{}, err
	}
	cpu, err := c.CPU()
	return reading{at: time.Now(), cpu: cpu, calls: d.Ended(), mallocs: values[server.Mallocs]}, err
}

// picks compares the three contenders with the usual number of endpoints and warm prompts.
func (b *bench) picks(ctx context.Context) error {
	type row struct{ nothing, picker, reference *cell }
	rows := map[load.Mode]map[int]*row{load.Buffered: {}, load.Duplex: {}}
	var cells []*cell
	for _, mode := range []load.Mode{load.Buffered, load.Duplex} {
		for _, size := range sizes {
			r := &row{nothing: b.usual(b.nothing, mode, size), picker: b.usual(b.picker, mode, size)}
			cells = append(cells, r.nothing, r.picker)
			if mode == load.Duplex {
				r.reference = b.usual(b.reference, mode, size)
				cells = append(cells, r.reference)
			}
			rows[mode][size] = r
		}
	}
	if err := b.measure(ctx, cells); err != nil {
		return err
	}
	var table [][]string
	for _, mode := range []load.Mode{load.Buffered, load.Duplex} {
		for _, size := range sizes {
			r := rows[mode][size]
			ratio, limit := r.picker.cpuPerPick()/r.nothing.cpuPerPick(), 1.3
			if size >= 64<<10 {
				limit = 1.5
			}
			b.report.Goal("CPU of a pick against nothing, %s, %s", ratio, limit, report.Kilobytes(size), mode)
			table = append(table,
				figures(fmt.Sprintf("%s, %s, nothing", report.Kilobytes(size), mode), r.nothing, math.NaN()),
				figures(fmt.Sprintf("%s, %s, picker", report.Kilobytes(size), mode), r.picker, ratio))
		}
	}
	b.pickTable(fmt.Sprintf("Picker and nothing, in the same mode; %d endpoints, warm, %d streams at full speed", usualFleet, streams), "picker / nothing", table)

	table = nil
	for _, size := range sizes {
		ours, theirs := rows[load.Buffered][size].picker, rows[load.Duplex][size].reference
		ratio := ours.cpuPerPick() / theirs.cpuPerPick()
		switch size {
		case 8 << 10:
			b.report.Goal("CPU of a pick against the reference, %s", ratio, 1./4, report.Kilobytes(size))
		case 64 << 10:
			b.report.Goal("CPU of a pick against the reference, %s", ratio, 1./8, report.Kilobytes(size))
		}
		b.referenceRate[size] = theirs.callsPerSecond()
		table = append(table,
			figures(report.Kilobytes(size)+", reference", theirs, math.NaN()),
			figures(report.Kilobytes(size)+", picker", ours, ratio))
	}
	b.pickTable(fmt.Sprintf("Picker (buffered) and reference (duplex), each asked in its own mode; %d endpoints, warm", usualFleet), "picker / reference", table)
	return b.memory()
}

func (b *bench) usual(c *contender, mode load.Mode, size int) *cell {
	return &cell{server: c, load: b.loadOf(c, usualFleet, mode, size, true)}
}

func (b *bench) pickTable(title, ratio string, rows [][]string) {
	b.report.Table(title, []string{"prompt, mode, server", "CPU µs/pick", "picks/s per core", "calls/s", "allocs/pick", ratio}, rows)
}

func figures(name string, c *cell, ratio float64) []string {
	return []string{name, report.Micros(c.cpuPerPick()), report.Number(1 / c.cpuPerPick()), report.Number(c.callsPerSecond()),
		report.Number(c.allocations()), report.Ratio(ratio)}
}

// memory reports the servers' memory after the measurements so far, and their use without calls.
func (b *bench) memory() error {
	var rows [][]string
	for _, c := range []*contender{b.nothing, b.picker, b.reference} {
		rss, err := c.RSS()
		if err != nil {
			return err
		}
		rows = append(rows, []string{c.Name, report.Megabytes(float64(rss)), fmt.Sprintf("%.1f %%", 100*c.idle)})
	}
	b.report.Table("After that", []string{"server", "RSS", "of a core at rest"}, rows)
	return nil
}

// growth measures what more endpoints and new prompts cost the picker.
func (b *bench) growth(ctx context.Context) error {
	cells := map[string]*cell{}
	key := func(size, endpoints int, warm bool) string { return fmt.Sprint(size, endpoints, warm) }
	var all []*cell
	for _, size := range sizes {
		for _, endpoints := range fleetSizes {
			for _, warm := range []bool{true, false} {
				c := &cell{server: b.picker, load: b.loadOf(b.picker, endpoints, load.Buffered, size, warm)}
				cells[key(size, endpoints, warm)] = c
				all = append(all, c)
			}
		}
	}
	if err := b.measure(ctx, all); err != nil {
		return err
	}
	var rows [][]string
	for _, size := range sizes {
		for _, warm := range []bool{true, false} {
			row := []string{report.Kilobytes(size) + ", " + temperature(warm)}
			for _, endpoints := range fleetSizes {
				row = append(row, report.Micros(cells[key(size, endpoints, warm)].cpuPerPick()))
			}
			ratio := cells[key(size, 1000, warm)].cpuPerPick() / cells[key(size, 10, warm)].cpuPerPick()
			b.report.Goal("CPU of a pick, 1,000 endpoints against 10, %s %s", ratio, 1.3, report.Kilobytes(size), temperature(warm))
			rows = append(rows, append(row, report.Ratio(ratio)))
		}
		warm, cold := cells[key(size, usualFleet, true)].cpuPerPick(), cells[key(size, usualFleet, false)].cpuPerPick()
		b.report.Goal("CPU of a pick, cold against warm or the other way, %s", max(warm/cold, cold/warm), 1.3, report.Kilobytes(size))
	}
	b.report.Table("The picker with more endpoints and new prompts, buffered: CPU µs/pick",
		[]string{"prompt", "10 endpoints", "100", "1,000", "1,000 / 10"}, rows)
	return nil
}

func temperature(warm bool) string {
	if warm {
		return "warm"
	}
	return "cold"
}

// rates compares the time of a pick at half of the reference's highest rate.
func (b *bench) rates(ctx context.Context) error {
	const p99Goal = 1. / 5
	all := []struct {
		server *contender
		mode   load.Mode
	}{{b.nothing, load.Buffered}, {b.picker, load.Buffered}, {b.reference, load.Duplex}}
	var rows [][]string
	for _, size := range b.plan.rateSizes {
		rate := b.referenceRate[size] / 2
		p50, p99 := make([][]float64, len(all)), make([][]float64, len(all))
		for range b.plan.rounds {
			for i, a := range all {
				took, err := b.atRate(ctx, b.loadOf(a.server, usualFleet, a.mode, size, true), rate)
				if err != nil {
					return fmt.Errorf("%s at %.0f calls/s: %w", a.server.Name, rate, err)
				}
				p50[i] = append(p50[i], report.Percentile(took, 0.5).Seconds())
				p99[i] = append(p99[i], report.Percentile(took, 0.99).Seconds())
			}
		}
		reference := report.Median(p99[2])
		for i, a := range all {
			rows = append(rows, []string{report.Kilobytes(size) + ", " + a.server.Name, report.Number(rate), report.Micros(report.Median(p50[i])),
				report.Micros(report.Median(p99[i])), report.Ratio(report.Median(p99[i]) / reference)})
		}
		if size == 64<<10 {
			b.report.Goal("p99 of a pick against the reference, %s", report.Median(p99[1])/reference, p99Goal, report.Kilobytes(size))
		}
	}
	b.report.Table(fmt.Sprintf("Time of a pick at a fixed rate, half of the reference's full speed above; %d endpoints, warm; each in its own mode.\n"+
		"The time counts from when a call was due, and so with what driver and server wait for a core.", usualFleet),
		[]string{"prompt, server", "calls/s", "p50 µs", "p99 µs", "p99 / reference's"}, rows)
	return nil
}

// atRate drives a load at a rate, after a moment for opening connections.
func (b *bench) atRate(ctx context.Context, l load.Load, perSecond float64) ([]time.Duration, error) {
	l.Streams = 64
	d, err := load.New(l)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if _, err := d.AtRate(ctx, perSecond, 200*time.Millisecond); err != nil {
		return nil, err
	}
	return d.AtRate(ctx, perSecond, b.plan.rateTime)
}

// crossReference measures the reference with other numbers of endpoints.
func (b *bench) crossReference(ctx context.Context) error {
	if !b.plan.cross {
		return nil
	}
	var rows [][]string
	figures := map[string]string{}
	for _, endpoints := range fleetSizes {
		b.reference.Stop()
		var err error
		if b.reference, err = b.startReference(ctx, endpoints); err != nil {
			return err
		}
		if err := b.rest(ctx, b.reference); err != nil {
			return err
		}
		var cells []*cell
		for _, size := range sizes {
			for _, warm := range []bool{true, false} {
				cells = append(cells, &cell{server: b.reference, load: b.loadOf(b.reference, endpoints, load.Duplex, size, warm)})
			}
		}
		if err := b.measure(ctx, cells); err != nil {
			return err
		}
		for _, c := range cells {
			figures[fmt.Sprint(len(c.load.Bodies[0]), endpoints, c.load.Warm > 0)] = report.Micros(c.cpuPerPick())
		}
	}
	for _, size := range sizes {
		for _, warm := range []bool{true, false} {
			row := []string{report.Kilobytes(size) + ", " + temperature(warm)}
			for _, endpoints := range fleetSizes {
				row = append(row, figures[fmt.Sprint(size, endpoints, warm)])
			}
			rows = append(rows, row)
		}
	}
	b.report.Table("The reference with more endpoints and new prompts, duplex: CPU µs/pick", []string{"prompt", "10 endpoints", "100", "1,000"}, rows)
	return nil
}
