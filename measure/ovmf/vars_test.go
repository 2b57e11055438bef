package ovmf

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustVars(t testing.TB, flash []byte) *VarStore {
	t.Helper()
	s, err := ParseVars(flash)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustBytes(t testing.TB, s *VarStore) []byte {
	t.Helper()
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func variable(name string, data ...byte) Variable {
	return Variable{Name: name, GUID: GlobalVariable, Attributes: settingAttr, Data: data}
}

func TestBlankVars(t *testing.T) {
	for _, size := range []int{0x20000, 0x84000} {
		b := blankVars(size)
		s := mustVars(t, b)
		if n := len(s.List()); n != 0 {
			t.Errorf("%d variables in a blank flash", n)
		}
		if !bytes.Equal(mustBytes(t, s), b) {
			t.Error("a blank flash changes when rewritten")
		}
	}
}

func TestSetGetDelete(t *testing.T) {
	s := mustVars(t, blankVars(0x20000))
	a, b, c := variable("A", 1), variable("Bé€😀", 2, 3), variable("C")
	c.Time, c.Count, c.KeyIndex, c.GUID = [16]byte{1, 2}, 7, 9, ImageSecurity
	for _, v := range []Variable{a, b, c} {
		if err := s.Set(v); err != nil {
			t.Fatal(err)
		}
	}
	a.Data = []byte{4, 5, 6, 7, 8}
	if err := s.Set(a); err != nil {
		t.Fatal(err)
	}
	c.Data = []byte{}
	flash := mustBytes(t, s)
	again := mustVars(t, flash)
	if diff := cmp.Diff([]Variable{a, b, c}, again.List()); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(mustBytes(t, again), flash) {
		t.Error("the second rewrite differs from the first")
	}
	if data, attrs, ok := again.Get("Bé€😀", GlobalVariable); !ok || attrs != settingAttr || !bytes.Equal(data, b.Data) {
		t.Errorf("Get: %x, %#x, %v", data, attrs, ok)
	}
	if _, _, ok := again.Get("C", GlobalVariable); ok {
		t.Error("a variable of another vendor was found")
	}
	again.Delete("A", GlobalVariable)
	again.Delete("A", GlobalVariable)
	if diff := cmp.Diff([]Variable{b, c}, mustVars(t, mustBytes(t, again)).List()); diff != "" {
		t.Error(diff)
	}
}

func TestSetRefuses(t *testing.T) {
	s := mustVars(t, blankVars(0x20000))
	volatile := variable("A")
	volatile.Attributes = BootServiceAccess
	for _, v := range []Variable{volatile, variable(""), variable("a\x00b"), variable("a\xff")} {
		if err := s.Set(v); err == nil {
			t.Errorf("%q with attributes %#x was accepted", v.Name, v.Attributes)
		}
	}
	if err := s.Set(variable("A", make([]byte, 0xe000)...)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Bytes(); err == nil || !strings.Contains(err.Error(), `"A": 57408 bytes: the store has 57244 left`) {
		t.Errorf("a full store: %v", err)
	}
}

// The states that a variable goes through while firmware replaces it.
func TestStates(t *testing.T) {
	put := func(rows ...any) []byte {
		b := blankVars(0x20000)
		off := 0x48 + storeHeaderSize
		for i := 0; i < len(rows); i += 2 {
			v := variable("A", byte(i))
			raw := v.bytes()
			raw[2] = byte(rows[i].(int))
			raw[len(raw)-1] = byte(rows[i+1].(int))
			off += copy(b[off:], raw)
			off = align4(off)
		}
		return b
	}
	tests := []struct {
		name  string
		flash []byte
		want  []byte // of data, nil for no variable
	}{
		{"added", put(0x3f, 1), []byte{1}},
		{"deleted", put(0x3c, 1), nil},
		{"header alone", put(0x7f, 1), nil},
		{"deleted, then added", put(0x3d, 1, 0x3f, 2), []byte{2}},
		{"in transition alone", put(0x3e, 1), []byte{1}},
		{"in transition and its successor", put(0x3e, 1, 0x3f, 2), []byte{2}},
		{"in transition and a successor that was cut short", put(0x3e, 1, 0x7f, 2), []byte{1}},
		{"in transition twice", put(0x3e, 1, 0x3e, 2), []byte{2}},
		{"added twice", put(0x3f, 1, 0x3f, 2), []byte{1}},
	}
	for _, tt := range tests {
		s := mustVars(t, tt.flash)
		data, _, ok := s.Get("A", GlobalVariable)
		if ok != (tt.want != nil) || !bytes.Equal(data, tt.want) {
			t.Errorf("%s: %x, %v; want %x", tt.name, data, ok, tt.want)
		}
		if n := len(s.List()); n > 1 {
			t.Errorf("%s: %d variables", tt.name, n)
		}
	}
}

// A write that was pending when the flash was copied must not undo the rewrite.
func TestPendingWritesAreForgotten(t *testing.T) {
	b := blankVars(0x20000)
	copy(b[0xf000+32:], "queue")
	copy(b[0x10000:], "spare")
	got := mustBytes(t, mustVars(t, b))
	if !bytes.Equal(got, blankVars(0x20000)) {
		t.Error("queue or spare blocks are left")
	}
	whole := append(b, "code"...)
	if got := mustBytes(t, mustVars(t, whole)); !bytes.HasSuffix(got, []byte("code")) || len(got) != len(whole) {
		t.Error("the code behind the variables is gone")
	}
}

func TestParseVarsRefuses(t *testing.T) {
	s := mustVars(t, blankVars(0x20000))
	if err := s.Set(variable("A", 1)); err != nil {
		t.Fatal(err)
	}
	good := mustBytes(t, s)
	const first = 0x48 + storeHeaderSize
	tests := []struct {
		name  string
		spoil func(b []byte) []byte
		want  string
	}{
		{"empty", func(b []byte) []byte { return nil }, "no variable store"},
		{"too long", func(b []byte) []byte { return make([]byte, maxFlash+1) }, "want at most"},
		{"a code volume", func(b []byte) []byte { return putVolume(compactGUID, 0) }, "no variable store"},
		{"cut", func(b []byte) []byte { return b[:0x1000] }, "volume of 131072 bytes"},
		{"no room", func(b []byte) []byte {
			copy(b[0x20:], "\x50\x00\x00")
			le.PutUint16(b[0x32:], 0)
			le.PutUint16(b[0x32:], -sum16(b[:0x48]))
			return b
		}, "volume of 80 bytes: no variable store"},
		{"format", func(b []byte) []byte { b[0x48]++; return b }, "unsupported"},
		{"size", func(b []byte) []byte { b[0x5b] = 1; return b }, "variable store: 16834488 bytes"},
		{"small", func(b []byte) []byte { copy(b[0x58:], "\x1b\x00\x00\x00"); return b }, "variable store: 27 bytes"},
		{"state", func(b []byte) []byte { b[0x5d]--; return b }, "state 0x5a 0xfd"},
		{"name size", func(b []byte) []byte { b[first+39] = 0xff; return b }, "variable at 0x64: 4278190"},
		{"data size", func(b []byte) []byte { b[first+43] = 0xff; return b }, "variable at 0x64: 4278190"},
		{"odd name", func(b []byte) []byte { b[first+36]--; b[first+40]++; return b }, "want UTF-16"},
		{"name without zero", func(b []byte) []byte { b[first+62] = 'x'; return b }, "want UTF-16"},
	}
	for _, tt := range tests {
		_, err := ParseVars(tt.spoil(bytes.Clone(good)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	if _, err := ParseVars(nil); !errors.Is(err, ErrNoStore) {
		t.Errorf("error %v, want ErrNoStore", err)
	}
}

// testKeys are no certificates: firmware would refuse them, Enroll does not look
// inside.
var testKeys = Keys{
	Owner: mustGUID("7f0c2d6e-1111-2222-3333-444455556666"),
	PK:    []byte("\x30\x02PK"), KEK: [][]byte{[]byte("\x30\x03KEK")}, DB: [][]byte{[]byte("\x30\x02db"), []byte("\x30\x03db2")},
	Epoch: 1767225600,
}

func TestEnroll(t *testing.T) {
	got, err := Enroll(blankVars(0x84000), testKeys)
	if err != nil {
		t.Fatal(err)
	}
	cert := func(der string) SignatureList {
		return SignatureList{CertX509, []byte{}, []Signature{{testKeys.Owner, []byte(der)}}}
	}
	s := mustVars(t, got)
	for _, tt := range []struct {
		name string
		guid GUID
		want []SignatureList
	}{
		{"PK", GlobalVariable, []SignatureList{cert("\x30\x02PK")}},
		{"KEK", GlobalVariable, []SignatureList{cert("\x30\x03KEK")}},
		{"db", ImageSecurity, []SignatureList{cert("\x30\x02db"), cert("\x30\x03db2")}},
	} {
		data, attrs, _ := s.Get(tt.name, tt.guid)
		lists, err := ParseSignatureLists(data)
		if err != nil || attrs != 0x27 {
			t.Errorf("%s: attributes %#x, %v", tt.name, attrs, err)
		}
		if diff := cmp.Diff(tt.want, lists); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	for _, v := range s.List() {
		want := [16]byte{}
		if v.Attributes&TimeBasedAuthenticatedWrite != 0 {
			want = [16]byte{0xea, 0x07, 1, 1} // 2026-01-01
		}
		if v.Time != want {
			t.Errorf("%s: time %x, want %x", v.Name, v.Time, want)
		}
	}
	// Changing the layout changes what users have enrolled: on purpose only.
	const golden = "5e84c2d105d7b322f2b490836548fb5763c80e8bb9231f2d449f4d11e7d919ef"
	if sum := fmt.Sprintf("%x", sha256.Sum256(got)); sum != golden {
		t.Errorf("sha256 of the flash is %s, want %s", sum, golden)
	}
	other := testKeys
	other.PK = []byte("\x30\x03PK2")
	again, err := Enroll(got, other)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := Enroll(blankVars(0x84000), other)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, fresh) {
		t.Error("enrolling over other keys leaves a trace of them")
	}
}

func TestEnrollRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(k *Keys)
		want  string
	}{
		{"no owner", func(k *Keys) { k.Owner = GUID{} }, "no owner GUID"},
		{"no PK", func(k *Keys) { k.PK = nil }, "enroll PK: certificate 0: 0 bytes"},
		{"no KEK", func(k *Keys) { k.KEK = nil }, "enroll KEK: no certificate"},
		{"no db", func(k *Keys) { k.DB = nil }, "enroll db: no certificate"},
		{"PEM", func(k *Keys) { k.PK = []byte("-----BEGIN CERTIFICATE-----") }, "not one in DER"},
		{"more after it", func(k *Keys) { k.PK = append(k.PK, 0) }, "not one in DER"},
		{"no sequence", func(k *Keys) { k.PK = []byte{4, 1, 0} }, "not one in DER"},
		{"epoch", func(k *Keys) { k.Epoch = -1 }, "epoch -1"},
		{"late epoch", func(k *Keys) { k.Epoch = maxEpoch + 1 }, "epoch 253402300800"},
		{"too big", func(k *Keys) { k.DB = [][]byte{append([]byte{0x30, 0x83, 4, 0, 0}, make([]byte, 0x40000)...)} }, "the store has"},
	}
	for _, tt := range tests {
		k := testKeys
		tt.spoil(&k)
		if _, err := Enroll(blankVars(0x84000), k); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	if _, err := Enroll(nil, testKeys); !errors.Is(err, ErrNoStore) {
		t.Errorf("no flash: %v", err)
	}
}

func TestSignatureLists(t *testing.T) {
	sig := func(b byte) Signature { return Signature{GUID{b}, bytes.Repeat([]byte{b}, 32)} }
	want := []SignatureList{
		{CertSHA256, []byte{}, []Signature{sig(1), sig(2)}},
		{CertX509, []byte("header"), []Signature{{GUID{3}, []byte("certificate")}}},
	}
	var b []byte
	var err error
	for _, l := range want {
		if b, err = AppendSignatureList(b, l); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ParseSignatureLists(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		name  string
		spoil func(b []byte) []byte
		want  string
	}{
		{"cut header", func(b []byte) []byte { return b[:27] }, "want a header of 28"},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, "signature list at 0x7c: 61 bytes"},
		{"no size", func(b []byte) []byte { b[16] = 0; return b }, "0 bytes with a header"},
		{"header size", func(b []byte) []byte { b[20] = 0xff; return b }, "with a header of 255"},
		{"signature size", func(b []byte) []byte { b[24]++; return b }, "96 bytes of signatures of 49"},
		{"no signature", func(b []byte) []byte { b[24] = 16; return b }, "signatures of 16"},
		{"too long", func(b []byte) []byte { return make([]byte, maxSignatureLen+1) }, "want at most"},
	} {
		if _, err := ParseSignatureLists(tt.spoil(bytes.Clone(b))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	for _, l := range []SignatureList{{}, {Signatures: []Signature{{}}}, {Signatures: []Signature{sig(1), {Data: []byte{1}}}}, {Signatures: []Signature{{Data: make([]byte, maxSignatureLen)}}}} {
		if _, err := AppendSignatureList(nil, l); err == nil {
			t.Errorf("a list of %d signatures was written", len(l.Signatures))
		}
	}
}

// The days are those of date(1): date -u -d @N +%FT%T.
func TestEFITime(t *testing.T) {
	for epoch, want := range map[int64]string{
		0:            "1970-01-01T00:00:00",
		951782400:    "2000-02-29T00:00:00",
		951868799:    "2000-02-29T23:59:59",
		951868800:    "2000-03-01T00:00:00",
		1767225600:   "2026-01-01T00:00:00",
		1767225599:   "2025-12-31T23:59:59",
		1709208000:   "2024-02-29T12:00:00",
		4107542400:   "2100-03-01T00:00:00",
		253402300799: "9999-12-31T23:59:59",
	} {
		b := efiTime(epoch)
		got := fmt.Sprintf("%04d-%02d-%02dT%02d:%02d:%02d", le.Uint16(b[:]), b[2], b[3], b[4], b[5], b[6])
		if got != want || b[7] != 0 || le.Uint64(b[8:]) != 0 {
			t.Errorf("%d: %s, rest %x; want %s", epoch, got, b[7:], want)
		}
	}
}

func FuzzParseVars(f *testing.F) {
	small := func(rest []byte) []byte {
		b := blankVars(0x20000)[:0x48+storeHeaderSize]
		b = append(b, rest...)
		le.PutUint64(b[0x20:], uint64(len(b)))
		le.PutUint32(b[0x58:], uint32(len(b)-0x48))
		le.PutUint16(b[0x32:], 0)
		le.PutUint16(b[0x32:], -sum16(b[:0x48]))
		return b
	}
	v := variable("SecureBootEnable", 1)
	f.Add(small(nil))
	f.Add(small(append(v.bytes(), "\xff\xff\xff\xff"...)))
	f.Add(small(append(append(v.bytes(), 0xff, 0xff, 0xff), v.bytes()...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseVars(b)
		if err != nil {
			return
		}
		first, err := s.Bytes()
		if err != nil {
			t.Fatalf("what was read does not fit: %v", err)
		}
		again := mustVars(t, first)
		if diff := cmp.Diff(s.List(), again.List()); diff != "" {
			t.Fatal(diff)
		}
		if !bytes.Equal(mustBytes(t, again), first) {
			t.Fatal("the second rewrite differs from the first")
		}
	})
}

func FuzzSignatureLists(f *testing.F) {
	var b []byte
	for _, l := range []SignatureList{{Type: CertX509, Signatures: []Signature{{Data: []byte("\x30\x00")}}}, {Type: CertSHA256, Signatures: []Signature{{Data: make([]byte, 32)}}}} {
		b, _ = AppendSignatureList(b, l)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		lists, err := ParseSignatureLists(b)
		if err != nil {
			return
		}
		var out []byte
		for _, l := range lists {
			if out, err = AppendSignatureList(out, l); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(out, b) {
			t.Fatalf("%x was written as %x", b, out)
		}
	})
}
