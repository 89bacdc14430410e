package main

import (
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// echoingBodies corrects the suite's endpoint picker, version 1.6.0, for bodies FULL_DUPLEX_STREAMED, which the Endpoint
// Picker Protocol requires. That picker replies to a body without the body, and to a body's first pieces before the
// headers. Either makes Envoy give up the stream. The suite's project has fixed both since
// (kubernetes-sigs/gateway-api-inference-extension, pull requests 3028 and 3033).
type echoingBodies struct {
	extprocv3.ExternalProcessorServer
}

func (e echoingBodies) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	return e.ExternalProcessorServer.Process(&echoingStream{ExternalProcessor_ProcessServer: stream})
}

// echoingStream is used by one goroutine only: the picker receives and sends in turn.
type echoingStream struct {
	extprocv3.ExternalProcessor_ProcessServer

	piece *extprocv3.HttpBody // the last one received
	// held holds the pieces of a request's body that came before the reply to its headers.
	held     []*extprocv3.ProcessingResponse
	answered bool // the headers
}

func (s *echoingStream) Recv() (*extprocv3.ProcessingRequest, error) {
	r, err := s.ExternalProcessor_ProcessServer.Recv()
	switch {
	case err != nil:
	case r.GetRequestBody() != nil:
		s.piece = r.GetRequestBody()
	case r.GetResponseBody() != nil:
		s.piece = r.GetResponseBody()
	}
	return r, err
}

func (s *echoingStream) Send(r *extprocv3.ProcessingResponse) error {
	switch {
	case r.GetRequestHeaders() != nil:
		s.answered = true
		if err := s.ExternalProcessor_ProcessServer.Send(r); err != nil {
			return err
		}
		for _, held := range s.held {
			if err := s.ExternalProcessor_ProcessServer.Send(held); err != nil {
				return err
			}
		}
		s.held = nil
		return nil
	case r.GetRequestBody() != nil:
		echo(r.GetRequestBody(), s.piece)
		if !s.answered {
			s.held = append(s.held, r)
			return nil
		}
	case r.GetResponseBody() != nil:
		echo(r.GetResponseBody(), s.piece)
	}
	return s.ExternalProcessor_ProcessServer.Send(r)
}

// echo puts a piece of a body into the reply to the piece.
func echo(answer *extprocv3.BodyResponse, piece *extprocv3.HttpBody) {
	answer.Response = &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: &extprocv3.StreamedBodyResponse{
			Body: piece.GetBody(), EndOfStream: piece.GetEndOfStream(),
		}},
	}}
}
