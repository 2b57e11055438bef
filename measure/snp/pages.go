package snp

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"runtime"
)

const pageSize = 4096

// pageType is that of SNP_LAUNCH_UPDATE: 56860, table of PAGE_TYPE encodings.
type pageType byte

const (
	pageNormal     pageType = 1
	pageVMSA       pageType = 2
	pageZero       pageType = 3
	pageUnmeasured pageType = 4 // the content is not measured, that there is a page is
	pageSecrets    pageType = 5
	pageCPUID      pageType = 6
)

var pageTypes = [...]string{
	pageNormal: "normal", pageVMSA: "vmsa", pageZero: "zero", pageUnmeasured: "unmeasured", pageSecrets: "secrets", pageCPUID: "cpuid",
}

func (t pageType) String() string { return pageTypes[t] }

// chain is the running launch digest.
type chain struct{ digest [48]byte }

// add appends one page. content is the SHA-384 of a normal or register page and
// zero for others. Layout: 56860, PAGE_INFO.
func (c *chain) add(t pageType, gpa uint64, content [48]byte) {
	const size = 0x70
	var info [size]byte
	copy(info[0x00:], c.digest[:])
	copy(info[0x30:], content[:])
	binary.LittleEndian.PutUint16(info[0x60:], size)
	info[0x62] = byte(t)
	// 0x63: IMI page; 0x64 to 0x66: permissions of VMPL 3 to 1, which no VMM gives.
	binary.LittleEndian.PutUint64(info[0x68:], gpa)
	c.digest = sha512.Sum384(info[:])
}

// addEmpty appends the pages of a range whose content is not measured.
func (c *chain) addEmpty(t pageType, gpa, size uint64) {
	for end := gpa + size; gpa < end; gpa += pageSize {
		c.add(t, gpa, [48]byte{})
	}
}

func pageDigest(page []byte) [48]byte { return sha512.Sum384(page) }

// addPages appends data, whole pages, as normal ones. The pages are hashed in
// parallel; only the chain is sequential.
func (c *chain) addPages(gpa uint64, data []byte) {
	const batch = 64 * pageSize
	batches := make([]chan []byte, (len(data)+batch-1)/batch) // in order, each gets the digests of its pages
	for i := range batches {
		batches[i] = make(chan []byte, 1)
	}
	next := make(chan int, len(batches))
	for i := range batches {
		next <- i
	}
	close(next)
	for range min(runtime.GOMAXPROCS(0), len(batches)) {
		go func() {
			for i := range next {
				batches[i] <- hashPages(data[i*batch : min((i+1)*batch, len(data))])
			}
		}()
	}
	for _, digests := range batches {
		for d := <-digests; len(d) > 0; d = d[48:] {
			c.add(pageNormal, gpa, [48]byte(d))
			gpa += pageSize
		}
	}
}

// hashPages returns the digests of pages, one after the other. Firmware has long
// stretches of equal pages, which are hashed once.
func hashPages(data []byte) []byte {
	out := make([]byte, 0, len(data)/pageSize*48)
	var digest [48]byte
	for at := 0; at < len(data); at += pageSize {
		page := data[at : at+pageSize]
		if at == 0 || !bytes.Equal(page, data[at-pageSize:at]) {
			digest = pageDigest(page)
		}
		out = append(out, digest[:]...)
	}
	return out
}
