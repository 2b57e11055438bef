package verity

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func root(t *testing.T) (*Root, []byte, []byte) {
	t.Helper()
	data, tree, hash, p := small(t)
	return &Root{Params: p, RootHash: hash, HashStart: 1, OnCorruption: Panic}, data, append(make([]byte, 512), tree...)
}

func TestRootIsReadBack(t *testing.T) {
	r, _, _ := root(t)
	s := r.String()
	if strings.ContainsAny(s, " \"\n") {
		t.Errorf("%q is not one word of a command line", s)
	}
	got, err := ParseRoot(s)
	if err != nil || got.String() != s || !bytes.Equal(got.RootHash, r.RootHash) || got.HashStart != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	r.Salt = nil
	if got, err := ParseRoot(r.String()); err != nil || len(got.Salt) != 0 {
		t.Errorf("without salt: %+v, %v", got, err)
	}
}

func TestRootIsChecked(t *testing.T) {
	r, _, _ := root(t)
	good := r.String()
	for name, s := range map[string]string{
		"nothing":             "",
		"one field less":      strings.TrimSuffix(good, ",on_corruption=panic"),
		"one field more":      good + ",x=y",
		"other order":         strings.Replace(good, "format=1,on_corruption=panic", "on_corruption=panic,format=1", 1),
		"upper case":          strings.ToUpper(good[:30]) + good[30:],
		"leading zero":        strings.Replace(good, "data_blocks=700", "data_blocks=0700", 1),
		"sign":                strings.Replace(good, "format=1", "format=+1", 1),
		"short root hash":     strings.Replace(good, "root_hash=", "root_hash=00", 1),
		"ignore corruption":   strings.Replace(good, "=panic", "=ignore", 1),
		"algorithm":           strings.Replace(good, "sha256", "md5", 1),
		"block size":          strings.Replace(good, "data_block_size=512", "data_block_size=513", 1),
		"data blocks":         strings.Replace(good, "data_blocks=700", "data_blocks=0", 1),
		"hash start too high": strings.Replace(good, "hash_start=1", "hash_start=562949953421312", 1),
	} {
		if s == good {
			t.Fatalf("%s: the row changes nothing", name)
		}
		if got, err := ParseRoot(s); err == nil {
			t.Errorf("%s: parsed as %+v", name, got)
		}
	}
}

func TestTopTellsTheRightDisk(t *testing.T) {
	r, data, hash := root(t)
	if err := r.Top(bytes.NewReader(data), bytes.NewReader(hash)); err != nil {
		t.Fatal(err)
	}
	hash[512] ^= 1
	var corrupt *CorruptError
	if err := r.Top(bytes.NewReader(data), bytes.NewReader(hash)); !errors.As(err, &corrupt) {
		t.Errorf("other tree: %v", err)
	}
	if err := r.Top(bytes.NewReader(data), bytes.NewReader(hash[:600])); err == nil || errors.As(err, &corrupt) {
		t.Errorf("short partition: %v", err)
	}
	one := &Root{Params: Params{Algorithm: SHA256, DataBlockSize: 512, HashBlockSize: 512, DataBlocks: 1, Format: 1}, OnCorruption: Panic}
	var err error
	if one.RootHash, err = Format(&memory{}, bytes.NewReader(data), one.Params); err != nil {
		t.Fatal(err)
	}
	if err := one.Top(bytes.NewReader(data), bytes.NewReader(nil)); err != nil {
		t.Errorf("one block: %v", err)
	}
	if err := one.Top(bytes.NewReader(data[512:]), bytes.NewReader(nil)); !errors.As(err, &corrupt) {
		t.Errorf("another block: %v", err)
	}
}

func TestPartitionIDs(t *testing.T) {
	r := &Root{RootHash: []byte("0123456789abcdefGHIJKLMNOPQRSTUV")}
	if d, h := r.PartitionIDs(); string(d[:]) != "0123456789abcdef" || string(h[:]) != "GHIJKLMNOPQRSTUV" {
		t.Errorf("%q %q", d, h)
	}
}

func FuzzParseRoot(f *testing.F) {
	f.Add("root_hash=" + strings.Repeat("ab", 32) + ",salt=,data_blocks=1,data_block_size=4096,hash_block_size=4096,hash_start=1,hash=sha256,format=1,on_corruption=panic")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRoot(s); err == nil && r.String() != s {
			t.Errorf("%q became %q", s, r)
		}
	})
}
