// Package load puts an ext_proc server under load as Envoy does: a gRPC stream for each HTTP call, with Envoy's messages in
// Envoy's order. It measures how many calls were answered and how long the proxy would have held each. It does not measure
// the server's cost.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

const method = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"

// connections is the number of connections for all streams. Envoy has one for each worker thread.
const connections = 2

// Load says what to send.
type Load struct {
	// Address is the server's host:port.
	Address string
	// Pool is the pool that streams name, "namespace/name".
	Pool string
	// Mode says how bodies are sent.
	Mode Mode
	// Bodies are the prompts, made by prompt.Chat. Calls use them in turn.
	Bodies [][]byte
	// Warm is the number of different prompts of each body; 0 makes every prompt a new one.
	Warm uint64
	// Streams is the number of calls in flight; at a fixed rate, the highest number.
	Streams int
	// Picks says that each call must get an endpoint.
	Picks bool
	// AbandonEvery makes one call in so many end in the middle, like that of a client that vanishes; 0 makes none.
	AbandonEvery uint64
}

// Driver runs one Load. Close ends it.
type Driver struct {
	load  Load
	conns []*grpc.ClientConn
	ended atomic.Int64
	calls atomic.Uint64
}

// serials makes the prompts of all drivers differ, so that no driver warms another's prompts. The first serials are for
// warm prompts.
var serials atomic.Uint64

const firstColdSerial = 1 << 20

// New makes a driver, which connects to the server at the first call.
func New(l Load) (*Driver, error) {
	d := &Driver{load: l}
	for range connections {
		conn, err := grpc.NewClient("passthrough:///"+l.Address,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(encoded{})),
			// The flow-control window must not hold back the bytes that a server returns before the whole body was sent.
			grpc.WithInitialWindowSize(16<<20), grpc.WithInitialConnWindowSize(256<<20),
		)
		if err != nil {
			d.Close()
			return nil, fmt.Errorf("connecting to %s: %w", l.Address, err)
		}
		d.conns = append(d.conns, conn)
	}
	return d, nil
}

// Close closes the connections.
func (d *Driver) Close() {
	for _, c := range d.conns {
		_ = c.Close() // the only error is that it is closed already
	}
}

// Ended returns how many calls have been answered so far.
func (d *Driver) Ended() int { return int(d.ended.Load()) }

// Closed runs a closed loop, in which each stream follows the one before at once, until ctx ends; calls in flight then may
// finish. The error is that of the first failed call.
func (d *Driver) Closed(ctx context.Context) error {
	return d.workers(ctx, func(life context.Context, s *sender) error {
		for ctx.Err() == nil && life.Err() == nil {
			if _, err := s.call(life); err != nil {
				return err
			}
		}
		return nil
	})
}

// AtRate runs an open loop of a given length: calls begin at even intervals, whether or not others have ended. It returns
// the time of each call's pick since the call was due, so that a wait for a free stream counts too.
func (d *Driver) AtRate(ctx context.Context, perSecond float64, length time.Duration) ([]time.Duration, error) {
	calls := int(perSecond * length.Seconds())
	due := make(chan time.Time, calls)
	go func() {
		defer close(due)
		start := time.Now()
		for i := range calls {
			at := start.Add(time.Duration(float64(i) / perSecond * float64(time.Second)))
			time.Sleep(time.Until(at))
			if ctx.Err() != nil {
				return
			}
			due <- at
		}
	}()
	var mu sync.Mutex
	took := make([]time.Duration, 0, calls)
	err := d.workers(ctx, func(life context.Context, s *sender) error {
		for at := range due {
			picked, err := s.call(life)
			if err != nil {
				return err
			}
			mu.Lock()
			took = append(took, picked.Sub(at))
			mu.Unlock()
		}
		return nil
	})
	return took, err
}

// lateLimit bounds the time for calls in flight to finish after the load.
const lateLimit = 5 * time.Second

// workers runs all streams' senders until they return, and cancels them at the first error. Their context has no deadline,
// as gRPC would tell it to the server. It is cancelled some time after ctx ends.
func (d *Driver) workers(ctx context.Context, work func(life context.Context, s *sender) error) error {
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-life.Done():
		case <-time.After(lateLimit):
			end(fmt.Errorf("calls were not answered within %s", lateLimit))
		}
	})
	defer stop()
	var wait sync.WaitGroup
	for i := range d.load.Streams {
		s, err := d.newSender(i)
		if err != nil {
			end(err)
			break
		}
		wait.Go(func() {
			if err := work(life, s); err != nil {
				end(err) // only the first counts
			}
		})
	}
	wait.Wait()
	end(nil)
	if err := context.Cause(life); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// sender makes calls one after the other.
type sender struct {
	driver  *Driver
	conn    *grpc.ClientConn
	scripts []*script
	answers map[string][]byte // the answer's headers by serving endpoint
	body    []byte            // of the answer
	reply   []byte
}

func (d *Driver) newSender(i int) (*sender, error) {
	s := &sender{driver: d, conn: d.conns[i%len(d.conns)], answers: map[string][]byte{}}
	for _, body := range d.load.Bodies {
		x, err := newScript(body, d.load.Mode)
		if err != nil {
			return nil, err
		}
		s.scripts = append(s.scripts, x)
	}
	var err error
	s.body, err = answerBody()
	return s, err
}

