//go:build !race

package demo

const slower = 1
