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
	table := []Target{{0, 8, "verity", "1 a b"}, {8, 16, "zero", ""}}
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
		if _, err := c.Create("root", "", []Target{{0, 8, "verity", "x"}}); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "root") {
			t.Errorf("error is %v", err)
		}
		if k.calls[len(k.calls)-1] != cmdRemove {
			t.Errorf("commands %#x: want remove at the end", k.calls)
		}
	}
	k := &kernel{fail: map[uint32]error{cmdCreate: unix.EBUSY}}
	c := &Control{ioctl: k.ioctl}
	if _, err := c.Create("root", "", []Target{{0, 8, "verity", "x"}}); !errors.Is(err, unix.EBUSY) || len(k.calls) != 1 {
		t.Errorf("error is %v after %#x: a device of that name is somebody else's", err, k.calls)
	}
}

func TestRefusals(t *testing.T) {
	k := &kernel{}
	c := &Control{ioctl: k.ioctl}
	table := []Target{{0, 8, "verity", "x"}}
	for name, err := range map[string]error{
		"no name":     second(c.Create("", "", table)),
		"slash":       second(c.Create("a/b", "", table)),
		"long name":   second(c.Create(strings.Repeat("n", 128), "", table)),
		"long UUID":   second(c.Create("n", strings.Repeat("u", 129), table)),
		"empty table": second(c.Create("n", "", nil)),
		"long type":   second(c.Create("n", "", []Target{{0, 8, strings.Repeat("t", 16), ""}})),
		"NUL":         second(c.Create("n", "", []Target{{0, 8, "verity", "a\x00b"}})),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func second(_ Device, err error) error { return err }

func TestTableReadsWhatTheKernelSays(t *testing.T) {
	want := []Target{{0, 8, "verity", "1 254:1 254:2 4096 4096 1 1 sha256 00 -"}, {8, 8, "zero", ""}}
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
	want := Target{0, 800, "verity", "1 /dev/vda2 /dev/vda3 4096 4096 100 1 sha256 abcd - 1 panic_on_corruption"}
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
	if got, want := c.Target(), (Target{0, 16, "crypt", "aes-xts-plain64 0102 0 /dev/vdb 0 1 allow_discards"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	i := Integrity{Device: "/dev/vdb", TagSize: 32, Mode: "D", Sectors: 16, Options: []string{"internal_hash:sha256"}}
	if got, want := i.Target(), (Target{0, 16, "integrity", "/dev/vdb 0 32 D 1 internal_hash:sha256"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
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
