package pgserver

import "syscall"

// inMemory is a folder that is in memory, if it has the room for some servers. Containers often have one of 64 MiB.
func inMemory() (string, bool) {
	const dir, enough, tmpfs = "/dev/shm", 2 << 30, 0x01021994
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil || fs.Type != tmpfs || fs.Bavail*uint64(fs.Bsize) < enough {
		return "", false
	}
	return dir, syscall.Access(dir, 2) == nil
}
