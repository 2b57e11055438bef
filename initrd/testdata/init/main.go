// Command init is the /init of an initrd in a test: it says what it finds.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"syscall"
)

func main() {
	data, err := os.ReadFile("/data")
	fmt.Printf("init: data: %x %v\n", sha256.Sum256(data), err)
	for _, name := range []string{"/link", "/far", "/early"} {
		var st syscall.Stat_t
		err := syscall.Lstat(name, &st)
		fmt.Printf("init: %s: mode %o, device %#x, links %d, uid %d, time %d, %v\n", name, st.Mode, st.Rdev, st.Nlink, st.Uid, st.Mtim.Sec, err)
	}
	fmt.Println("init: done")
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART) // with -no-reboot QEMU ends
	select {}
}
