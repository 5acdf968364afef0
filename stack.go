package resilience

// Stack is all layers together, in the order of the package documentation.
type Stack struct{}
