package cbor

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestIntegers are rows of RFC 8949, appendix A, and the edges of each length.
func TestIntegers(t *testing.T) {
	for _, row := range []struct {
		v    int64
		want string
	}{
		{0, "00"}, {1, "01"}, {10, "0a"}, {23, "17"}, {24, "1818"}, {25, "1819"}, {100, "1864"}, {255, "18ff"}, {256, "190100"}, {1000, "1903e8"},
		{65535, "19ffff"}, {65536, "1a00010000"}, {1000000, "1a000f4240"}, {math.MaxUint32, "1affffffff"}, {math.MaxUint32 + 1, "1b0000000100000000"},
		{1000000000000, "1b000000e8d4a51000"}, {math.MaxInt64, "1b7fffffffffffffff"},
		{-1, "20"}, {-10, "29"}, {-100, "3863"}, {-1000, "3903e7"}, {math.MinInt64, "3b7fffffffffffffff"},
	} {
		b := AppendInt(nil, row.v)
		if hex.EncodeToString(b) != row.want {
			t.Errorf("%d: got %x, want %s", row.v, b, row.want)
		}
		d := NewDecoder(unhex(t, row.want))
		if got := d.Int(); got != row.v || d.End() != nil {
			t.Errorf("%s: got %d, want %d, %v", row.want, got, row.v, d.Err())
		}
	}
}

// TestItems are rows of RFC 8949, appendix A.
func TestItems(t *testing.T) {
	for _, row := range []struct {
		got  []byte
		want string
	}{
		{AppendBytes(nil, nil), "40"},
		{AppendBytes(nil, []byte{1, 2, 3, 4}), "4401020304"},
		{AppendText(nil, ""), "60"},
		{AppendText(nil, "IETF"), "6449455446"},
		{AppendText(nil, "\u00fc"), "62c3bc"},
		{AppendArray(nil, 0), "80"},
		{AppendMap(nil, 0), "a0"},
		{AppendInt(AppendInt(AppendInt(AppendInt(AppendMap(nil, 2), 1), 2), 3), 4), "a201020304"},
		{AppendInt(AppendTag(nil, 1), 1363896240), "c11a514b67b0"},
		{AppendBytes(AppendTag(nil, 24), []byte("dIETF")), "d818456449455446"},
		{AppendText(AppendTag(nil, 32), "http://www.example.com"), "d82076687474703a2f2f7777772e6578616d706c652e636f6d"},
	} {
		if hex.EncodeToString(row.got) != row.want {
			t.Errorf("got %x, want %s", row.got, row.want)
		}
	}
}

func TestDecode(t *testing.T) {
	b := unhex(t, "d901f5"+"a5"+"00"+"6161"+"6162"+"f5"+"20"+"8142"+"0102"+"1864"+"a101c000"+"4162"+"83010203")
	d := NewDecoder(b)
	var got []string
	if tag := d.Tag(); tag != 501 {
		t.Errorf("tag %d", tag)
	}
	d.Map(func(key int64) bool {
		switch key {
		case 0:
			got = append(got, d.Text())
		case -1:
			d.Array(func(i int) { got = append(got, fmt.Sprint(i, d.Bytes())) })
		default:
			return false
		}
		return true
	})
	if err := d.End(); err != nil || fmt.Sprint(got) != "[a 0 [1 2]]" {
		t.Errorf("%v, %v", got, err)
	}
	d = NewDecoder(unhex(t, "8201a1"+"0102"+"03"))
	if raw := d.Raw(); hex.EncodeToString(raw) != "8201a10102" || d.Int() != 3 || d.End() != nil {
		t.Errorf("%x, %v", raw, d.Err())
	}
}

func TestKinds(t *testing.T) {
	for in, want := range map[string]string{"00": "int", "20": "int", "40": "bytes", "60": "text", "a0": "map", "c000": "tag", "80": "", "f5": ""} {
		d, got := NewDecoder(unhex(t, in)), ""
		for kind, is := range map[string]bool{"int": d.IsInt(), "bytes": d.IsBytes(), "text": d.IsText(), "map": d.IsMap(), "tag": d.IsTag()} {
			if is {
				got += kind
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	if NewDecoder(nil).IsInt() {
		t.Error("nothing is an integer")
	}
}

func TestRefuses(t *testing.T) {
	skip := func(d *Decoder) { d.Skip() }
	known := func(d *Decoder) { d.Map(func(int64) bool { d.Skip(); return true }) }
	list := func(d *Decoder) { d.Array(func(int) { d.Skip() }) }
	var wrong uint64
	for _, row := range []struct {
		in   string
		read func(*Decoder)
		want string
	}{
		{"", skip, "ends within"},
		{"18", skip, "offset 0x0: input ends within"},
		{"19ff", skip, "ends within"},
		{"1b00000000000000", skip, "ends within"},
		{"1c", skip, "additional information 28"},
		{"9f", skip, "indefinite"},
		{"5f4100ff", skip, "indefinite"},
		{"4201", skip, "a string of 2 bytes: 1 left"},
		{"5bffffffffffffffff", skip, "a string of"},
		{"9bffffffffffffffff", skip, "items"},
		{"bbffffffffffffffff", skip, "items"},
		{"820100", func(d *Decoder) { d.Int() }, "an array: want an integer"},
		{"0102", skip, "1 bytes behind"},
		{"1b8000000000000000", func(d *Decoder) { d.Int() }, "63 bits"},
		{"3b8000000000000000", func(d *Decoder) { d.Int() }, "63 bits"},
		{"62c328", func(d *Decoder) { d.Text() }, "UTF-8"},
		{"6161", func(d *Decoder) { d.Bytes() }, "a text string: want a byte string"},
		{"05", func(d *Decoder) { wrong = d.Tag() }, "want a tag"},
		{"00", list, "want an array"},
		{"80", known, "want a map"},
		{"9a7fffffff", list, "2147483647 items"},
		{"a2010001", known, "key 1 is there twice"},
		{"a20100", known, "ends within"},
		{"b9010100", known, "257 pairs"},
		{strings.Repeat("81", maxDepth+1) + "00", skip, "levels"},
		{strings.Repeat("c1", maxDepth+1) + "00", skip, "levels"},
	} {
		d := NewDecoder(unhex(t, row.in))
		row.read(d)
		if err := d.End(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.in, err, row.want)
		}
		if d.Int() != 0 || d.Bytes() != nil || d.Text() != "" || d.Tag() != 0 || d.Raw() != nil {
			t.Errorf("%s: something is read after an error", row.in)
		}
	}
	if wrong != 0 {
		t.Errorf("the integer 5 is tag %d", wrong)
	}
	d := NewDecoder(unhex(t, strings.Repeat("81", maxDepth-1)+"00"))
	if d.Skip(); d.End() != nil {
		t.Error(d.Err())
	}
}

// FuzzSkip: an item that can be read has the length that was read, and reading
// what is not there says so.
func FuzzSkip(f *testing.F) {
	f.Add(unhex(f, "d901f5a200616101818201f5"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewDecoder(b)
		raw := d.Raw()
		if d.Err() != nil {
			return
		}
		if !bytes.HasPrefix(b, raw) || len(raw) == 0 {
			t.Fatalf("%x of %x", raw, b)
		}
		again := NewDecoder(raw)
		if again.Skip(); again.End() != nil {
			t.Fatalf("%x: %v", raw, again.Err())
		}
		for n := range min(len(raw), 64) {
			if cut := NewDecoder(raw[:n]); true {
				if cut.Skip(); cut.End() == nil {
					t.Fatalf("%x: the first %d bytes are an item", raw, n)
				}
			}
		}
	})
}
