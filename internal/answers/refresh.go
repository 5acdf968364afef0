package answers

import "time"

// refresh is how renewing an answer in the background goes.
type refresh struct {
	underWay bool
	failures int
	notUntil time.Time
}

// The wait after a refresh that failed, doubled for each one more.
const (
	firstWait   = time.Second
	longestWait = time.Minute
)

// BeginRefresh reports whether an answer may be renewed now: nobody else is at it, and the last failure is long enough
// ago. If so, EndRefresh must follow.
func (s *Store[ID, L]) BeginRefresh(k Key, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(k)
	if e == nil || e.refresh.underWay || now.Before(e.refresh.notUntil) {
		return false
	}
	e.refresh.underWay = true
	return true
}

// EndRefresh says how renewing an answer ended. A success has replaced the answer already.
func (s *Store[ID, L]) EndRefresh(k Key, now time.Time, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(k)
	if e == nil {
		return
	}
	e.refresh.underWay = false
	if !failed {
		return
	}
	e.refresh.notUntil = now.Add(min(longestWait, firstWait<<min(e.refresh.failures, 16)))
	e.refresh.failures++
}
