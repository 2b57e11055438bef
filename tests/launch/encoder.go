// Package launch computes the launch digests of SEV, SEV-ES and SEV-SNP guests
// under QEMU a second time, for tests. It is written from the documents below and
// shares no code with the packages that it is compared with: plain structs, one
// page after the other, everything in memory.
//
// Documents: SEV Secure Nested Paging Firmware ABI Specification (AMD 56860),
// SNP_LAUNCH_UPDATE and PAGE_INFO; Secure Encrypted Virtualization API (AMD
// 55766), LAUNCH_MEASURE; AMD64 Architecture Programmer's Manual, volume 2
// (AMD 24593), appendix B, state-save area of an SEV-ES guest; QEMU,
// docs/specs/sev-guest-firmware.rst and the hash table of target/i386/sev.c.
package launch

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

// A Guest is all that decides its digest.
type Guest struct {
	Firmware  []byte
	Direct    *Direct // nil: started from a disk, kernel-hashes=off
	VCPUs     int
	Signature uint32 // CPUID Fn0000_0001 EAX
	Features  uint64 // SEV_FEATURES of SNP
	ESBits    uint64 // SEV_FEATURES of SEV-ES: none, or DebugSwap by the host's choice
	MXCSR     uint32 // as the host's kernel leaves them in the VMSA
	FCW       uint16
}

// Direct is what QEMU is told to start.
type Direct struct {
	Kernel, Initrd []byte
	Cmdline        string
}

// Page is one SNP_LAUNCH_UPDATE.
type Page struct {
	Type   uint8
	GPA    uint64
	Digest [48]byte // of the guest, after this page
}

// PAGE_TYPE of SNP_LAUNCH_UPDATE.
const (
	Normal     = 1
	VMSA       = 2
	Zero       = 3
	Unmeasured = 4
	Secrets    = 5
	CPUID      = 6
)

const (
	pageSize = 4096
	top      = 1 << 32        // the firmware ends there, GPA
	vmsaGPA  = 0xfffffffff000 // KVM's choice: the last page of 48 bits
	reset    = 0xfffffff0     // the first instruction of a processor
)

// pageInfo is PAGE_INFO, little-endian.
type pageInfo struct {
	DigestCur [48]byte
	Contents  [48]byte
	Length    uint16 // bytes of the structure
	PageType  uint8
	IMI       uint8    // bit 0: an initial migration image
	Perms     [3]uint8 // VMPL3, VMPL2, VMPL1
	_         uint8
	GPA       uint64
}

// SNP returns every page in the order of launch; the last digest is the guest's.
func (g *Guest) SNP() ([]Page, error) {
	fw, err := read(g.Firmware)
	if err != nil {
		return nil, err
	}
	var c chain
	base := uint64(top - len(g.Firmware))
	for i := 0; i < len(g.Firmware); i += pageSize {
		c.add(Normal, base+uint64(i), g.Firmware[i:i+pageSize])
	}
	hashed := g.Direct == nil
	for _, s := range fw.sections {
		kind, ok := map[uint32]uint8{1: Zero, 2: Secrets, 3: CPUID, 4: Zero, 0x10: Zero}[s.Type]
		if !ok {
			return nil, fmt.Errorf("SEV metadata: type %d", s.Type)
		}
		var content []byte
		if s.Type == 0x10 && g.Direct != nil {
			kind, content, hashed = Normal, make([]byte, s.Size), true
			if n := copy(content[min(fw.hashes.Base%pageSize, s.Size):], g.Direct.table()); n == 0 {
				return nil, errors.New("no room for the kernel's hashes")
			}
		}
		for at := uint32(0); at < s.Size; at += pageSize {
			c.add(kind, uint64(s.GPA+at), content[min(int(at), len(content)):min(int(at+pageSize), len(content))])
		}
	}
	if !hashed {
		return nil, errors.New("no page for the kernel's hashes")
	}
	states, err := g.states(fw, g.Features)
	for _, s := range states {
		c.add(VMSA, vmsaGPA, s)
	}
	return c, err
}

// chain is a launch in progress.
type chain []Page

func (c *chain) add(kind uint8, gpa uint64, content []byte) {
	info := pageInfo{Length: 0x70, PageType: kind, GPA: gpa}
	if n := len(*c); n > 0 {
		info.DigestCur = (*c)[n-1].Digest
	}
	if kind == Normal || kind == VMSA {
		info.Contents = sha512.Sum384(content)
	}
	*c = append(*c, Page{kind, gpa, sha512.Sum384(encode(info))})
}

// SEV returns the digest of LAUNCH_MEASURE: all that LAUNCH_UPDATE_DATA saw.
func (g *Guest) SEV() ([32]byte, error) {
	b, _, err := g.data()
	return sha256.Sum256(b), err
}

// SEVES returns the digest with the processors of LAUNCH_UPDATE_VMSA.
func (g *Guest) SEVES() ([32]byte, error) {
	b, fw, err := g.data()
	if err != nil {
		return [32]byte{}, err
	}
	states, err := g.states(fw, g.ESBits)
	return sha256.Sum256(append(b, bytes.Join(states, nil)...)), err
}

func (g *Guest) data() ([]byte, *firmware, error) {
	fw, err := read(g.Firmware)
	if err != nil {
		return nil, nil, err
	}
	b := bytes.Clone(g.Firmware)
	if g.Direct != nil {
		if fw.hashes.Size == 0 {
			return nil, nil, errors.New("no area for the kernel's hashes")
		}
		b = append(b, g.Direct.table()...)
	}
	return b, fw, nil
}

// hashEntry and hashTable are QEMU's SevHashTableEntry and PaddedSevHashTable.
type hashEntry struct {
	GUID   guid
	Length uint16
	SHA256 [32]byte
}

type hashTable struct {
	GUID                    guid
	Length                  uint16 // bytes, without the padding
	Cmdline, Initrd, Kernel hashEntry
	_                       [8]byte // to a multiple of 16
}

// table is what QEMU adds to the guest's memory. A command line is a C string:
// its terminating NUL is hashed. What is absent is hashed as empty.
func (d *Direct) table() []byte {
	entry := func(id string, content []byte) hashEntry {
		return hashEntry{parseGUID(id), 50, sha256.Sum256(content)}
	}
	return encode(hashTable{
		GUID:    parseGUID("9438d606-4f22-4cc9-b479-a793d411fd21"),
		Length:  168,
		Cmdline: entry("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", append([]byte(d.Cmdline), 0)),
		Initrd:  entry("44baf731-3a2f-4bd7-9af1-41e29169781d", d.Initrd),
		Kernel:  entry("4de79437-abd2-427f-b835-d5b172d2045b", d.Kernel),
	})
}

// encode writes a struct of fixed size, little-endian.
func encode(v any) []byte {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
		panic(err) // v has a field without a size
	}
	return b.Bytes()
}
