//go:build race

package demo

// slower is how many times as long the race detector makes the demo take, generously.
const slower = 10
