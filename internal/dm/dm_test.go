package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kernel answers commands as the kernel does, as far as this package sees.
type kernel struct {
	calls  []uint32
	loaded []byte
	flags  uint32
	fail   map[uint32]error
	status func(buf []byte)
	seen   [][]byte // tables, as the caller holds them
}

func (k *kernel) ioctl(command uint32, buf []byte) error {
	k.calls = append(k.calls, command)
	if err := k.fail[command]; err != nil {
		return err
	}
	le := binary.LittleEndian
	if le.Uint32(buf[offVersion:]) != 4 || int(le.Uint32(buf[offDataSize:])) != len(buf) || le.Uint32(buf[offDataStart:]) != headerSize {
		return unix.EINVAL
	}
	switch command {
	case cmdCreate:
		le.PutUint64(buf[offDev:], unix.Mkdev(254, 7))
	case cmdTableLoad:
		k.loaded, k.flags = bytes.Clone(buf), le.Uint32(buf[offFlags:])
		k.seen = append(k.seen, buf)
	case cmdTableStatus:
		k.status(buf)
	}
	return nil
}

// TestCommandNumbers are those of the header, worked out by hand:
// _IOWR(type 0xfd, n, 312 bytes).
func TestCommandNumbers(t *testing.T) {
	for got, want := range map[uint32]uint32{
		cmdCreate: 0xc138fd03, cmdRemove: 0xc138fd04, cmdSuspend: 0xc138fd06, cmdTableLoad: 0xc138fd09, cmdTableStatus: 0xc138fd0c,
	} {
		if got != want {
			t.Errorf("%#x, want %#x", got, want)
		}
	}
}

func TestCreateLoadsReadOnlyAndResumes(t *testing.T) {
	k := &kernel{}
	c := &Control{ioctl: k.ioctl}
	table := []Target{{Start: 0, Length: 8, Type: "verity", Params: "1 a b"}, {Start: 8, Length: 16, Type: "zero", Params: ""}}
	d, err := c.Create("root", "CRYPT-VERITY-x", table)
	if err != nil || d != (Device{"root", 254, 7}) || d.Path() != "/dev/dm-7" {
		t.Fatalf("%+v, %v", d, err)
	}
	if !reflect.DeepEqual(k.calls, []uint32{cmdCreate, cmdTableLoad, cmdSuspend}) {
		t.Errorf("commands %#x", k.calls)
	}
	if k.flags&flagReadOnly == 0 {
		t.Error("the table is not read-only")
	}
	if got := k.loaded[offName:][:5]; string(got) != "root\x00" {
		t.Errorf("name %q", got)
	}
	if binary.LittleEndian.Uint32(k.loaded[offTargets:]) != 2 {
		t.Error("not two targets")
	}
	// In a table that is loaded a target's next is counted from itself.
	first := k.loaded[headerSize:]
	next := binary.LittleEndian.Uint32(first[specNext:])
	if next%8 != 0 || string(first[specSize:][:6]) != "1 a b\x00" || string(first[next+specType:][:5]) != "zero\x00" {
		t.Errorf("next %d, table %q", next, first)
	}
}

func TestCreateLeavesNothingBehind(t *testing.T) {
	for _, step := range []uint32{cmdTableLoad, cmdSuspend} {
		k := &kernel{fail: map[uint32]error{step: unix.EIO}}
		c := &Control{ioctl: k.ioctl}
		if _, err := c.Create("root", "", []Target{{Start: 0, Length: 8, Type: "verity", Params: "x"}}); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "root") {
			t.Errorf("error is %v", err)
		}
		if k.calls[len(k.calls)-1] != cmdRemove {
			t.Errorf("commands %#x: want remove at the end", k.calls)
		}
	}
	k := &kernel{fail: map[uint32]error{cmdCreate: unix.EBUSY}}
	c := &Control{ioctl: k.ioctl}
	if _, err := c.Create("root", "", []Target{{Start: 0, Length: 8, Type: "verity", Params: "x"}}); !errors.Is(err, unix.EBUSY) || len(k.calls) != 1 {
		t.Errorf("error is %v after %#x: a device of that name is somebody else's", err, k.calls)
	}
}

