// Package selection ranks a pool's endpoints for a call. It must not know addresses, locks, streams or clusters: an
// endpoint is a small number that its user assigns. It holds the rule, and the state that the rule reads: each
// endpoint's work, health and adapters. Pick changes only its working memory and takes the call, the time and the
// source of chance as arguments.
//
// # The cost of a choice
//
// Every endpoint has a cost in seconds, and the least cost wins. It is the time until this call's first token plus what
// the choice costs all other calls:
//
//	cost =  wait                        the queue ahead, to be prefilled first
//	     +  (work + o) · s              this call's own prefill
//	     +  k · work · s                the delay of the calls that arrive behind this one
//	     +  d · uncached · s            what others must prefill again, as it was evicted from the cache
//	     +  c · calls · s               the share of the endpoint's steps that its calls' decoding takes
//	     +  pickers                     what other pickers may have sent to an endpoint of theirs
//	     +  max(0, ahead + own - room)  the wait for free KV memory, if the server is short of it
//	     +  adapter                     loading the call's LoRA adapter, and the one that it evicts
//	     -  session                     what a session's own endpoint is worth
//
// where s is the endpoint's own time to prefill a token that has nothing before it, in seconds, and o is what a call costs beside
// its tokens. Work is the uncached tokens with their attention to the tokens before them, in tokens that have nothing before
// them. A token of d takes what a mean one takes.
//
// The first two terms are the time to first token at a server that prefills in the order of arrival.
//
// The third term is the delay that this call causes. While a queue holds x seconds of work, each call that arrives
// waits x seconds longer, until the queue is next empty. Let ρ be the share of the time in which servers prefill. Then
// a call that brings x seconds of work delays ρ/(1-ρ) other calls by x (the mean number of arrivals in a busy period of
// an M/G/1 queue). k is that number at half the limit: 1. Below the limit the exact k hardly matters: on an hour of a
// real trace at ρ near 0.6, every k from 0.5 to 2, and a k that follows the measured ρ, gave the same times within 2 %.
// Beyond the limit it matters: for an hour of twice what 8 servers can serve, k = 1 uses the caches so little that the
// mean time is at least half as long again as with a k that follows the queues. Of 28 loads on simulated fleets, with
// two seeds, such a k made 16 better, by up to 57 % in the 90th percentile, 10 the same, and two worse, by up to 2.4 %.
// So k is 1. Where even the shortest queue is longer than 2 s, k is half that queue's seconds, up to 8: all calls until
// a server is idle wait for the token. Endpoints avoided after a failure do not count here. A cached token is thus
// worth at least 2·s. A conversation stays with its prefix while the queue there is at most that long.
//
// The fourth term is the loss of cached tokens. Each new token evicts the least recently used one, which was used about
// as long ago as the endpoint took to cache as many tokens as it holds. d is the part of the cache that was filled
// within two minutes, a conversation's pause, and at most a half. It is 0 where there is free cache, or where the
// evicted tokens are old. So of endpoints that are otherwise equal, a new conversation goes to the one whose cache
// turns over least, and not to the one that first cached the common system prompt. On an hour of a real trace with 16
// servers, whose caches held a twentieth of the working set, the term raised the cached share by 1 %.
//
// The fifth term counts decoding, so that an endpoint with few prompts and many answers does not look idle. c is small,
// as decoding shares its steps with prefill. The term also shows a slow endpoint before its speed is learned, as calls
// pile up.
//
// The pickers' term is 0 where one picker picks for the pool. Where several do, each hears of the others' calls a moment later.
// Until then the same endpoint looks best to all of them. So each endpoint belongs to one picker, and the others add to its queue
// what they do not know: as much as they have sent to their own endpoints in that moment, as about as many calls come to each
// picker, or by how many more or fewer it has, and a third of the pool's mean call, as calls come at the same instant too. On an hour of a
// real trace, whose calls come in bursts, the 90th percentile of the time to first token with four pickers is 1.04 times that of one,
// and 1.77 times without the term.
//
// The adapter's term is 0 where the adapter is resident or a call in flight has it loaded, the load time where a slot is
// free, and up to twice the load time where another adapter must be evicted, by how recently that one was used. Rendezvous hashing of adapter and
// endpoint adds up to one load time. So all replicas of the picker give an adapter that is resident nowhere the same
// home. It spreads from there in one order, and only when the other terms have grown by as much.
//
// # What is known of an endpoint
//
// The queue is modelled as a fluid: a reservation adds its uncached tokens at once, and the queue drains at 1/s. An
// answer that was seen to its end shows that all calls before it are prefilled. An answer whose end was not seen shows
// nothing of the calls before it: a streamed answer begins before its prompt is prefilled, and a caller who then leaves
// looks like the answer's end. The call's own prompt counts as cached if the call was there long enough, by a speed
// that may be wrong. A reading says how many calls wait. Servers take calls in the order of arrival, so it also shows
// which of the picker's own calls have not begun. It bounds the queue from both sides, up to one call that may be
// anywhere in its prefill, and the fluid is held within the bounds. Both together are better than either alone: in a
// simulated fleet, the queue from readings alone made the 90th percentile of the time to first token 8 to 11 % longer.
//
// Servers that take many prompts into one batch show none of them as waiting while all are prefilled for seconds. But
// they count first tokens, which come in the order of arrival. So each counted first token names a call that is prefilled
// and, by the sum of the times to first token, when. The queue is then what is left of the calls without one, of which the
// server has done a part since the last first token. While calls of others are among the picker's own, nobody knows whose
// first tokens are counted. But servers also count the calls that ended, so it is known how many calls are without a first
// token. Of the picker's own calls, those that the fluid has not reached are among them. The others are foreign, and count
// with the mean of what foreign calls bring. A page shows calls only at the end of a step, so the longer queue of both methods
// counts. In a simulated fleet of which two thirds of the load came from others, this made the 90th percentile of the picker's
// own times to first token 0.79 to 0.95 times as long. With the true number of calls at each pick it was as good as with the
// true queue, so where others call, more readings are made.
//
// A call that waits for something else than its turn, such as an adapter's slot, is deferred: others run past it. Where
// the server tells deferred calls apart, they are no part of the queue and no sign of the order of prefill. While there
// are any, no speed is learned. Of the picker's own calls, those that came last for an adapter which the reading does not
// list are taken to be the deferred ones, and nothing of their prompts counts as prefilled.
//
// Speeds are learned from the first tokens: what was prefilled between two of them, and how long the server took without
// a pause, in idle times and in busy ones. Where others call too, the server's counters say what was prefilled, and how
// calls overlapped is a guess, which weighs less. Where the server counts no first tokens, two calls whose prefills began
// one after the other, with no pause between, give its speed under its real load.
//
// The time of a prefill is not that of its tokens alone. A call that comes to an empty queue takes some time however short its
// prompt is: a step of the server, and the end of the step before, which takes the longer the more calls the server answers. And a
// token takes the longer the more tokens are before it. All three are learned for the pool, by least squares over the prefills that
// began with an empty queue, in tokens that take as long, each only where it clearly explains the times. Where the server counts what
// it computed, a prompt that was not cached as expected does not count; where it does not, attention is not learned. On records of a real vLLM at 30, 80
// and 120 % of what it can do, the expected times are off by 1.09, 1.13 and 1.15 times in the median; without attention
// and the calls that it answers by 1.19, 1.22 and 1.12 times, and with tokens alone by 1.4 to 1.5 times.
//
// A few seconds of observation are uncertain, so an endpoint that is not clearly apart from the pool gets exactly the
// pool's mean. A mixture of both was worse: small errors of the speeds sent long prompts away from their caches, and 16
// servers had 2 to 5 % less of an hour of a real trace cached. The mean leaves out endpoints that are more than twice
// as fast or slow as the median, so that no single endpoint changes it. An observation weighs 1/e after half a minute,
// however seldom calls come, and nothing after a few minutes: else an endpoint once taken for slow would get no call
// that shows otherwise.
//
// Calls that a server reports beyond the picker's own came from elsewhere, and count too: the waiting ones as work in
// the queue, the running ones as load. A reading loses weight with its age, in favour of the mean of the pool's fresh
// readings. So an endpoint without a reading is taken to be like the others, and never to be idle.
//
// # Bounds
//
// Some endpoints are picked only when no other endpoint is left. From the least to the most avoided they are: those
// with more calls in flight than a multiple of the mean, or of their share of the pool's speed if that is more; those
// whose adapter slots are all in use by other adapters, of the picker's own calls or of others', for a call that is known
// to name an adapter; those that shed calls lately; those
// that do not answer; those that failed lately. No cost outweighs such a class. Within a class, cost decides: where all
// endpoints shed or fail, one of them is picked all the same.
//
// An endpoint that failed is tried again with one call at a time, until an answer begins. One that sheds (429, 503) is
// well and only full, so it is avoided briefly. An endpoint counts as silent when its calls wait for any answer to
// begin for more than 5 s, or 30 s where none wants a stream, and for four times as long as expected and as the pool's
// answers take. Where all are slow, none is silent. A silent endpoint gets one call at a time.
package selection
