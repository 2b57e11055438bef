package ovmftest

import "bytes"

// A Tail is the last block of a firmware or SVSM file: the metadata, the GUIDed
// table that points at it, and the reset vector. edk2, OvmfPkg/ResetVector.
type Tail struct {
	Reset          uint32
	Hashes, Secret [2]uint32   // base, size
	SEV            [][3]uint32 // GPA, size, type; nil: no entry
	TDX            []TDX       // nil: no entry
	IGVM           [][3]uint32 // start, size, type; nil: no entry
	SVSM           *uint32     // launch offset; nil: no entry
	Others         []Entry     // at the front of the table
}

// TDX is a section of the TDVF metadata.
type TDX struct {
	Offset, Size     uint32
	GPA, MemSize     uint64
	Type, Attributes uint32
}

// Entry is one of the table's.
type Entry struct {
	GUID GUID
	Data []byte
}

// Bytes writes the block, 4 KiB. The table's entries are, from its front: others,
// IGVM, TDX, SEV, SVSM, hash table, secret, reset block, and the one that ends it.
func (t Tail) Bytes() []byte {
	meta, back := t.metadata()
	var entries []byte
	put := func(guidText string, data []byte) { entries = append(entries, entry(guid(guidText), data)...) }
	for _, e := range t.Others {
		entries = append(entries, entry(e.GUID, e.Data)...)
	}
	for _, m := range []struct{ kind, guid string }{
		{"IGVM", "784fa70e-3176-4677-8a20-04b68699e374"},
		{"TDVF", "e47a6535-984a-4798-865e-4685a7bf8ec2"},
		{"ASEV", "dc886566-984a-4798-a75e-5585a7bf67cc"},
	} {
		if at, ok := back[m.kind]; ok {
			put(m.guid, words(uint32(at)))
		}
	}
	if t.SVSM != nil {
		put("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd", words(*t.SVSM))
	}
	put("7255371f-3a3b-4b04-927b-1da6efa8d454", words(t.Hashes[:]...))
	put("4c2eb361-7d9b-4cc3-8081-127c90d3d294", words(t.Secret[:]...))
	put("00f771de-1a7e-4fcb-890e-68c77e2fb44e", words(t.Reset))
	last := entry(guid("96b582de-1fb2-45f7-baea-a366c55a082d"), nil)
	le.PutUint16(last, uint16(len(entries)+len(last)))
	b := make([]byte, 0x1000)
	copy(b[metadataAt:], meta)
	copy(b[0x1000-32-len(last):], last)
	copy(b[0x1000-32-len(last)-len(entries):], entries)
	return b
}

// metadataAt is where the metadata begins in the block.
const metadataAt = 0x100

// metadata writes what the table points at. back is, by signature, how far from
// the file's end each begins.
func (t Tail) metadata() (b []byte, back map[string]int) {
	back = map[string]int{}
	descriptor := func(signature string, count int, sections []byte) {
		back[signature] = 0x1000 - metadataAt - len(b)
		b = append(b, signature...)
		b = append(b, words(uint32(16+len(sections)), 1, uint32(count))...)
		b = append(b, sections...)
	}
	triples := func(list [][3]uint32) (s []byte) {
		for _, x := range list {
			s = append(s, words(x[:]...)...)
		}
		return s
	}
	if t.TDX != nil {
		id := guid("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae")
		b = append(b, id[:]...)
		var s []byte
		for _, x := range t.TDX {
			s = append(s, words(x.Offset, x.Size, uint32(x.GPA), uint32(x.GPA>>32), uint32(x.MemSize), uint32(x.MemSize>>32), x.Type, x.Attributes)...)
		}
		descriptor("TDVF", len(t.TDX), s)
	}
	if t.SEV != nil {
		descriptor("ASEV", len(t.SEV), triples(t.SEV))
	}
	if t.IGVM != nil {
		descriptor("IGVM", len(t.IGVM), triples(t.IGVM))
	}
	return b, back
}

func entry(id GUID, data []byte) []byte {
	b := le.AppendUint16(bytes.Clone(data), uint16(len(data)+18))
	return append(b, id[:]...)
}

func words(v ...uint32) (b []byte) {
	for _, x := range v {
		b = le.AppendUint32(b, x)
	}
	return b
}

// AmdSevTail is that of edk2's AmdSev build, 2026.08, without TDX and IGVM.
func AmdSevTail() Tail {
	return Tail{
		Reset: 0x80b004, Hashes: [2]uint32{0x810c00, 0x400}, Secret: [2]uint32{0x810000, 0xc00},
		SEV: [][3]uint32{
			{0x800000, 0x9000, 1}, {0x80a000, 0x3000, 1}, {0x80d000, 0x1000, 2}, {0x80e000, 0x1000, 3},
			{0x80f000, 0x1000, 4}, {0x811000, 0x1f000, 1}, {0x810000, 0x1000, 0x10},
		},
	}
}

// AmdSev is a whole flash with the parts of edk2's AmdSev build: variables, code
// whose loader knows the hash table, and AmdSevTail.
func AmdSev(version string) []byte {
	kernelHash := guid("4de79437-abd2-427f-b835-d5b172d2045b")
	code := codeWith(version, Module(fileDriver, "QemuKernelLoaderFsDxe", PE(kernelHash[:])), Module(fileDriver, "AmdSevDxe", PE()), Module(fileDriver, "Tcg2Dxe", PE()))
	return append(append(BlankVars(0x20000), code...), AmdSevTail().Bytes()...)
}

// IntelTDX is a whole flash with the parts of edk2's IntelTdx build: variables,
// code with the drivers for TDX, and the metadata of a trust domain.
func IntelTDX(version string) []byte {
	code := codeWith(version, Module(fileDriver, "QemuKernelLoaderFsDxe", PE()), Module(fileDriver, "TdxDxe", PE()), Module(fileDriver, "TdTcg2Dxe", PE()))
	vars := BlankVars(0x20000)
	tail := TDXTail(len(vars), len(code)+0x1000)
	return append(append(vars, code...), tail.Bytes()...)
}

// TDXTail is that of edk2's IntelTdx build, 2026.08, without SEV and IGVM, for a
// flash of so many bytes of variables and code.
func TDXTail(vars, code int) Tail {
	base := uint64(1<<32 - vars - code)
	return Tail{Reset: 0x80b004, TDX: []TDX{
		{uint32(vars), uint32(code), base + uint64(vars), uint64(code), 0, 1},
		{0, uint32(vars), base, uint64(vars), 1, 0},
		{0, 0, 0x810000, 0x10000, 3, 0}, {0, 0, 0x80b000, 0x2000, 3, 0}, {0, 0, 0x809000, 0x2000, 2, 0}, {0, 0, 0x800000, 0x6000, 3, 0},
	}}
}

// codeWith is Code with more drivers in DXEFV.
func codeWith(version string, drivers ...[]byte) []byte {
	pei, dxe := Volumes(version)
	text := [][]byte{Text("unknown")}
	if version != "" {
		text = append(text, Text(version))
	}
	files := append([][]byte{Module(fileDriver, "SmbiosPlatformDxe", PE(text...)), Module(fileDriver, "SecureBootConfigDxe", PE())}, drivers...)
	return Code(pei, Volume(DXEFV, len(dxe), files...))
}
