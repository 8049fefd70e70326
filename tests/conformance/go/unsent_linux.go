// What the system has taken for a connection, and the other side's system has not.

package main

import (
	"net"
	"syscall"
	"unsafe"
)

// unsent asks the system (SIOCOUTQ, which has the number of TIOCOUTQ).
func unsent(sock net.Conn) int64 {
	var bytes int32
	if system, ok := sock.(syscall.Conn); ok {
		if raw, err := system.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&bytes)))
			})
		}
	}
	return int64(bytes)
}
