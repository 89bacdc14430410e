// Package modelmetrics reads what model servers tell of themselves: it asks each endpoint of a fleet for its Prometheus
// page, picks the few numbers that matter out of it, and hands them on as readings that know how old they are.
//
// The servers need nothing beyond their ordinary metrics. Their names for them are in engine.go; parse.go finds them in
// one pass over a page; scraper.go says when which endpoint is asked; tenant.go and room.go keep the endpoints of one tenant
// from holding up those of others.
//
// What a reading is worth, and which endpoint is to be chosen for it, is decided elsewhere: nothing of selection, of
// Kubernetes or of Envoy may enter here.
package modelmetrics
