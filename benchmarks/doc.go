// Package benchmarks measures what keyhold promises, beside what others take for the same. It is all in its tests:
//
//	make bench          everything, which writes docs/benchmarks.md and takes about twenty minutes
//	make bench-short    every benchmark once, and whether the promised ratios hold
//
// It is a module of its own, as it takes the libraries that it compares with.
package benchmarks
