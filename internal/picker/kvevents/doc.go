// Package kvevents subscribes to the events by which model servers tell which blocks their prefix caches store and
// evict. It must not know pools, requests or picks: it names blocks by tokenblocks and hands the names to a Sink.
//
// vLLM and SGLang publish the events over ZeroMQ. A batch of events has a sequence number, so that a gap is seen. vLLM
// keeps its last batches and sends them again on another socket when asked (a replay).
//
// A tenant owns its servers, which may be hostile. What a server sends takes memory of the tenant's share and time of
// the tenant's rate, and no connection is made but to the endpoint's own address. What a server says of its own cache is
// believed: a server that lies is picked for prompts that it has to compute.
package kvevents
