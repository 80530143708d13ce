package safefile

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestCallsAreMergedAndNoneIsServedByAnEarlierOne: a sync that had begun before a
// rename may not have it on the disk.
func TestCallsAreMergedAndNoneIsServedByAnEarlierOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m merger[string]
		var mu sync.Mutex
		calls, running := 0, map[string]int{}
		var began time.Time // the last one of "a"
		call := func(key string) func() error {
			return func() error {
				mu.Lock()
				calls++
				n := calls
				running[key]++
				if key == "a" {
					began = time.Now()
				}
				if running[key] > 1 {
					t.Errorf("two calls of %s at once", key)
				}
				mu.Unlock()
				time.Sleep(10 * time.Millisecond)
				mu.Lock()
				running[key]--
				mu.Unlock()
				return fmt.Errorf("call %d", n)
			}
		}
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				asked := time.Now()
				err := m.do("a", call("a"))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					t.Error("the error of the call is lost")
				}
				if began.Before(asked) {
					t.Errorf("asked at %v, served by a call of %v", asked, began)
				}
			})
		}
		wg.Go(func() { _ = m.do("b", call("b")) })
		wg.Wait()
		if calls > 6 {
			t.Errorf("%d calls for what three or four can do", calls)
		}
		if len(m.calls) != 0 {
			t.Errorf("%d keys are left", len(m.calls))
		}
		if err := m.do("a", func() error { return errors.New("mine") }); err == nil || err.Error() != "mine" {
			t.Errorf("a call alone: %v", err)
		}
	})
}
