package attester

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/plinth-os/plinth/evidence"
)

// fakeTPM answers the commands that attesters send, on the level of bytes: TPM 2.0
// Library, Part 3. Its fields make it lie.
type fakeTPM struct {
	key  *rsa.PrivateKey
	pcrs registers
	keys map[uint32][]byte // TPMT_PUBLIC by handle
	nv   map[uint32]*nvIndex

	answer func(command uint32, honest []byte) []byte // parameters
	wrote  func(index uint32)
	log    []uint32 // commands
}

type nvIndex struct {
	attributes uint32
	size       uint16
	data       []byte // nil: never written
}

const (
	ccCreatePrimary   = 0x131
	ccFlushContext    = 0x165
	ccNVReadPublic    = 0x169
	ccNVRead          = 0x14e
	ccNVWrite         = 0x137
	ccNVDefineSpace   = 0x12a
	ccNVUndefineSpace = 0x122
	ccReadPublic      = 0x173
	ccPCRRead         = 0x17e

	rcHandle = 0x8b | 1<<8 // TPM_RC_HANDLE of the first handle

	nvOwnerWrite, nvOwnerRead, nvAuthRead, nvWritten = 1 << 1, 1 << 17, 1 << 18, 1 << 29
)

// fakeKey is made once: it takes longer than the tests.
var fakeKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newFakeTPM() *fakeTPM {
	f := &fakeTPM{key: fakeKey(), keys: map[uint32][]byte{}, nv: map[uint32]*nvIndex{}}
	for i := range f.pcrs {
		f.pcrs[i][0] = byte(i + 1)
	}
	return f
}

// public is the template with the key's number in it, TPMT_PUBLIC.
func (f *fakeTPM) public() []byte {
	p := akTemplate
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: f.key.N.Bytes()})
	return tpm2.Marshal(p)
}

func (f *fakeTPM) Send(in []byte) ([]byte, error) {
	if len(in) < 10 || int(binary.BigEndian.Uint32(in[2:])) != len(in) {
		return nil, fmt.Errorf("command header of % x", in)
	}
	sessions, cc := in[1] == 2, binary.BigEndian.Uint32(in[6:])
	f.log = append(f.log, cc)
	r := &reader{b: in[10:]}
	handles := r.handles(map[uint32]int{ccCreatePrimary: 1, ccFlushContext: 0, ccNVReadPublic: 1, ccNVRead: 2, ccNVWrite: 2,
		ccNVDefineSpace: 1, ccNVUndefineSpace: 2, ccReadPublic: 1, ccPCRRead: 0, ccQuote: 1}[cc])
	if sessions {
		r.take(int(r.u32()))
	}
	handle, out, rc := f.do(cc, handles, r)
	if rc != 0 {
		return head(0x8001, rc, nil), nil
	}
	if f.answer != nil {
		out = f.answer(cc, out)
	}
	if !sessions {
		return head(0x8001, 0, out), nil
	}
	body := append(handle, binary.BigEndian.AppendUint32(nil, uint32(len(out)))...)
	return head(0x8002, 0, append(append(body, out...), 0, 0, 1, 0, 0)), nil // a session with empty nonce and HMAC
}

func head(tag uint16, rc uint32, body []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, tag)
	out = binary.BigEndian.AppendUint32(out, uint32(10+len(body)))
	return append(binary.BigEndian.AppendUint32(out, rc), body...)
}

func (f *fakeTPM) do(cc uint32, handles []uint32, r *reader) (handle, out []byte, rc uint32) {
	switch cc {
	case ccCreatePrimary:
		p := f.public()
		f.keys[0x80000000] = p
		out = slices.Concat(sized(p), sized(nil), sized(nil), []byte{0x80, 0x21, 0x40, 0, 0, 1}, sized(nil), sized(name(p)))
		return []byte{0x80, 0, 0, 0}, out, 0
	case ccFlushContext:
		delete(f.keys, r.u32())
		return nil, nil, 0
	case ccReadPublic:
		p, ok := f.keys[handles[0]]
		if !ok {
			return nil, nil, rcHandle
		}
		return nil, slices.Concat(sized(p), sized(name(p)), sized(name(p))), 0
	case ccPCRRead:
		return nil, f.read(r), 0
	case ccQuote:
		return nil, f.quote(r), 0
	}
	out, rc = f.memory(cc, handles, r)
	return nil, out, rc
}

// memory serves the commands about non-volatile memory.
func (f *fakeTPM) memory(cc uint32, handles []uint32, r *reader) (out []byte, rc uint32) {
	if cc == ccNVDefineSpace {
		r.take(int(r.u16()))
		r.u16()
		index := r.u32()
		r.u16()
		n := &nvIndex{attributes: r.u32()}
		r.take(int(r.u16()))
		n.size = r.u16()
		f.nv[index] = n
		return nil, 0
	}
	index := handles[len(handles)-1]
	n, ok := f.nv[index]
	if !ok {
		return nil, rcHandle
	}
	switch cc {
	case ccNVReadPublic:
		p := n.public(index)
		return slices.Concat(sized(p), sized(name(p))), 0
	case ccNVUndefineSpace:
		delete(f.nv, index)
	case ccNVRead:
		size, offset := int(r.u16()), int(r.u16())
		if size > nvBuffer {
			return nil, 0x0d5 // TPM_RC_SIZE
		}
		return sized(n.data[offset:][:size]), 0
	case ccNVWrite:
		n.data = bytes.Clone(r.take(int(r.u16())))
		if f.wrote != nil {
			f.wrote(index)
		}
	}
	return nil, 0
}

