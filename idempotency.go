package resilience

// flight is one execution of a call that must happen once.
type flight struct{}

func (f *flight) deserted() bool { return false }
