package api

import (
	"sync"
	"time"
)

// limiter is a token bucket per user. Root is not limited: it could stop the
// daemon as well.
type limiter struct {
	rate  float64 // tokens per second
	burst float64
	now   func() time.Time

	mu      sync.Mutex
	buckets map[uint32]*bucket
	swept   time.Time // when full buckets were last thrown away
}

type bucket struct {
	tokens float64
	at     time.Time
}

// maxBuckets bounds the memory that users can claim: one user can own 65536
// subordinate ids.
const maxBuckets = 1024

// anyoneElse is the bucket that users share when there are too many of them;
// (uid_t) -1 is no user's.
const anyoneElse = ^uint32(0)

func newLimiter(rate, burst float64) *limiter {
	return &limiter{rate: rate, burst: burst, now: time.Now, buckets: map[uint32]*bucket{}}
}

// allow takes tokens of the user's: one for a call, more for one that costs more.
func (l *limiter) allow(uid uint32, cost int) bool {
	if uid == 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b := l.buckets[uid]
	if b == nil && len(l.buckets) >= maxBuckets {
		l.sweep(now)
		if len(l.buckets) >= maxBuckets {
			uid = anyoneElse
			b = l.buckets[uid]
		}
	}
	if b == nil {
		b = &bucket{tokens: l.burst, at: now}
		l.buckets[uid] = b
	}
	b.tokens, b.at = b.level(l, now), now
	if b.tokens < float64(cost) {
		return false
	}
	b.tokens -= float64(cost)
	return true
}

// sweep drops the buckets that are full again, which nobody misses; at most once
// a second, because it looks at all of them.
func (l *limiter) sweep(now time.Time) {
	if now.Sub(l.swept) < time.Second {
		return
	}
	l.swept = now
	for u, b := range l.buckets {
		if b.level(l, now) >= l.burst {
			delete(l.buckets, u)
		}
	}
}

func (b *bucket) level(l *limiter, now time.Time) float64 {
	return min(l.burst, b.tokens+l.rate*now.Sub(b.at).Seconds())
}

// counter bounds what each user, and all together, have under way.
type counter struct {
	each, all int

	mu    sync.Mutex
	users map[uint32]int
	total int
}

func newCounter(each, all int) *counter {
	return &counter{each: each, all: all, users: map[uint32]int{}}
}

// take reserves a place; release gives it back. Root finds a place also when
// the others have taken all.
func (c *counter) take(uid uint32) (release func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[uid] >= c.each || (uid != 0 && c.total >= c.all) {
		return nil, false
	}
	c.users[uid]++
	c.total++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.total--
		if c.users[uid]--; c.users[uid] == 0 {
			delete(c.users, uid)
		}
	}), true
}
