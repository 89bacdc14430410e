package main

import (
	"errors"
	"io"
	"net/http"
	"strings"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// webSocket echoes each message as it comes.
func (e *echo) webSocket() http.Handler {
	return websocket.Server{Handler: func(c *websocket.Conn) {
		for {
			var message string
			if websocket.Message.Receive(c, &message) != nil || websocket.Message.Send(c, e.name+" "+message) != nil {
				return
			}
		}
	}}
}

// gRPC serves each method of echo.Echo with messages of one text. The method's name says what it does: Unary, ServerStream
// (three answers to one message), ClientStream (one answer to all) and Stream (an answer to each). A message "fail" ends
// the call with a status. A trailer names the server.
func (e *echo) gRPC() http.Handler {
	return grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		s.SetTrailer(metadata.Pairs("served-by", e.name))
		method, _ := grpc.MethodFromServerStream(s)
		_, kind, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
		var all []string
		for {
			message := &wrapperspb.StringValue{}
			err := s.RecvMsg(message)
			switch {
			case errors.Is(err, io.EOF) && kind == "ClientStream":
				return s.SendMsg(wrapperspb.String(strings.Join(all, " ")))
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			case message.Value == "fail":
				return status.Error(codes.DataLoss, "as was wished")
			}
			all = append(all, message.Value)
			answers := map[string]int{"Unary": 1, "ServerStream": 3, "Stream": 1}[kind]
			for range answers {
				if err := s.SendMsg(message); err != nil {
					return err
				}
			}
		}
	}))
}
