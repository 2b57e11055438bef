package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/plinth-os/plinth/evidence"
)

// fakeTPM answers the three commands that the agent sends, on the level of
// bytes: TPM 2.0 Library, Part 3. Its fields make it lie.
type fakeTPM struct {
	banks []Bank
	pcrs  map[Bank][][]byte

	assigned []byte // TPML_PCR_SELECTION instead of the true one
	lie      func(command uint32, answer []byte) []byte
	log      []string // of extends, as "PCR bank digest"
}

const (
	ccGetCapability = 0x17a
	ccPCRRead       = 0x17e
	ccPCRExtend     = 0x182
)

func newFakeTPM(names ...string) *fakeTPM {
	f := &fakeTPM{pcrs: map[Bank][][]byte{}}
	for _, n := range names {
		for _, b := range knownBanks {
			if b.Name != n {
				continue
			}
			f.banks = append(f.banks, b)
			for range evidence.Registers {
				f.pcrs[b] = append(f.pcrs[b], make([]byte, b.Hash.Size()))
			}
		}
	}
	return f
}

func (f *fakeTPM) bank(alg uint16) (Bank, bool) {
	for _, b := range f.banks {
		if uint16(b.Alg) == alg {
			return b, true
		}
	}
	return Bank{}, false
}

func (f *fakeTPM) Send(in []byte) ([]byte, error) {
	if len(in) < 10 || int(binary.BigEndian.Uint32(in[2:])) != len(in) {
		return nil, fmt.Errorf("command header of % x", in)
	}
	cc := binary.BigEndian.Uint32(in[6:])
	tag, body := uint16(0x8001), []byte(nil)
	switch r := bytes.NewReader(in[10:]); cc {
	case ccGetCapability:
		body = f.capability()
	case ccPCRRead:
		body = f.read(r)
	case ccPCRExtend:
		tag, body = 0x8002, f.extend(r)
	default:
		return nil, fmt.Errorf("command %#x", cc)
	}
	if f.lie != nil {
		body = f.lie(cc, body)
	}
	out := binary.BigEndian.AppendUint16(nil, tag)
	out = binary.BigEndian.AppendUint32(out, uint32(10+len(body)))
	out = binary.BigEndian.AppendUint32(out, 0) // TPM_RC_SUCCESS
	return append(out, body...), nil
}

func (f *fakeTPM) capability() []byte {
	out := []byte{0, 0, 0, 0, 5} // no more data, TPM_CAP_PCRS
	if f.assigned != nil {
		return append(out, f.assigned...)
	}
	out = binary.BigEndian.AppendUint32(out, uint32(len(f.banks)))
	for _, b := range f.banks {
		out = append(out, selection(uint16(b.Alg), 0xff, 0xff, 0xff)...)
	}
	return out
}

// selection is a TPMS_PCR_SELECTION.
func selection(alg uint16, bits ...byte) []byte {
	return append(append(binary.BigEndian.AppendUint16(nil, alg), byte(len(bits))), bits...)
}

// read answers with eight values at most, as a TPM does.
func (f *fakeTPM) read(r *bytes.Reader) []byte {
	var in struct {
		Count uint32
		Alg   uint16
		Size  uint8
		Bits  [3]byte
	}
	must(binary.Read(r, binary.BigEndian, &in))
	b, _ := f.bank(in.Alg)
	var bits [3]byte
	var values []byte
	n := uint32(0)
	for i := range evidence.Registers {
		if in.Bits[i/8]>>(i%8)&1 == 0 || n == 8 {
			continue
		}
		n++
		bits[i/8] |= 1 << (i % 8)
		values = append(binary.BigEndian.AppendUint16(values, uint16(b.Hash.Size())), f.pcrs[b][i]...)
	}
	out := binary.BigEndian.AppendUint32(nil, 77) // update counter
	out = binary.BigEndian.AppendUint32(out, 1)
	out = append(out, selection(in.Alg, bits[:]...)...)
	return append(binary.BigEndian.AppendUint32(out, n), values...)
}

func (f *fakeTPM) extend(r *bytes.Reader) []byte {
	var pcr, authSize, count uint32
	must(binary.Read(r, binary.BigEndian, &pcr))
	must(binary.Read(r, binary.BigEndian, &authSize))
	must(binary.Read(r, binary.BigEndian, make([]byte, authSize)))
	must(binary.Read(r, binary.BigEndian, &count))
	for range count {
		var alg uint16
		must(binary.Read(r, binary.BigEndian, &alg))
		b, _ := f.bank(alg)
		d := make([]byte, b.Hash.Size())
		must(binary.Read(r, binary.BigEndian, d))
		h := b.Hash.New()
		h.Write(f.pcrs[b][pcr])
		h.Write(d)
		f.pcrs[b][pcr] = h.Sum(nil)
		f.log = append(f.log, fmt.Sprintf("%d %s %x", pcr, b.Name, d))
	}
	return []byte{0, 0, 0, 0, 0, 0, 1, 0, 0} // no parameters; a session with empty nonce and HMAC
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
