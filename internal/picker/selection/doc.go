// Package selection decides which endpoint serves a call. It holds the rule, and as much of a pool's state as the rule
// reads: the work of each endpoint, its health, its adapters. Pick itself is pure: the call, the state, the time and
// the source of chance come in, a ranking comes out, and nothing is changed. Addresses, locks, streams and clusters
// may not enter; endpoints are small numbers that the user gives out.
//
// # The cost of a choice
//
// Every endpoint has a cost in seconds, and the least cost wins. It is the time until this call's first token plus what
// the choice costs all other calls:
//
//	cost =  wait                        the queue ahead, to be prefilled first
//	     +  uncached · s                this call's own prefill
//	     +  k · uncached · s            what that prefill costs those who come behind it
//	     +  d · uncached · s            what it pushes out of the cache, and others have to prefill again
//	     +  c · calls · s               the share of the endpoint's steps that the decoding of its calls takes
//	     +  max(0, ahead + own - room)  the wait for KV memory, where the server is short of it
//	     +  adapter                     loading the call's LoRA adapter, and what it pushes out
//	     -  session                     what a session's own endpoint is worth
//
// where s is the endpoint's own time to prefill a token, in seconds.
//
// The first two terms are the definition of the time to first token at a server that prefills in the order of arrival.
//
// The third is the externality of a queue. Whoever arrives while x seconds of work are in a queue waits those x seconds
// longer, and so does everybody until the queue is next empty. With ρ the share of the time in which servers prefill,
// each call that brings x so delays ρ/(1-ρ) others by the whole of it (the mean number that arrive in a busy period of
// an M/G/1 queue). k is that at half the limit: 1. Below the limit it hardly has to be right: on an hour of a real trace
// at ρ near 0.6 everything from 0.5 to 2, and a k that follows the measured ρ, gave the same times within 2 %. Beyond it,
// it has: with an hour of twice what 8 servers can serve, k = 1 leaves so much of the caches unused that the mean time is
// half as long again, and more, as with a k that follows the queues. Of 28 loads on simulated fleets, with two seeds, 16
// were better for it, by up to 57 % in the 90th percentile, 10 the same, and two worse, by up to 2.4 %. So k is 1, and
// where even the shortest queue is longer than 2 s, half the seconds of that queue, up to 8: no server will be idle soon,
// and all who come until one is wait for the token. Endpoints that are avoided after a failure have no say in that. A
// token in a cache is thus worth 2·s and more: a conversation stays where its prefix is as long as the queue there is no
// longer than that, and leaves when it is.
//
// The fourth is what becomes of the caches. Each new token pushes out the one that was used longest ago, and that was at
// about the time in which the endpoint took in as much as it holds. d is the part of the cache that came in within two
// minutes, a conversation's pause, and at most a half: nothing where there is room or what goes is old. So a new
// conversation goes, of endpoints that are alike to it, where the cache is exchanged least, and not where the system
// prompt that all have in common was cached first. On an hour of a real trace with 16 servers, whose caches held a
// twentieth of the working set, 1 % more was cached for it.
//
// The fifth keeps endpoints with few prompts and many answers from looking idle: c is small, since decoding shares its
// steps with prefill. It is also what shows a slow endpoint before its speed is learned, as calls in flight pile up.
//
// The adapter's term is nothing where the adapter is resident, the time to load it where there is a free slot, and up to
// twice that where another has to go, by how lately that one was used. On top comes up to one load time more by
// rendezvous hashing of the adapter's name and the endpoint: so an adapter that is nowhere has one home in all replicas
// of the picker, spreads from there in one order, and does so only when the other terms have grown by as much.
//
// # What is known of an endpoint
//
// The queue is a fluid: the uncached tokens of each reservation flow in at once, and drain at 1/s. A call that was
// answered to its end shows that everything before it is prefilled. A good answer that began and is over shows nothing of
// the calls before it: a streamed answer begins before its prompt is prefilled, and a caller who then leaves looks like
// the answer's end. Its own prompt counts as cached if it was there long enough, by a speed that may be wrong. A reading that says how many calls wait shows, since
// servers take calls in the order of arrival, which of the picker's own are not yet begun: it bounds the queue from both
// sides, with the one call in between that may be anywhere in its prefill, and the fluid is held within. That is better
// than either alone: in a simulated fleet the queue as the reading has it, without the fluid, made the 90th percentile
// of the time to the first token 8 to 11 % longer.
//
// Speeds are learned in two ways. Two calls that began one after the other, with something to prefill all the while, give
// an endpoint's speed under its real load. Where no queue is long enough for that, the server's own counters give it:
// the prompt tokens that were computed, over the time in which they were, which the times to the first tokens tell. A
// server without such counters keeps the assumed speed until it has a queue.
//
// What is seen of one endpoint within seconds is uncertain, so one that is not clearly apart from the pool has the
// pool's mean, to the digit: mixed with the mean instead, small errors of the speeds sent long prompts away from their
// caches, and 16 servers had 2 to 5 % less of an hour of a real trace cached. The mean leaves out endpoints that are
// more than twice as fast or slow as the median, so that no single one changes it. What was seen weighs 1/e after half
// a minute, however seldom calls come, and nothing after a few: an endpoint once taken for slow would else get no call
// that shows otherwise.
//
// Calls that a server reports beyond the picker's own are somebody else's, and count too: those that wait as work in the
// queue, those that run as load. What a reading says of them
// loses weight with its age, in favour of the mean of the pool's fresh readings: an endpoint without a reading is taken
// to be like the others, and never to be idle.
//
// # Bounds
//
// Some endpoints are taken only when all others are ruled out as well, in this order: those with more calls in flight
// than a multiple of the mean, those whose adapter slots are all in use by others (for calls that are known to name an
// adapter), those that shed calls lately, those that do not answer, those that failed lately. No cost, however high,
// outweighs such a class. Within each class, cost decides: where all endpoints shed or fail, one of them is picked all
// the same.
//
// An endpoint that failed is tried again with one call at a time, until an answer begins. One that sheds (429, 503) is
// avoided for moments, as it is well and only full. One is taken to be silent when its calls have waited for a beginning
// of any answer for more than 5 s, or 30 s where none of them wants a stream, and for four times as long as they were
// expected to and as the pool's answers take: where all are slow, none is silent. It gets one call at a time.
package selection
