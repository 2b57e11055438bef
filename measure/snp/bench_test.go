package snp

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// benchInputs are 4 MiB of firmware, 12 MiB of kernel and 40 MiB of initrd, no
// two pages alike.
func benchInputs() (image, kernel, initrd []byte) {
	fill := func(b []byte) []byte {
		for i := 0; i < len(b); i += 512 {
			binary.LittleEndian.PutUint64(b[i:], uint64(i)|1)
		}
		return b
	}
	tail := firmware(nil)
	return append(fill(make([]byte, 4<<20-len(tail))), tail...), fill(make([]byte, 12<<20)), fill(make([]byte, 40<<20))
}

// oneValue is what the command does: hash the firmware and the files at once.
func oneValue(b testing.TB, image, kernel, initrd []byte) *Launch {
	var h *Hashes
	var wg sync.WaitGroup
	wg.Go(func() {
		cmdline, err := "console=ttyS0", error(nil)
		if h, err = HashDirectBoot(bytes.NewReader(kernel), bytes.NewReader(initrd), &cmdline); err != nil {
			b.Error(err)
		}
	})
	l := launch(b, Params{Firmware: image})
	wg.Wait()
	l, err := l.WithHashes(h)
	if err != nil {
		b.Fatal(err)
	}
	return l
}

func BenchmarkLaunch(b *testing.B) {
	image, kernel, initrd := benchInputs()
	b.SetBytes(int64(len(image) + len(kernel) + len(initrd)))
	for b.Loop() {
		digest(b, oneValue(b, image, kernel, initrd), VCPUs{Count: 8, Signature: 0x800f12})
	}
}

// BenchmarkBareSHA is the yardstick: SHA-384 of the firmware and SHA-256 of the
// files, as much in parallel as can be without knowing what they are.
func BenchmarkBareSHA(b *testing.B) {
	image, kernel, initrd := benchInputs()
	b.SetBytes(int64(len(image) + len(kernel) + len(initrd)))
	for b.Loop() {
		var wg sync.WaitGroup
		wg.Go(func() { sha256.Sum256(initrd) })
		wg.Go(func() { sha256.Sum256(kernel) })
		wg.Go(func() { sha512.Sum384(image) })
		wg.Wait()
	}
}

// Benchmark200 adds the digests of 40 counts and 5 types to one of them.
func Benchmark200(b *testing.B) {
	image, kernel, initrd := benchInputs()
	signatures := []uint32{0x800f12, 0x830f10, 0xa00f11, 0xa10f10, 0xb00f00}
	for b.Loop() {
		l := oneValue(b, image, kernel, initrd)
		for count := 1; count <= 40; count++ {
			for _, s := range signatures {
				digest(b, l, VCPUs{Count: count, Signature: s})
			}
		}
	}
}

// BenchmarkFirmware is the firmware alone, BenchmarkFirmwareSHA its pages hashed
// on all processors without a chain.
func BenchmarkFirmware(b *testing.B) {
	image, _, _ := benchInputs()
	b.SetBytes(int64(len(image)))
	for b.Loop() {
		launch(b, Params{Firmware: image})
	}
}

func BenchmarkFirmwareSHA(b *testing.B) {
	image, _, _ := benchInputs()
	b.SetBytes(int64(len(image)))
	for b.Loop() {
		var at atomic.Int64
		var wg sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				for {
					i := int(at.Add(pageSize))
					if i > len(image) {
						return
					}
					sha512.Sum384(image[i-pageSize : i])
				}
			})
		}
		wg.Wait()
	}
}

// BenchmarkCandidates is a search that finds nothing.
func BenchmarkCandidates(b *testing.B) {
	l := launch(b, Params{Firmware: firmware(nil), Hashes: &Hashes{}})
	for b.Loop() {
		if c, err := l.Candidates([48]byte{}, VCPUs{Count: 1}); err != nil || len(c) > 0 {
			b.Fatal(c, err)
		}
	}
}