func (n *nvIndex) public(index uint32) []byte {
	attributes := n.attributes
	if n.data != nil {
		attributes |= nvWritten
	}
	out := binary.BigEndian.AppendUint32(nil, index)
	out = binary.BigEndian.AppendUint16(out, 0xb)
	out = binary.BigEndian.AppendUint32(out, attributes)
	return binary.BigEndian.AppendUint16(append(out, 0, 0), n.size)
}

// read answers with eight values at most, as a TPM does.
func (f *fakeTPM) read(r *reader) []byte {
	r.take(4 + 2 + 1)
	asked, given, values := r.take(3), make([]byte, 3), []byte(nil)
	n := 0
	for i := range evidence.Registers {
		if asked[i/8]>>(i%8)&1 == 0 || n == 8 {
			continue
		}
		n++
		given[i/8] |= 1 << (i % 8)
		values = append(values, sized(f.pcrs[i][:])...)
	}
	return pcrAnswer(given, n, values)
}

func pcrAnswer(selected []byte, n int, values []byte) []byte {
	out := append([]byte{0, 0, 0, 77, 0, 0, 0, 1, 0, 0xb, byte(len(selected))}, selected...) // update counter, one selection
	return append(binary.BigEndian.AppendUint32(out, uint32(n)), values...)
}

func (f *fakeTPM) quote(r *reader) []byte {
	nonce := bytes.Clone(r.take(int(r.u16())))
	return f.sign(attest(0x8018, nonce, digestOf(crypto.SHA256, &f.pcrs)))
}

// attest is a TPMS_ATTEST about PCR 0 to 23.
func attest(kind uint16, nonce, digest []byte) []byte {
	out := append([]byte{0xff, 'T', 'C', 'G'}, binary.BigEndian.AppendUint16(nil, kind)...)
	out = slices.Concat(out, sized(nil), sized(nonce), make([]byte, 17+8))
	return slices.Concat(out, []byte{0, 0, 0, 1, 0, 0xb, 3, 0xff, 0xff, 0xff}, sized(digest))
}

func (f *fakeTPM) sign(message []byte) []byte {
	digest := sha256.Sum256(message)
	s, err := rsa.SignPKCS1v15(nil, f.key, crypto.SHA256, digest[:])
	if err != nil {
		panic(err)
	}
	return slices.Concat(sized(message), []byte{0, 0x14, 0, 0xb}, sized(s))
}

