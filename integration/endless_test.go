package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"golang.org/x/net/websocket"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

// endlessPoolYAML is a pool over servers that other pools may share.
const endlessPoolYAML = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: POOL, namespace: models}
spec:
  selector: {matchLabels: {app: SERVERS}}
  targetPorts: [{number: 8000}]
  appProtocol: PROTOCOL
  PICKER
`

// endlessPool makes a pool over existing servers. Without a name of a picker it has our picker.
func endlessPool(ctx context.Context, t *testing.T, name, servers, protocol, picker string) {
	t.Helper()
	text := strings.NewReplacer("POOL", name, "SERVERS", servers, "PROTOCOL", protocol, "PICKER", picker).Replace(endlessPoolYAML)
	t.Cleanup(func() { must(t, the.Client.Delete(context.WithoutCancel(ctx), pool(name))) })
	must(t, the.ApplyYAML(ctx, text))
	eventually(ctx, t, "calls to pool "+name, func(ctx context.Context) error {
		return wantHeard(ctx, "http://"+name+".models.inference.internal/x", servers+"-")
	})
}

// dialTo returns the caller's dialer to a pool's host.
func dialTo(ctx context.Context, pool string) (net.Conn, error) {
	return the.caller.HTTP.Transport.(*http.Transport).DialContext(ctx, "tcp", pool+".models.inference.internal:80")
}

// openWebSocket opens a WebSocket to a pool, as clients of vLLM's /v1/realtime do.
func openWebSocket(ctx context.Context, pool string) (*websocket.Conn, error) {
	host := pool + ".models.inference.internal"
	config, err := websocket.NewConfig("ws://"+host+"/v1/realtime", "http://"+host)
	if err != nil {
		return nil, err
	}
	conn, err := dialTo(ctx, pool)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(deadlineOf(ctx)); err != nil {
		return nil, err
	}
	return websocket.NewClient(config, conn)
}

func deadlineOf(ctx context.Context) time.Time {
	deadline, _ := ctx.Deadline()
	return deadline
}

// tell sends a message and expects a server to echo it.
func tell(c *websocket.Conn, message, servers string) error {
	if err := websocket.Message.Send(c, message); err != nil {
		return fmt.Errorf("sending %q: %w", message, err)
	}
	var got string
	if err := websocket.Message.Receive(c, &got); err != nil {
		return fmt.Errorf("hearing of %q: %w", message, err)
	}
	if !strings.HasPrefix(got, servers+"-") || !strings.HasSuffix(got, " "+message) {
		return fmt.Errorf("%q came back as %q", message, got)
	}
	return nil
}

// grpcTo makes a gRPC client of a pool.
func grpcTo(t *testing.T, pool string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+pool+".models.inference.internal",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dialTo(ctx, pool) }))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// endlessCall is a gRPC call in which each side may send at any time.
type endlessCall struct{ grpc.ClientStream }

func openCall(ctx context.Context, to *grpc.ClientConn, kind string) (endlessCall, error) {
	s, err := to.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/echo.Echo/"+kind)
	return endlessCall{s}, err
}

func (c endlessCall) say(messages ...string) error {
	for _, m := range messages {
		if err := c.SendMsg(wrapperspb.String(m)); err != nil {
			return err
		}
	}
	return nil
}

func (c endlessCall) hear(wants ...string) error {
	for _, want := range wants {
		got := &wrapperspb.StringValue{}
		if err := c.RecvMsg(got); err != nil {
			return fmt.Errorf("hearing %q: %w", want, err)
		}
		if got.Value != want {
			return fmt.Errorf("heard %q, want %q", got.Value, want)
		}
	}
	return nil
}

// end ends the call and expects the server's status and trailer.
func (c endlessCall) end(want codes.Code) error {
	if err := c.CloseSend(); err != nil {
		return err
	}
	err := c.RecvMsg(&wrapperspb.StringValue{})
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if got := status.Code(err); got != want {
		return fmt.Errorf("it ended with %s, want %s: %w", got, want, err)
	}
	if len(c.Trailer().Get("served-by")) != 1 {
		return fmt.Errorf("the trailers are %v", c.Trailer())
	}
	return nil
}

// grpcKinds are the kinds of gRPC calls. Each entry makes one call to its end.
var grpcKinds = map[string]func(endlessCall) error{
	"Unary":        func(c endlessCall) error { return errors.Join(c.say("a"), c.hear("a"), c.end(codes.OK)) },
	"ServerStream": func(c endlessCall) error { return errors.Join(c.say("a"), c.hear("a", "a", "a"), c.end(codes.OK)) },
	"ClientStream": func(c endlessCall) error {
		if err := errors.Join(c.say("a", "b", "c"), c.CloseSend()); err != nil {
			return err
		}
		return errors.Join(c.hear("a b c"), c.end(codes.OK))
	},
	"Stream": func(c endlessCall) error {
		return errors.Join(c.say("a"), c.hear("a"), c.say("b"), c.hear("b"), c.say("fail"), c.end(codes.DataLoss))
	},
}

// wantPicks makes a call and checks that the picker picked once.
func wantPicks(ctx context.Context, t *testing.T, pool, what string, call func() error) {
	t.Helper()
	whilePicked(ctx, t, pool, 1, func() (wrong []string) {
		before := picksOf(ctx, t, pool)
		if err := call(); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", what, err))
		}
		if got := picksOf(ctx, t, pool) - before; got != 1 {
			wrong = append(wrong, fmt.Sprintf("%s: %d picks, want 1", what, got))
		}
		return wrong
	})
}

// Calls with an endless body are picked at their headers, stream both ways for as long as they last, and end as the server
// ends them.
func TestCallsWithoutEnd(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	serve(ctx, t, "models", "endless", echoServer, 2)
	t.Cleanup(func() { must(t, the.Client.Delete(context.WithoutCancel(ctx), pool("endless"))) })
	endlessPool(ctx, t, "endless-grpc", "endless", "kubernetes.io/h2c", "")
	endlessPool(ctx, t, "endless-http", "endless", "http", "")
	conn := grpcTo(t, "endless-grpc")

	// Two long calls run beside all others. One of them is silent meanwhile.
	var lasting errgroup.Group
	wantPicks(ctx, t, "endless-http", "a WebSocket that lasts", func() error { return last(ctx, &lasting, "endless-http") })
	wantPicks(ctx, t, "endless-grpc", "a stream that lasts", func() error { return lastOf(ctx, &lasting, conn) })

	for kind, call := range grpcKinds {
		wantPicks(ctx, t, "endless-grpc", kind, func() error {
			c, err := openCall(ctx, conn, kind)
			if err != nil {
				return err
			}
			return call(c)
		})
	}
	wantPicks(ctx, t, "endless-http", "bytes without an end", func() error { return postWithoutEnd(ctx, "endless-http", "application/octet-stream") })
	wantPicks(ctx, t, "endless-http", "bytes with their length", func() error {
		h, err := send(ctx, http.MethodPost, "http://endless-http.models.inference.internal/x", "12345", "Content-Type", "application/octet-stream")
		if err == nil && (h.Headers.Get("Content-Length") != "5" || h.Answer.Get("Content-Length") == "") {
			err = fmt.Errorf("the lengths are %q and %q", h.Headers.Get("Content-Length"), h.Answer.Get("Content-Length"))
		}
		return err
	})
	must(t, lasting.Wait())
}

// lasts is longer than every default timeout on the path.
const lasts = time.Minute

// last opens a WebSocket and leaves it silent between two messages.
func last(ctx context.Context, group *errgroup.Group, pool string) error {
	c, err := openWebSocket(ctx, pool)
	if err != nil {
		return err
	}
	if err := tell(c, "first", "endless"); err != nil {
		return err
	}
	group.Go(func() error {
		defer func() { _ = c.Close() }()
		time.Sleep(lasts)
		return tell(c, "last", "endless")
	})
	return nil
}

// lastOf opens a gRPC stream and sends a message every two seconds.
func lastOf(ctx context.Context, group *errgroup.Group, conn *grpc.ClientConn) error {
	c, err := openCall(ctx, conn, "Stream")
	if err != nil {
		return err
	}
	if err := errors.Join(c.say("first"), c.hear("first")); err != nil {
		return err
	}
	group.Go(func() error {
		for begun := time.Now(); time.Since(begun) < lasts; time.Sleep(2 * time.Second) {
			if err := errors.Join(c.say("still"), c.hear("still")); err != nil {
				return err
			}
		}
		return c.end(codes.OK)
	})
	return nil
}

// postWithoutEnd starts a body that does not end, of a content type, and expects an answer nevertheless.
func postWithoutEnd(ctx context.Context, pool, contentType string) error {
	body, writer := io.Pipe()
	defer func() { _ = writer.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = writer.CloseWithError(context.Cause(ctx)) }) // the client waits for its body reads
	defer stop()
	go func() { _, _ = writer.Write([]byte(`{"model":"a",`)) }() // ends when the pipe is closed
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+pool+".models.inference.internal/x", body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", contentType)
	response, err := the.caller.HTTP.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// A call whose prompt stops in the middle waits for the rest as long as its caller does. Other calls are served meanwhile,
// and the call leaves nothing behind.
func TestPromptThatStopsInTheMiddle(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	streams := func(ctx context.Context, want string) error {
		page, err := metricsOf(ctx, picker(ctx, t), "9090")
		if line := `inference_waypoint_streams_in_flight{pool="models/stopped"} ` + want; err == nil && !strings.Contains(page, line+"\n") {
			err = errors.New("the metrics do not say " + line)
		}
		return err
	}
	serve(ctx, t, "models", "stopped", echoServer, 1)
	t.Cleanup(func() { must(t, the.Client.Delete(context.WithoutCancel(ctx), pool("stopped"))) })
	eventually(ctx, t, "calls", func(ctx context.Context) error {
		return wantHeard(ctx, "http://stopped.models.inference.internal/x", "stopped-")
	})
	patient, giveUp := context.WithCancel(ctx)
	answer := make(chan error, 1)
	go func() { answer <- postWithoutEnd(patient, "stopped", "application/json") }()
	eventually(ctx, t, "the call that waits", func(ctx context.Context) error { return streams(ctx, "1") })
	must(t, wantHeard(ctx, "http://stopped.models.inference.internal/x", "stopped-"))
	select {
	case err := <-answer:
		t.Errorf("half a prompt was answered: %v", err)
	default:
	}
	giveUp()
	if err := <-answer; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that gave up got %v", err)
	}
	eventually(ctx, t, "the end of its stream", func(ctx context.Context) error { return streams(ctx, "0") })
}

// otherPicker is another implementation of the Endpoint Picker Protocol. It replies to a request with a body at the body's
// end, as the reference implementation does, or already to the headers.
type otherPicker struct {
	extprocv3.UnimplementedExternalProcessorServer
	endpoint string
	hasty    atomic.Bool
	picks    atomic.Int64
}

func (p *otherPicker) Process(s extprocv3.ExternalProcessor_ProcessServer) error {
	var body []byte
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		switch m := m.Request.(type) {
		case *extprocv3.ProcessingRequest_RequestHeaders:
			if m.RequestHeaders.EndOfStream || p.hasty.Load() {
				err = s.Send(p.pick())
			}
		case *extprocv3.ProcessingRequest_RequestBody:
			body = append(body, m.RequestBody.Body...)
			if m.RequestBody.EndOfStream {
				m.RequestBody.Body = body
				err = errors.Join(s.Send(p.pick()), s.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
					RequestBody: &extprocv3.BodyResponse{Response: givenBack(m.RequestBody)},
				}}))
			}
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			err = s.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}})
		case *extprocv3.ProcessingRequest_ResponseBody:
			err = s.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
				ResponseBody: &extprocv3.BodyResponse{Response: givenBack(m.ResponseBody)},
			}})
		}
		if err != nil {
			return err
		}
	}
}

func (p *otherPicker) pick() *extprocv3.ProcessingResponse {
	p.picks.Add(1)
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
		Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{
			Header: &corev3.HeaderValue{Key: "x-gateway-destination-endpoint", RawValue: []byte(p.endpoint)},
		}}}},
	}}}
}

func givenBack(b *extprocv3.HttpBody) *extprocv3.CommonResponse {
	return &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{
		StreamedResponse: &extprocv3.StreamedBodyResponse{Body: b.Body, EndOfStream: b.EndOfStream},
	}}}
}

const otherPickerYAML = `
apiVersion: v1
kind: Service
metadata: {name: endless-picker, namespace: models}
spec:
  selector: {app: endless-picker}
  ports: [{name: grpc, port: 9002, appProtocol: grpc}]
`

// runOtherPicker serves an otherPicker in this process, on the address of a pod.
func runOtherPicker(ctx context.Context, t *testing.T) *otherPicker {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "endless-picker", Labels: map[string]string{"app": "endless-picker"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "picker", Image: mesh.ClientImage}}},
	}
	must(t, the.Client.Create(ctx, p))
	t.Cleanup(func() { must(t, the.Client.Delete(context.WithoutCancel(ctx), p)) })
	must(t, the.ApplyYAML(ctx, otherPickerYAML))
	eventually(ctx, t, "the picker's address", func(ctx context.Context) error {
		if err := the.Client.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil || p.Status.PodIP == "" {
			return errors.Join(errors.New("there is none"), err)
		}
		return nil
	})
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(p.Status.PodIP, "9002"))
	must(t, err)
	out, server := &otherPicker{}, grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(server, out)
	go func() { _ = server.Serve(listener) }() // ends at Stop
	t.Cleanup(server.Stop)
	return out
}

// Another picker, which may want a body's end before it picks, does not hold an endless call for ever. Its reply to the
// headers counts; without one the pool's failure mode decides.
func TestCallsWithoutEndByAnotherPicker(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	serve(ctx, t, "models", "elsewhere", echoServer, 2)
	t.Cleanup(func() { must(t, the.Client.Delete(context.WithoutCancel(ctx), pool("elsewhere"))) })
	other := runOtherPicker(ctx, t)
	chosen := pods(ctx, t, "models", client.MatchingLabels{"app": "elsewhere"})[0]
	other.endpoint = net.JoinHostPort(chosen.Status.PodIP, "8000")
	named := func(mode string) string {
		return "endpointPickerRef: {name: endless-picker, port: {number: 9002}, failureMode: " + mode + "}"
	}
	endlessPool(ctx, t, "other-grpc", "elsewhere", "kubernetes.io/h2c", named("FailOpen"))
	endlessPool(ctx, t, "other-http", "elsewhere", "http", named("FailOpen"))
	endlessPool(ctx, t, "other-closed", "elsewhere", "http", named("FailClose"))
	if other.picks.Load() == 0 {
		t.Fatal("the picker was not asked")
	}
	conn := grpcTo(t, "other-grpc")
	webSocket := func(pool string) error {
		c, err := openWebSocket(ctx, pool)
		if err != nil {
			return err
		}
		return errors.Join(tell(c, "one", "elsewhere"), tell(c, "two", "elsewhere"), c.Close())
	}
	each := func(t *testing.T) {
		t.Helper()
		for kind, call := range grpcKinds {
			c, err := openCall(ctx, conn, kind)
			if err == nil {
				err = call(c)
			}
			if err != nil {
				t.Errorf("%s: %v", kind, err)
			} else if by := c.Trailer().Get("served-by")[0]; other.hasty.Load() && by != chosen.Name {
				t.Errorf("%s was served by %s, want %s", kind, by, chosen.Name)
			}
		}
		if err := webSocket("other-http"); err != nil {
			t.Errorf("a WebSocket: %v", err)
		}
		if err := postWithoutEnd(ctx, "other-http", "application/octet-stream"); err != nil {
			t.Errorf("bytes without an end: %v", err)
		}
	}
	t.Run("that waits for the end", func(t *testing.T) {
		each(t)
		if err := webSocket("other-closed"); err == nil {
			t.Error("a WebSocket passed that nobody picked, to a pool that fails closed")
		}
		if err := ctx.Err(); err != nil {
			t.Error("a call hung")
		}
	})
	t.Run("that replies to headers", func(t *testing.T) {
		other.hasty.Store(true)
		defer other.hasty.Store(false)
		before := other.picks.Load()
		each(t)
		if err := webSocket("other-closed"); err != nil {
			t.Errorf("a WebSocket to a pool that fails closed: %v", err)
		}
		if got, want := other.picks.Load()-before, int64(len(grpcKinds)+3); got != want {
			t.Errorf("%d picks, want %d", got, want)
		}
	})
	// A prompt still passes this picker, both ways.
	h, err := send(ctx, http.MethodPost, "http://other-closed.models.inference.internal/x", `{"model":"a"}`, "Content-Type", "application/json")
	must(t, err)
	if h.Status != http.StatusOK || h.Server != chosen.Name {
		t.Errorf("a prompt got %d from %q, want %s", h.Status, h.Server, chosen.Name)
	}
}
