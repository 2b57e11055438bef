package network

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// table is the name of the one table that the agent has.
const table = "plinth"

// apply replaces the rules of the kernel by those for what is attached, all at once:
// at no moment is there less than one of the two sets.
func (c *Containers) apply() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: table}
	conn.AddTable(t) // so that there is one to remove
	conn.DelTable(t)
	conn.AddTable(t)
	b := &rules{conn: conn, table: t, uplink: c.uplink.Name}
	for _, id := range slices.Sorted(maps.Keys(c.attached)) {
		b.attached = append(b.attached, c.attached[id])
	}
	b.add(c.four, c.six)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// rules are a set of rules that is being put together.
type rules struct {
	conn     *nftables.Conn
	table    *nftables.Table
	uplink   string
	attached []*attached
}

// add is the whole set.
func (r *rules) add(four, six netip.Prefix) {
	r.sources(four, six)
	r.forward()
	r.input()
	r.publish()
	r.masquerade(four, six)
}

// chain adds a chain.
func (r *rules) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, policy nftables.ChainPolicy) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Table: r.table, Name: name, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy})
}

// rule adds a rule to a chain.
func (r *rules) rule(c *nftables.Chain, parts ...[]expr.Any) {
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: slices.Concat(parts...)})
}

// sources drops, before connections are looked up, what comes from where its source
// is not: a container could else speak in the connections of another one.
func (r *rules) sources(four, six netip.Prefix) {
	c := r.chain("sources", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
	for _, a := range r.attached {
		r.rule(c, incoming(a.link), source(host(a.four)), accept)
		if a.six.IsValid() {
			r.rule(c, incoming(a.link), source(host(a.six)), accept)
		}
	}
	r.neighbours(c)
	r.rule(c, incomingAny(veths), drop)
	for _, p := range []netip.Prefix{four, six} {
		if p.IsValid() {
			r.rule(c, incoming(r.uplink), source(p), drop)
		}
	}
}

// neighbours accepts by what IPv6 finds the other end of a link: neighbour
// solicitations and advertisements. RFC 4861, sections 4.3 and 4.4.
func (r *rules) neighbours(c *nftables.Chain) {
	for _, kind := range []byte{135, 136} {
		r.rule(c, incomingAny(veths), protocol(unix.IPPROTO_ICMPV6), transport(0, []byte{kind}), accept)
	}
}

// forward lets containers out, and in what belongs to their connections or was sent
// to a published port. What finds neighbours belongs to no connection: it stays on its
// link, whatever its source.
func (r *rules) forward() {
	c := r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	r.rule(c, connection(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	r.rule(c, connection(expr.CtKeySTATE, expr.CtStateBitINVALID), drop)
	r.rule(c, incomingAny(veths), outgoing(r.uplink), connection(expr.CtKeySTATE, expr.CtStateBitNEW), accept)
	r.rule(c, incoming(r.uplink), connection(expr.CtKeySTATUS, destinationChanged), accept)
}

// destinationChanged marks connections to published ports. Linux, IPS_DST_NAT of
// linux/netfilter/nf_conntrack_common.h.
const destinationChanged = 1 << 5

// input keeps containers from the guest's own ports. They may answer it.
func (r *rules) input() {
	c := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	r.rule(c, incomingAny(veths), connection(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	r.neighbours(c)
	r.rule(c, incomingAny(veths), drop)
}

// publish leads ports of the guest to containers.
func (r *rules) publish() {
	c := r.chain("publish", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	for _, a := range r.attached {
		for _, p := range a.ports {
			number := byte(unix.IPPROTO_TCP)
			if cmp.Or(p.Protocol, "tcp") == "udp" {
				number = unix.IPPROTO_UDP
			}
			for _, to := range []netip.Addr{a.four, a.six} {
				if to.IsValid() {
					r.rule(c, incoming(r.uplink), family(to), protocol(number), transport(2, be16(p.Guest)), destination(to, p.Container))
				}
			}
		}
	}
}

// masquerade gives what containers send the guest's address.
func (r *rules) masquerade(four, six netip.Prefix) {
	c := r.chain("masquerade", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	for _, p := range []netip.Prefix{four, six} {
		if p.IsValid() {
			r.rule(c, source(p), outgoing(r.uplink), []expr.Any{&expr.Masq{}})
		}
	}
}

// Parts of rules. Each loads into register 1 and compares.

var (
	accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
)

func meta(key expr.MetaKey, want []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(want)}
}

func equal(want []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want} }

// incoming matches one interface: its name with all the bytes that follow it.
func incoming(name string) []expr.Any { return meta(expr.MetaKeyIIFNAME, ifname(name)) }

func outgoing(name string) []expr.Any { return meta(expr.MetaKeyOIFNAME, ifname(name)) }

// incomingAny matches all interfaces whose names begin so.
func incomingAny(prefix string) []expr.Any { return meta(expr.MetaKeyIIFNAME, []byte(prefix)) }

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func protocol(number byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, []byte{number}) }

// family matches packets of an address's kind.
func family(a netip.Addr) []expr.Any {
	if a.Is4() {
		return meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4})
	}
	return meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV6})
}

// source matches where a packet comes from. RFC 791, section 3.1; RFC 8200,
// section 3.
func source(p netip.Prefix) []expr.Any {
	offset := uint32(12)
	if p.Addr().Is6() {
		offset = 8
	}
	size := uint32(p.Addr().BitLen() / 8)
	return append(family(p.Addr()),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: ipNet(p).Mask, Xor: make([]byte, size)},
		equal(p.Masked().Addr().AsSlice()))
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// transport matches bytes of the header behind IP's.
func transport(offset uint32, want []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(len(want))},
		equal(want),
	}
}

// connection matches where any of the bits is set in what is known of a connection.
func connection(key expr.CtKey, bits uint32) []expr.Any {
	mask := binary.NativeEndian.AppendUint32(nil, bits)
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// destination sends a connection to a container.
func destination(to netip.Addr, port int) []expr.Any {
	kind := uint32(unix.NFPROTO_IPV4)
	if to.Is6() {
		kind = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.Immediate{Register: 2, Data: be16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: kind, RegAddrMin: 1, RegProtoMin: 2},
	}
}

func be16(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
