// Package bench runs the same work through this library, through its peers, and through what one would wire by hand. It
// holds benchmarks only; README.md says how to run them and how to read the numbers.
package bench
