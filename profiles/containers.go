package profiles

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
)

// network judges what stands under [network] together.
func (r *rules) network() {
	n := r.Network
	if reflect.DeepEqual(n, Network{}) || !r.faults.sound("network.dhcp", "network.addresses", "network.gateways", "network.dns", "network.mtu") {
		return
	}
	if !n.DHCP && len(n.Addresses) == 0 {
		r.fault(spot{"network"}, "write dhcp = true", "dhcp or addresses is missing")
	}
	var seen [2]bool // by family
	for i, g := range n.Gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			continue // its format was judged
		}
		family := 0
		if a.Is6() {
			family = 1
		}
		if seen[family] {
			r.fault(spot{"network", "gateways", i}, "", "%s: there is another one of its family", quote(g))
		}
		seen[family] = true
	}
}

// workloads judges what stands under [workloads] and [[workload]] together.
func (r *rules) workloads() {
	if !r.faults.sound("workloads.from") {
		return
	}
	w := r.Workloads
	switch {
	case w.From == "" && !reflect.DeepEqual(w, Workloads{}):
		r.fault(spot{"workloads", "from"}, `write from = "image"`, "is missing")
	case w.From != FromImage && len(r.Workload) > 0:
		r.fault(spot{"workload"}, `write from = "image" under [workloads]`, "is for workloads.from %s", quote(FromImage))
	case w.From == FromImage && len(r.Workload) == 0 && !w.ImageService && r.faults.sound("workload"):
		r.fault(spot{"workloads"}, "add [[workload]]", "has no workload to run, and image_service is off")
	}
	if w.From == FromInitdata {
		r.elsewhere()
	}
	if w.From == "" {
		return
	}
	r.policy()
	if w.NoProxy != "" && w.Proxy == "" && r.faults.sound("workloads.proxy") {
		r.fault(spot{"workloads", "no_proxy"}, "", "wants workloads.proxy")
	}
	if r.Platform == PlatformSNP && w.EventPCR != 0 {
		r.fault(spot{"workloads", "event_pcr"}, "", "platform %s has no TPM", quote(r.Platform))
	}
	if r.Platform == PlatformSNP && w.PCR23 {
		r.fault(spot{"workloads", "pcr_23"}, "", "platform %s has no TPM", quote(r.Platform))
	}
	guest := map[string]string{}
	for i := range r.Workload {
		r.workload(i, guest)
	}
}

// elsewhere reports what the document in the initdata says, and not the profile.
func (r *rules) elsewhere() {
	for _, name := range []string{"policy", "admit", "registries", "registries_d", "cas", "proxy", "no_proxy", "auth", "image_service", "max_size", "max_files"} {
		if t := r.tree.table["workloads"]; t != nil && t.table[name] != nil {
			r.fault(spot{"workloads", name}, "write it in workloads.json", "the initdata says it, for workloads.from is %s", quote(FromInitdata))
		}
	}
}

// policy judges where the policy and the credentials come from.
func (r *rules) policy() {
	w := &r.Workloads
	if w.From == FromImage && w.PolicyFile != "" && !w.BrokeredPolicy() && r.faults.sound("workloads.policy") {
		r.fault(spot{"workloads", "policy_file"}, "write policy", "is what the broker has as workloads.policy, which is no kbs:///REPOSITORY/TYPE/TAG")
	}
	if w.BrokeredPolicy() {
		r.brokered(spot{"workloads", "policy"}, w.Policy)
	}
	if w.Auth != "" {
		r.brokered(spot{"workloads", "auth"}, w.Auth)
	}
}

// workload judges one container. guest are the guest's ports that lead to one already.
func (r *rules) workload(i int, guest map[string]string) {
	w := &r.Workload[i]
	at := func(s ...any) spot { return append(spot{"workload", i}, s...) }
	local := strings.HasPrefix(w.Image, "oci-archive:")
	switch {
	case w.Image == "" && r.faults.sound("workload[].image"):
		r.fault(at("image"), "", "is missing")
	case local && w.Archive == "" && r.faults.sound("workload[].archive"):
		r.fault(at("archive"), "", "is missing: what image will the disk hold?")
	case !local && w.Archive != "":
		r.fault(at("archive"), "", "is for an image on a disk, oci-archive:")
	case !local && w.Image != "" && !r.HasNetwork() && r.faults.sound("network.dhcp", "network.addresses"):
		r.fault(at("image"), "add [network] with dhcp = true", "%s: the guest has no network", quote(w.Image))
	}
	if len(w.Ports) > 0 && w.Network == "none" {
		r.fault(at("ports"), "", "the container has no network")
	}
	for j, p := range w.Ports {
		protocol, number, _ := Port(p)
		if number == 0 {
			continue // its format was judged
		}
		key := fmt.Sprintf("%d/%s", number, cmp.Or(protocol, "tcp"))
		if by, ok := guest[key]; ok {
			r.fault(at("ports", j), "", "port %s of the guest leads to %s already", key, by)
		}
		guest[key] = w.Name
	}
	for j, m := range w.Mounts {
		if m.Source+m.Volume+m.Secret == "" && m.Tmpfs == 0 && r.faults.sound("workload[].mounts[].source", "workload[].mounts[].tmpfs", "workload[].mounts[].volume", "workload[].mounts[].secret") {
			r.fault(at("mounts", j), "", "source is missing, or tmpfs, volume or secret")
		}
	}
	r.secrets(i)
}
