package config

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/workload"
)

// Where the root file system and the agent look for each other.
const (
	Runtime    = "/usr/bin/crun"           // runs containers
	ResolvConf = "/run/plinth/resolv.conf" // the agent writes the addresses of name servers into it
)

// WorkloadsFrom says where a guest with this command line has its workloads from:
// workload.FromImage, workload.FromInitdata, or "" where it has none.
func WorkloadsFrom(cmdline string) (string, error) {
	from := ""
	for _, w := range strings.Fields(cmdline) {
		value, ok := strings.CutPrefix(w, workload.Argument+"=")
		switch {
		case !ok:
		case from != "":
			return "", fmt.Errorf("%s: twice", workload.Argument)
		case value != workload.FromImage && value != workload.FromInitdata:
			return "", fmt.Errorf("%s: %q: want %s or %s", workload.Argument, value, workload.FromImage, workload.FromInitdata)
		default:
			from = value
		}
	}
	return from, nil
}

// checkWorkloads holds the document to one source of workloads, the one that the
// command line names.
func (c *Config) checkWorkloads() error {
	from, err := WorkloadsFrom(c.Cmdline)
	if err != nil {
		return fmt.Errorf("cmdline: %w", err)
	}
	switch {
	case from == workload.FromImage && c.Workloads == nil:
		return fmt.Errorf("workloads: none, and the command line says %s=%s", workload.Argument, from)
	case from != workload.FromImage && c.Workloads != nil:
		return fmt.Errorf("workloads: want %s=%s on the command line beside them", workload.Argument, workload.FromImage)
	case from != "" && c.Storage == nil:
		return errors.New("storage: want one for the images of workloads")
	}
	if c.Workloads != nil {
		return c.Workloads.Check()
	}
	return nil
}

func (c *Config) checkStorage() error {
	st := c.Storage
	switch {
	case st == nil:
		return nil
	case (st.MemoryMiB != 0) == (st.Disk != ""):
		return errors.New("storage: want one of memory_mib and disk")
	case st.MemoryMiB < 0 || st.MemoryMiB > maxMemoryMiB:
		return fmt.Errorf("storage: memory_mib is %d, want 1 to %d", st.MemoryMiB, maxMemoryMiB)
	case st.Disk != "" && !Serial(st.Disk):
		return fmt.Errorf("storage: disk %q: want the serial number of a virtio disk", st.Disk)
	}
	return nil
}

const maxMemoryMiB = 1 << 20 // a TiB

var serial = regexp.MustCompile(`^[A-Za-z0-9._-]{1,20}$`)

// Serial tells whether s can be the serial number of a virtio disk: the device has
// room for 20 bytes. Virtio 1.2, 5.2.6.1, VIRTIO_BLK_T_GET_ID.
func Serial(s string) bool { return serial.MatchString(s) }

// DiskPath is what images on disks are called by: "oci-archive:" and this, and the
// disk's serial number.
const DiskPath = "/dev/disk/by-id/virtio-"

// DiskSerial takes the serial number out of a path that begins with DiskPath.
func DiskSerial(file string) (number string, ok bool) {
	number, ok = strings.CutPrefix(file, DiskPath)
	return number, ok && Serial(number)
}

// Registers in which workloads may be measured. 0 to 7 are the firmware's; 8 is for
// initdata, 9 for what boot loaders load, 10 for IMA, 11 for the image and its boot
// phases; 12 and 13 must be zero; 16 and 23 can be reset by whoever reaches the TPM,
// and 17 to 22 want another locality.
// TCG PC Client Platform TPM Profile 1.05, table 6.
var eventRegisters = []int{14, 15}

func (c *Config) checkEvents() error {
	if e := c.Events; e != nil && !slices.Contains(eventRegisters, e.PCR) {
		return fmt.Errorf("events: PCR %d: want one of %v", e.PCR, eventRegisters)
	}
	if c.Epoch < 0 {
		return fmt.Errorf("epoch: %d: want seconds since 1970", c.Epoch)
	}
	return nil
}

// checkNetwork judges what the image says of its network.
func (c *Config) checkNetwork() error {
	n := c.Network
	if n == nil {
		return nil
	}
	switch {
	case n.DHCP && len(n.Addresses)+len(n.Gateways) > 0:
		return errors.New("network: addresses or gateways beside dhcp")
	case !n.DHCP && len(n.Addresses) == 0:
		return errors.New("network: want dhcp or addresses")
	case n.MTU != 0 && (n.MTU < 1280 || n.MTU > 65535): // IPv6 needs 1,280: RFC 8200, section 5
		return fmt.Errorf("network: mtu is %d, want 1280 to 65535", n.MTU)
	}
	for i, s := range n.Addresses {
		if p, err := netip.ParsePrefix(s); err != nil || p.Addr().IsMulticast() || p.Addr().IsUnspecified() || p.Addr().Zone() != "" {
			return fmt.Errorf("network: addresses[%d]: %q: want 192.0.2.1/24", i, s)
		}
	}
	gateway := map[bool]bool{}
	for i, s := range n.Gateways {
		a, err := netip.ParseAddr(s)
		if err != nil || a.IsMulticast() || a.IsUnspecified() || a.Zone() != "" || gateway[a.Is4()] {
			return fmt.Errorf("network: gateways[%d]: %q: want one address of each family", i, s)
		}
		gateway[a.Is4()] = true
	}
	for i, s := range n.DNS {
		if a, err := netip.ParseAddr(s); err != nil || a.IsMulticast() || a.IsUnspecified() || a.Zone() != "" {
			return fmt.Errorf("network: dns[%d]: %q: want an address", i, s)
		}
	}
	return nil
}

// checkTestKeys keeps keys that are no secrets out of images that are not for tests.
func (c *Config) checkTestKeys() error {
	if len(c.TestKeys) > 0 && !c.Debug {
		return errors.New("test_keys: want debug beside them: everybody who has the image has them")
	}
	for id := range c.TestKeys {
		if !strings.HasPrefix(id, "kbs:///") {
			return fmt.Errorf("test_keys: %q: want kbs:///repository/type/tag", id)
		}
	}
	return nil
}