func TestRefusals(t *testing.T) {
	k := &kernel{}
	c := &Control{ioctl: k.ioctl}
	table := []Target{{Start: 0, Length: 8, Type: "verity", Params: "x"}}
	for name, err := range map[string]error{
		"no name":     second(c.Create("", "", table)),
		"slash":       second(c.Create("a/b", "", table)),
		"long name":   second(c.Create(strings.Repeat("n", 128), "", table)),
		"long UUID":   second(c.Create("n", strings.Repeat("u", 129), table)),
		"empty table": second(c.Create("n", "", nil)),
		"long type":   second(c.Create("n", "", []Target{{Start: 0, Length: 8, Type: strings.Repeat("t", 16), Params: ""}})),
		"NUL":         second(c.Create("n", "", []Target{{Start: 0, Length: 8, Type: "verity", Params: "a\x00b"}})),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func second(_ Device, err error) error { return err }

func TestTableReadsWhatTheKernelSays(t *testing.T) {
	want := []Target{{Start: 0, Length: 8, Type: "verity", Params: "1 254:1 254:2 4096 4096 1 1 sha256 00 -"}, {Start: 8, Length: 8, Type: "zero", Params: ""}}
	k := &kernel{status: func(buf []byte) {
		le := binary.LittleEndian
		le.PutUint32(buf[offTargets:], 2)
		off := 0
		for _, x := range want {
			s := buf[headerSize+off:]
			le.PutUint64(s[specStart:], x.Start)
			le.PutUint64(s[specLength:], x.Length)
			copy(s[specType:], x.Type)
			copy(s[specSize:], x.Params+"\x00")
			off = (off + specSize + len(x.Params) + 1 + 7) &^ 7
			le.PutUint32(s[specNext:], uint32(off)) // counted from the first
		}
	}}
	c := &Control{ioctl: k.ioctl}
	got, err := c.Table("root")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	k.status = func(buf []byte) { binary.LittleEndian.PutUint32(buf[offFlags:], flagBufferFull) }
	if _, err := c.Table("root"); err == nil {
		t.Error("a cut answer is taken")
	}
}

func TestVerityTable(t *testing.T) {
	v := Verity{
		Format: 1, Data: "/dev/vda2", Hash: "/dev/vda3", DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: 100, HashStart: 1,
		Algorithm: "sha256", RootHash: []byte{0xab, 0xcd}, Options: []string{"panic_on_corruption"},
	}
	got := v.Target()
	want := Target{Start: 0, Length: 800, Type: "verity", Params: "1 /dev/vda2 /dev/vda3 4096 4096 100 1 sha256 abcd - 1 panic_on_corruption"}
	if got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	back, err := ParseVerity(got.Params)
	if err != nil || !reflect.DeepEqual(*back, v) {
		t.Errorf("%+v, %v", back, err)
	}
	for _, bad := range []string{
		"", "1 a b 4096 4096 100 1 sha256 abcd", "x a b 4096 4096 100 1 sha256 abcd -", "1 a b -1 4096 100 1 sha256 abcd -",
		"1 a b 4096 4096 x 1 sha256 abcd -", "1 a b 4096 4096 1 x sha256 abcd -", "1 a b 4096 4096 1 1 sha256 abc -",
		"1 a b 4096 4096 1 1 sha256 abcd zz", "1 a b 4096 4096 1 1 sha256 abcd - 2 one", "1 a b 4096 4096 1 1 sha256 abcd - one",
	} {
		if v, err := ParseVerity(bad); err == nil {
			t.Errorf("%q: parsed as %+v", bad, v)
		}
	}
}

func TestOtherTables(t *testing.T) {
	c := Crypt{Cipher: "aes-xts-plain64", Key: []byte{1, 2}, Device: "/dev/vdb", Sectors: 16, Options: []string{"allow_discards"}}
	i := Integrity{
		Device: "/dev/vdb", TagSize: 32, Mode: "D", Sectors: 16, Options: []string{"fix_hmac"},
		Keyed: []Keyed{{"internal_hash", "hmac(sha256)", []byte{3}}, {"journal_mac", "hmac(sha256)", []byte{4, 5, 6}}},
	}
	for _, x := range []struct {
		got                Target
		length             uint64
		kind, params, wire string
	}{
		{Linear{Device: "254:0", Offset: 2048}.Target(8, 16), 16, "linear", "254:0 2048", "254:0 2048"},
		{c.Target(), 16, "crypt", "aes-xts-plain64 <key> 0 /dev/vdb 0 1 allow_discards", "aes-xts-plain64 0102 0 /dev/vdb 0 1 allow_discards"},
		{i.Target(), 16, "integrity", "/dev/vdb 0 32 D 3 internal_hash:hmac(sha256):<key> journal_mac:hmac(sha256):<key> fix_hmac",
			"/dev/vdb 0 32 D 3 internal_hash:hmac(sha256):03 journal_mac:hmac(sha256):040506 fix_hmac"},
		{(&Integrity{Device: "/dev/vdb", Start: 2048, TagSize: 32, Mode: "J", Sectors: 16, Options: []string{"fix_hmac"}}).Target(), 16, "integrity",
			"/dev/vdb 2048 32 J 1 fix_hmac", "/dev/vdb 2048 32 J 1 fix_hmac"},
	} {
		if x.got.Length != x.length || x.got.Type != x.kind || x.got.Params != x.params {
			t.Errorf("%+v, want %+v", x.got, x)
		}
		k := &kernel{}
		c := &Control{ioctl: k.ioctl}
		if _, err := c.CreateWritable("d", "", []Target{x.got}, nil); err != nil {
			t.Fatal(err)
		}
		wire, _, _ := bytes.Cut(k.loaded[headerSize+specSize:], []byte{0})
		if string(wire) != x.wire {
			t.Errorf("loaded %q, want %q", wire, x.wire)
		}
		if k.flags&flagReadOnly != 0 || k.flags&flagSecureData == 0 {
			t.Errorf("flags %#x: want writable, and the kernel's copies cleared", k.flags)
		}
		for _, b := range k.seen {
			if bytes.ContainsFunc(b, func(r rune) bool { return r != 0 }) {
				t.Errorf("%s: a table that was loaded is still in memory", x.kind)
			}
		}
	}
	missing := i.Target()
	missing.keys = nil
	if _, err := encode([]Target{missing}); err == nil {
		t.Error("a table without its keys is taken")
	}
}

// TestCheckSeesNoKeys: what the kernel says of a table is shown before the device
// starts, without the keys that are in it.
func TestCheckSeesNoKeys(t *testing.T) {
	c := Crypt{Cipher: "aes-xts-plain64", Key: []byte{0xab, 0xcd, 0xef}, Device: "/dev/vdb", Sectors: 16}
	answer := func(buf []byte) {
		if got := binary.LittleEndian.Uint32(buf[offFlags:]); got != flagStatusTable|flagInactive|flagSecureData {
			t.Errorf("flags %#x", got)
		}
		binary.LittleEndian.PutUint32(buf[offTargets:], 1)
		s := buf[headerSize:]
		binary.LittleEndian.PutUint64(s[specLength:], 16)
		copy(s[specType:], "crypt")
		copy(s[specSize:], "aes-xts-plain64 abcdef 0 254:16 0")
	}
	k := &kernel{status: answer}
	var seen []Target
	refuse := errors.New("not that")
	control := &Control{ioctl: k.ioctl}
	_, err := control.CreateWritable("d", "", []Target{c.Target()}, func(loaded []Target) error {
		seen = loaded
		return refuse
	})
	want := Target{Length: 16, Type: "crypt", Params: "aes-xts-plain64 <key> 0 254:16 0"}
	if !errors.Is(err, refuse) || len(seen) != 1 || seen[0] != want {
		t.Errorf("%v, check saw %+v, want %+v", err, seen, want)
	}
	if !reflect.DeepEqual(k.calls, []uint32{cmdCreate, cmdTableLoad, cmdTableStatus, cmdRemove}) {
		t.Errorf("commands %#x: a device that is refused was started, or stays", k.calls)
	}
	k.calls = nil
	if _, err := control.CreateWritable("d", "", []Target{c.Target()}, func([]Target) error { return nil }); err != nil {
		t.Error(err)
	}
	if !reflect.DeepEqual(k.calls, []uint32{cmdCreate, cmdTableLoad, cmdTableStatus, cmdSuspend}) {
		t.Errorf("commands %#x", k.calls)
	}
}

// TestTryStartsNothing.
func TestTryStartsNothing(t *testing.T) {
	k := &kernel{status: func(buf []byte) {
		if got := binary.LittleEndian.Uint32(buf[offFlags:]); got != flagInactive|flagSecureData {
			t.Errorf("flags %#x", got)
		}
		binary.LittleEndian.PutUint32(buf[offTargets:], 1)
		copy(buf[headerSize+specType:], "integrity")
		copy(buf[headerSize+specSize:], "0 4096 -")
	}}
	c := &Control{ioctl: k.ioctl}
	out, err := c.Try("d", []Target{Linear{Device: "254:0"}.Target(0, 8)})
	if err != nil || len(out) != 1 || out[0].Params != "0 4096 -" {
		t.Errorf("%+v, %v", out, err)
	}
	if !reflect.DeepEqual(k.calls, []uint32{cmdCreate, cmdTableLoad, cmdTableStatus, cmdRemove}) {
		t.Errorf("commands %#x", k.calls)
	}
}

func FuzzParseVerity(f *testing.F) {
	f.Add("1 /dev/vda2 /dev/vda3 4096 4096 100 1 sha256 abcd - 1 panic_on_corruption")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVerity(s)
		if err != nil {
			return
		}
		if again, err := ParseVerity(v.Target().Params); err != nil || !reflect.DeepEqual(again, v) {
			t.Errorf("%+v became %+v, %v", v, again, err)
		}
	})
}