// call makes one call and returns the time of its pick: when the proxy could have forwarded the whole request.
func (s *sender) call(ctx context.Context) (picked time.Time, err error) {
	n := s.driver.calls.Add(1)
	x := s.scripts[n%uint64(len(s.scripts))]
	serial := n / uint64(len(s.scripts)) % max(1, s.driver.load.Warm)
	if s.driver.load.Warm == 0 {
		serial = firstColdSerial + serials.Add(1)
	}
	x.number(n, serial)
	ctx = metadata.AppendToOutgoingContext(ctx, pool.NameHeader, s.driver.load.Pool)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return time.Time{}, fmt.Errorf("opening a stream: %w", err)
	}
	if every := s.driver.load.AbandonEvery; every > 0 && n%every == 0 {
		return time.Now(), s.abandon(stream, x, n/every)
	}
	endpoint, err := s.ask(stream, x)
	if err != nil {
		return time.Time{}, fmt.Errorf("asking for a pick: %w", err)
	}
	picked = time.Now()
	if s.driver.load.Picks && endpoint == "" {
		return picked, errors.New("a call was given no endpoint")
	}
	if err := s.answer(stream, endpoint); err != nil {
		return picked, fmt.Errorf("telling of the answer: %w", err)
	}
	s.driver.ended.Add(1)
	return picked, nil
}

// ask sends the request and receives the replies to it.
func (s *sender) ask(stream grpc.ClientStream, x *script) (endpoint string, err error) {
	if err := send(stream, x.headers); err != nil {
		return "", err
	}
	if s.driver.load.Mode == Duplex {
		return s.askDuplex(stream, x)
	}
	onHeaders, err := s.receive(stream)
	if err != nil {
		return "", err
	}
	if err := send(stream, x.body[0]); err != nil {
		return "", err
	}
	onBody, err := s.receive(stream)
	return onHeaders.endpoint + onBody.endpoint, err
}

func (s *sender) askDuplex(stream grpc.ClientStream, x *script) (endpoint string, err error) {
	for _, chunk := range x.body {
		if err := send(stream, chunk); err != nil {
			return "", err
		}
	}
	for returned, end := 0, false; !end; {
		r, err := s.receive(stream)
		if err != nil {
			return "", err
		}
		endpoint += r.endpoint
		returned += r.returned
		if end = r.end; end && returned != x.bodyBytes {
			return "", fmt.Errorf("%d bytes of a body of %d came back", returned, x.bodyBytes)
		}
	}
	return endpoint, nil
}

// answer sends the messages of the model's answer and ends the stream, as the proxy does at the end of the call.
func (s *sender) answer(stream grpc.ClientStream, endpoint string) error {
	headers, ok := s.answers[endpoint]
	if !ok {
		var err error
		if headers, err = answerHeaders(endpoint); err != nil {
			return err
		}
		s.answers[endpoint] = headers
	}
	if err := s.exchange(stream, headers); err != nil {
		return err
	}
	if s.driver.load.Mode == Duplex {
		if err := s.exchange(stream, s.body); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(&s.reply); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream's end: %w", err)
	}
	return nil
}

// abandon ends a call early: after the headers, in the body, or before the answer, in turn.
func (s *sender) abandon(stream grpc.ClientStream, x *script, n uint64) error {
	switch n % 3 {
	case 0:
		return send(stream, append([]byte(nil), x.headers...))
	case 1:
		if err := send(stream, append([]byte(nil), x.headers...)); err != nil {
			return err
		}
		return send(stream, append([]byte(nil), x.body[0]...)) // a copy, as the stream may hold it longer
	default:
		_, err := s.ask(stream, x)
		return err
	}
}

func (s *sender) exchange(stream grpc.ClientStream, message []byte) error {
	if err := send(stream, message); err != nil {
		return err
	}
	_, err := s.receive(stream)
	return err
}

func (s *sender) receive(stream grpc.ClientStream) (reply, error) {
	if err := stream.RecvMsg(&s.reply); err != nil {
		return reply{}, err
	}
	return readReply(s.reply)
}

// send sends a message. If the server has ended the stream, the next receive returns the reason.
func send(stream grpc.ClientStream, message []byte) error {
	if err := stream.SendMsg(message); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// encoded is the codec of messages that are already encoded.
type encoded struct{}

// Name is empty for gRPC's default codec: the messages have its encoding.
func (encoded) Name() string { return "" }

// Marshal takes a []byte, which must not change until it is sent.
func (encoded) Marshal(v any) (mem.BufferSlice, error) {
	message, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T is no encoded message", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(message)}, nil
}

// Unmarshal copies a message into a *[]byte, whose memory it reuses.
func (encoded) Unmarshal(data mem.BufferSlice, v any) error {
	out, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("%T takes no encoded message", v)
	}
	*out = (*out)[:0]
	for _, part := range data {
		*out = append(*out, part.ReadOnlyData()...)
	}
	return nil
}