func sized(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

func name(public []byte) []byte {
	h := sha256.Sum256(public)
	return append([]byte{0, 0xb}, h[:]...)
}

type reader struct{ b []byte }

func (r *reader) take(n int) []byte {
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }

func (r *reader) handles(n int) (out []uint32) {
	for range n {
		out = append(out, r.u32())
	}
	return out
}

func TestFakeTPM(t *testing.T) {
	f := newFakeTPM()
	a := newTPM(t, f, TPMOptions{})
	for range 2 {
		b, err := a.Evidence(t.Context(), sum384)
		if err != nil {
			t.Fatal(err)
		}
		e := decodeTPM(t, b)
		checkSignature(t, e)
		for i, v := range e.Quote.PCRs {
			if want := fmt.Sprintf("%02x%062d", i+1, 0); v != want {
				t.Errorf("PCR %d is %s, want %s", i, v, want)
			}
		}
	}
	n := 0
	for _, cc := range f.log {
		if cc == ccCreatePrimary {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d keys were made, want 1", n)
	}
	if err := a.(*tpmAttester).Close(); err != nil || len(f.keys) != 0 {
		t.Errorf("after Close: %v, %d keys", err, len(f.keys))
	}
}

// TestTPMRefuses: what a TPM must not answer.
func TestTPMRefuses(t *testing.T) {
	f := newFakeTPM()
	value := sized(make([]byte, 32))
	nonce, digest := fit(sum384, 32), digestOf(crypto.SHA256, &f.pcrs)
	small := tpm2.Marshal(func() tpm2.TPMTPublic {
		p := akTemplate
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: new(big.Int).Lsh(big.NewInt(1), 1023).Bytes()})
		return p
	}())
	for _, tt := range []struct {
		name, want string
		command    uint32
		lie        []byte
	}{
		{"no registers", "0 values for 0 registers", ccPCRRead, pcrAnswer([]byte{0, 0, 0}, 0, nil)},
		{"another bank", "bank sha256 may not be active", ccPCRRead, []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 3, 1, 0, 0, 0, 0, 0, 0}},
		{"no bank", "bank sha256 may not be active", ccPCRRead, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"register 24", "not asked for", ccPCRRead, pcrAnswer([]byte{0, 0, 0, 1}, 1, value)},
		{"fewer values than registers", "PCR 1 has no value", ccPCRRead, pcrAnswer([]byte{3, 0, 0}, 1, value)},
		{"more values than registers", "2 values for 1 registers", ccPCRRead, pcrAnswer([]byte{1, 0, 0}, 2, append(value, value...))},
		{"short value", "PCR 0 has no value of 32 bytes", ccPCRRead, pcrAnswer([]byte{1, 0, 0}, 1, sized(make([]byte, 20)))},
		{"the same again", "not asked for", ccPCRRead, pcrAnswer([]byte{1, 0, 0}, 1, value)},
		{"truncated registers", "TPM2_PCR_Read", ccPCRRead, []byte{0, 0}},
		{"other registers quoted", "somebody else", ccQuote, f.sign(attest(0x8018, nonce, make([]byte, 32)))},
		{"another question", "another question", ccQuote, f.sign(attest(0x8018, make([]byte, 32), digest))},
		{"certified, not quoted", "want a quote", ccQuote, f.sign(slices.Concat([]byte{0xff, 'T', 'C', 'G', 0x80, 0x17}, sized(nil), sized(nonce), make([]byte, 25), sized(nil), sized(nil)))},
		{"not the TPM's", "want a quote", ccQuote, f.sign(append([]byte{0}, attest(0x8018, nonce, digest)[1:]...))},
		{"HMAC", "signature by algorithm 0x5", ccQuote, slices.Concat(sized(attest(0x8018, nonce, digest)), []byte{0, 5, 0, 0xb}, make([]byte, 32))},
		{"unknown hash", "TPM2_Quote", ccQuote, slices.Concat(sized(attest(0x8018, nonce, digest)), []byte{0, 0x14, 0, 0x12}, sized(make([]byte, 256)))},
		{"truncated quote", "TPM2_Quote", ccQuote, sized(nil)},
		{"short key", "RSA key of 1024 bits", ccCreatePrimary, slices.Concat(sized(small), sized(nil), sized(nil), []byte{0x80, 0x21, 0x40, 0, 0, 1}, sized(nil), sized(name(small)))},
		{"truncated key", "TPM2_CreatePrimary", ccCreatePrimary, []byte{0, 9}},
		{"less memory than said", "3 bytes at 0, want 512", ccNVRead, sized([]byte{1, 2, 3})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeTPM()
			f.nv[nvEKCertificate] = &nvIndex{attributes: nvAuthRead, size: 600, data: make([]byte, 600)}
			if _, err := newTPM(t, f, TPMOptions{}).Evidence(t.Context(), sum384); err != nil {
				t.Fatalf("an honest one: %v", err)
			}
			f = newFakeTPM()
			f.nv[nvEKCertificate] = &nvIndex{attributes: nvAuthRead, size: 600, data: make([]byte, 600)}
			f.answer = func(command uint32, honest []byte) []byte {
				if command == tt.command {
					return tt.lie
				}
				return honest
			}
			a, err := NewTPM(f, TPMOptions{Snapshot: logged("log")})
			if err != nil {
				t.Fatal(err)
			}
			_, err = a.Evidence(t.Context(), sum384)
			wantError(t, err, tt.want)
			f.answer = nil
			if err := a.(*tpmAttester).Close(); err != nil {
				t.Error(err)
			}
			if len(f.keys) != 0 && tt.name != "truncated key" { // which nobody knows by name
				t.Errorf("%d keys are left in the TPM", len(f.keys))
			}
		})
	}
}

// FuzzTPM: whatever a TPM answers, there is no panic, and what is accepted is evidence.
func FuzzTPM(f *testing.F) {
	honest := newFakeTPM()
	a, err := NewTPM(honest, TPMOptions{Snapshot: logged("")})
	if err != nil {
		f.Fatal(err)
	}
	honest.answer = func(command uint32, b []byte) []byte {
		f.Add(command, b)
		return b
	}
	honest.nv[nvEKCertificate] = &nvIndex{attributes: nvAuthRead, size: 9, data: make([]byte, 9)}
	if _, err := a.Evidence(context.Background(), nil); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, command uint32, answer []byte) {
		liar := newFakeTPM()
		liar.nv[nvEKCertificate] = &nvIndex{attributes: nvAuthRead, size: 9, data: make([]byte, 9)}
		liar.answer = func(c uint32, b []byte) []byte {
			if c == command {
				return answer
			}
			return b
		}
		a, err := NewTPM(liar, TPMOptions{Snapshot: logged("")})
		if err != nil {
			t.Fatal(err)
		}
		b, err := a.Evidence(t.Context(), sum384)
		if err != nil {
			return
		}
		e, err := evidence.ParseTPM(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(e.Quote.Message, sum384[:32]) {
			t.Fatal("a quote without the report data")
		}
	})
}
