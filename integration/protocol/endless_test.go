package protocol

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/integration/local"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// waypointPicker is a door's picker as the controller configures it.
func (d door) waypointPicker() envoypatch.Picker {
	out := envoypatch.Picker{Host: d.picker + ".test", Port: 9002, FailOpen: d.failOpen}
	out.Metadata = map[string]string{"inference-waypoint-pool": poolName(d.pool)}
	if d.requests == duplex {
		out.Protocol = envoypatch.Duplex
	}
	return out
}

// waypointManager is the connection manager that the controller's patches make in a waypoint's chain.
func (d door) waypointManager() object {
	asked := d.waypointPicker()
	manager, err := local.Manager(envoypatch.VirtualHost{Name: d.name, Picker: asked, Routes: []envoypatch.Route{
		{Name: "all", To: []envoypatch.Destination{{Cluster: d.pool + " by header", Weight: 1, Picker: &asked}}},
	}}, pool.CounterName(types.NamespacedName{Namespace: "protocol", Name: d.name}))
	if err != nil {
		panic(err) // the doors are constants
	}
	return manager
}

// waypointClusters are the pickers under istiod's names for clusters.
func (w *world) waypointClusters() []object {
	var out []object
	addresses := map[string]string{"patient": w.patient.address}
	for name, p := range w.pickers {
		addresses[name] = p.Addresses["extproc"]
	}
	for name, p := range w.own {
		addresses[name] = p.address
	}
	for name, address := range addresses {
		c := pickerCluster(name, address, false)
		c["name"] = "outbound|9002||" + name + ".test"
		out = append(out, c)
	}
	return out
}

// patientPicker replies to a request's headers only when the body has ended, as the protocol's reference does.
type patientPicker struct {
	extprocv3.UnimplementedExternalProcessorServer
	address string
	server  *grpc.Server
}

func startPatientPicker() (*patientPicker, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("opening a picker: %w", err)
	}
	p := &patientPicker{address: listener.Addr().String(), server: grpc.NewServer()}
	extprocv3.RegisterExternalProcessorServer(p.server, p)
	go func() { _ = p.server.Serve(listener) }() // until it is stopped
	return p, nil
}

// Process always picks the first endpoint.
func (p *patientPicker) Process(s extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		switch m := m.Request.(type) {
		case *extprocv3.ProcessingRequest_RequestHeaders:
			if m.RequestHeaders.EndOfStream {
				err = s.Send(p.pick())
			}
		case *extprocv3.ProcessingRequest_RequestBody: // in one piece, as these tests send it
			if m.RequestBody.EndOfStream {
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

func (p *patientPicker) pick() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
		Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{
			Header: &corev3.HeaderValue{Key: destinationHeader, RawValue: []byte(the.pools["general"].endpoints[0].address)},
		}}}},
	}}}
}

func givenBack(b *extprocv3.HttpBody) *extprocv3.CommonResponse {
	return &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{
		StreamedResponse: &extprocv3.StreamedBodyResponse{Body: b.Body, EndOfStream: b.EndOfStream},
	}}}
}

// A body that cannot carry a prompt passes as it comes, and so does its answer, in each body mode that allows it. At a
// waypoint of a FailOpen pool this also holds with a picker that waits for a body's end.
func TestBodyWithoutEnd(t *testing.T) {
	for _, door := range []string{none, streamed, duplex, "waypoint", "waypoint http2", "waypoint " + duplex, "waypoint patient open"} {
		for _, contentType := range []string{"application/grpc", "application/octet-stream"} {
			t.Run(door+", "+contentType, func(t *testing.T) {
				body, writer := io.Pipe()
				defer func() { _ = writer.Close() }()
				say := func(text string) {
					if _, err := io.WriteString(writer, text); err != nil {
						t.Error(err)
					}
				}
				go say("one")
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				response, err := try(ctx, multiplexing, door, body, header("Content-Type", contentType), script(t, giveBack))
				must(t, err)
				defer func() { _ = response.Body.Close() }()
				if response.StatusCode != http.StatusOK {
					t.Fatalf("the answer is %s", response.Status)
				}
				hears(t, response.Body, "one")
				say("two")
				hears(t, response.Body, "two")
				must(t, writer.Close())
				if rest, err := io.ReadAll(response.Body); err != nil || len(rest) > 0 {
					t.Errorf("after the end came %q, %v", rest, err)
				}
				// Envoy passes trailers of HTTP/1.1 on only if configured to.
				if got := response.Trailer.Get("X-Last"); got != "said" && door == "waypoint http2" {
					t.Errorf("the trailer is %q", got)
				}
			})
		}
	}
}

// giveBack echoes a body piece by piece, with a trailer at its end.
func giveBack(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "X-Last")
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex()
	piece := make([]byte, 100)
	for {
		n, err := r.Body.Read(piece)
		if _, failed := w.Write(piece[:n]); failed != nil || control.Flush() != nil {
			return // the proxy cancelled the call
		}
		if err != nil {
			w.Header().Set("X-Last", "said")
			return
		}
	}
}

// A WebSocket opens at a waypoint and stays open, with either picker.
func TestWebSocket(t *testing.T) {
	for _, door := range []string{"waypoint", "waypoint " + duplex, "waypoint patient open"} {
		t.Run(door, func(t *testing.T) {
			conn, from, status := upgrade(t, door)
			if status != http.StatusSwitchingProtocols {
				t.Fatalf("the answer is %d", status)
			}
			for _, text := range []string{"one", "two"} {
				_, err := io.WriteString(conn, text)
				must(t, err)
				hears(t, from, text)
			}
		})
	}
}

// A FailClose pool refuses a call with an endless body if its picker waits for the end.
func TestPatientPickerFailsClosed(t *testing.T) {
	const door = "waypoint patient closed"
	if _, _, status := upgrade(t, door); status != http.StatusGatewayTimeout {
		t.Errorf("a WebSocket got %d, want 504", status)
	}
	want := the.pools["general"].endpoints[0].address
	if a := call(t, door, ask("patience"), header("Content-Type", "application/json")); a.status != http.StatusOK || a.heard.Endpoint != want {
		t.Errorf("a prompt got %d from %s, want %s", a.status, a.heard.Endpoint, want)
	}
}

// upgrade requests a WebSocket.
func upgrade(t *testing.T, door string) (conn net.Conn, from *bufio.Reader, status int) {
	t.Helper()
	conn, err := net.Dial("tcp", the.envoy.Addresses[door])
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://pool.test/v1/realtime", http.NoBody)
	must(t, err)
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
	} {
		request.Header.Set(name, value)
	}
	script(t, switchProtocol)(request)
	must(t, request.Write(conn))
	from = bufio.NewReader(conn)
	response, err := http.ReadResponse(from, request) //nolint:bodyclose // it has none, and the connection is closed with the test
	must(t, err)
	return conn, from, response.StatusCode
}

// switchProtocol accepts a WebSocket and then echoes all bytes.
func switchProtocol(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "websocket")
	w.WriteHeader(http.StatusSwitchingProtocols)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.Copy(conn, buffered)
}
