// Package modelmetrics scrapes the Prometheus pages of model servers, and makes of each page a reading: the few numbers
// that a pick needs. It must not know selection, Kubernetes or Envoy, nor how a reading decides a pick.
//
// The servers need nothing beyond their ordinary metrics. engine.go has the metrics' names; parse.go finds them in one
// pass over a page; scraper.go decides when which endpoint is scraped; tenant.go and room.go keep the endpoints of one
// tenant from delaying those of others.
package modelmetrics
