//go:build unix && !linux

package pgserver

func inMemory() (string, bool) { return "", false }
