package refvalue

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/cbor"
	"github.com/plinth-os/plinth/internal/testenv"
)

func digests(n int, b ...byte) (out []any) {
	for _, x := range b {
		out = append(out, strings.Repeat(fmt.Sprintf("%02x", x), n))
	}
	return out
}

func tdxSet() *Set {
	return &Set{TEE: TDX, Expires: time.Unix(1767225600, 0), Values: []Value{
		{Name: "mr_td", Any: digests(48, 1)},
		{Name: "rtmr_1", Any: digests(48, 2, 3)},
		{Name: "tdvfkernel", Scalar: true, Any: digests(48, 4)},
		{Name: "xfam", Any: []any{"e702060000000000"}},
	}}
}

// TestCoRIMBytes holds the whole of a small CoRIM against bytes put together by
// hand from draft-ietf-rats-corim and RFC 8949.
func TestCoRIMBytes(t *testing.T) {
	s := &Set{TEE: TPM, Values: []Value{{Name: "tpm_pcr11", Any: digests(32, 7)}}}
	got, err := s.CoRIM(CoRIMParams{ID: "x", Entity: "me"})
	if err != nil {
		t.Fatal(err)
	}
	triples := "a1" + "00" + "81" + "82" + // triples-map {0: [[
		"a1" + "00" + "a2" + "01" + "63" + hex.EncodeToString([]byte("TCG")) + "02" + "63" + hex.EncodeToString([]byte("TPM")) + // {0: {1: "TCG", 2: "TPM"}},
		"81" + "a2" + "00" + "65" + hex.EncodeToString([]byte("PCR11")) + // [{0: "PCR11",
		"01" + "a1" + "02" + "81" + "82" + "01" + "5820" + strings.Repeat("07", 32) // 1: {2: [[1, h'..']]}}]]]}
	raw, _ := hex.DecodeString(triples)
	id := uuid5(namespace, raw)
	comid := "a2" + "01" + "a1" + "00" + "50" + hex.EncodeToString(id[:]) + "04" + triples
	want := "d901f5" + "a3" + "00" + "61" + "78" +
		"01" + "81" + "d901fa" + "58" + fmt.Sprintf("%02x", len(comid)/2) + comid +
		"05" + "81" + "a2" + "00" + "62" + hex.EncodeToString([]byte("me")) + "02" + "81" + "01"
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

// TestUUID5 holds uuid5 against the example of RFC 9562, appendix A.4.
func TestUUID5(t *testing.T) {
	dns := namespaceURL
	dns[3] = 0x10
	got := uuid5(dns, []byte("www.example.com"))
	if want := "2ed6657de927568b95e12665a8aea6a2"; hex.EncodeToString(got[:]) != want {
		t.Errorf("got %x, want %s", got, want)
	}
}

func TestCoRIMReadsBack(t *testing.T) {
	s := tdxSet()
	b, err := s.CoRIM(CoRIMParams{Entity: "a maker"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCoRIM(b)
	if err != nil {
		t.Fatal(err)
	}
	if c.NotAfter != 1767225600 || c.Signed || len(c.Tags) != 1 || c.ID == "" || c.Tags[0].ID == "" || c.ID == c.Tags[0].ID {
		t.Errorf("%+v", c)
	}
	hexes := func(n int, b ...byte) (out []string) {
		for _, d := range digests(n, b...) {
			out = append(out, d.(string))
		}
		return out
	}
	want := []CoRIMValue{
		{"Intel/TDX/MRTD/digests", hexes(48, 1)},
		{"Intel/TDX/RTMR1/digests", hexes(48, 2, 3)},
		{"Intel/TDX/TDVFKERNEL/digests", hexes(48, 4)},
		{"Intel/TDX/XFAM/raw_bytes", "e702060000000000"},
	}
	if got := c.RVPS(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	names, err := s.CoRIMNames()
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range names {
		if n.Name != s.Values[i].Name || n.RVPS != want[i].Name || n.Why != "" {
			t.Errorf("%+v, want %s", n, want[i].Name)
		}
	}
}

// TestCoRIMSameBytes: order of values of a register and repetition change
// nothing; the content changes both identifiers, the rest only the CoRIM's.
func TestCoRIMSameBytes(t *testing.T) {
	ids := func(change func(*Set), p CoRIMParams) (b []byte, corim, comid string) {
		s := tdxSet()
		change(s)
		b, err := s.CoRIM(p)
		if err != nil {
			t.Fatal(err)
		}
		c, err := ParseCoRIM(b)
		if err != nil {
			t.Fatal(err)
		}
		return b, c.ID, c.Tags[0].ID
	}
	b, corim, comid := ids(func(*Set) {}, CoRIMParams{})
	again, _, _ := ids(func(s *Set) { slices.Reverse(s.Values[1].Any) }, CoRIMParams{})
	if !bytes.Equal(b, again) {
		t.Error("the order of digests shows")
	}
	if _, c, m := ids(func(s *Set) { s.Expires = s.Expires.Add(time.Second) }, CoRIMParams{}); c == corim || m != comid {
		t.Errorf("another expiry: CoRIM %s, CoMID %s", c, m)
	}
	if _, c, m := ids(func(*Set) {}, CoRIMParams{Entity: "me"}); c == corim || m != comid {
		t.Errorf("another entity: CoRIM %s, CoMID %s", c, m)
	}
	if _, c, m := ids(func(s *Set) { s.Values[1].Any = digests(48, 2, 9) }, CoRIMParams{}); c == corim || m == comid {
		t.Errorf("another value: CoRIM %s, CoMID %s", c, m)
	}
}

func TestCoRIMLeavesOut(t *testing.T) {
	s := &Set{TEE: AzSNP, Values: []Value{
		{Name: "measurement", Any: bytesLike(base48)},
		{Name: "smt_allowed", Any: []any{true}},
		{Name: "smt_enabled", Any: []any{"true"}},
		{Name: "tcb_snp", Any: []any{int64(3)}},
		{Name: "tcb_tee", Any: []any{"10"}}, // digits, and yet not bytes
		{Name: "xfam", Any: []any{"0102", "0304"}},
		{Name: "mr_td", Any: append(digests(48, 1), "0102")},
		{Name: "rtmr_1"},
		{Name: "unknown", Any: []any{"0102"}},
		{Name: "trusted_aks", Any: []any{strings.Repeat("AQEB", 16)}},
	}}
	b, err := s.CoRIM(CoRIMParams{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCoRIM(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(c.RVPS()), "[{Microsoft/az-snp-vtpm/MEASUREMENT/digests ["+strings.Repeat("01", 48)+"]}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	names, _ := s.CoRIMNames()
	for _, n := range names[1:] {
		if n.RVPS != "" || n.Why == "" {
			t.Errorf("%+v", n)
		}
	}
	if _, err := (&Set{TEE: SNP, Values: s.Values[1:]}).CoRIM(CoRIMParams{}); err == nil {
		t.Error("a CoRIM of nothing")
	}
	if _, err := (&Set{Values: s.Values}).CoRIM(CoRIMParams{}); err == nil {
		t.Error("a CoRIM for no TEE")
	}
	if _, err := (&Set{Values: s.Values}).CoRIMNames(); err == nil {
		t.Error("names for no TEE")
	}
}

// TestCoRIMNamesInDocs: docs/formats.md has the names of all that a CoRIM carries.
func TestCoRIMNamesInDocs(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs/formats.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, tee := range TEEs {
		for _, c := range Conditions(tee) {
			s := &Set{TEE: tee, Values: []Value{{Name: c.Reference, Any: bytesLike(names[c.Reference])}}}
			got, err := s.CoRIMNames()
			if err != nil {
				t.Fatal(err)
			}
			if got[0].RVPS == "" {
				continue
			}
			if rows++; !bytes.Contains(doc, []byte("`"+got[0].RVPS+"`")) {
				t.Errorf("%s: %s is not in docs/formats.md", c.Reference, got[0].RVPS)
			}
		}
	}
	if rows < 12 {
		t.Errorf("%d names", rows)
	}
}

// bytesLike is a value of a kind that is bytes.
func bytesLike(k kind) []any {
	switch k {
	case hex8, hex32, hex48:
		return digests(k.size(), 1)
	case base48:
		return []any{strings.Repeat("AQEB", 16)}
	}
	return nil
}

func TestCoRIMMessage(t *testing.T) {
	b, _ := tdxSet().CoRIM(CoRIMParams{})
	m, err := CoRIMMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Version, Type string
		Payload       []byte
	}
	if err := json.Unmarshal(m, &got); err != nil || got.Version != "0.1.0" || got.Type != "corim" || !bytes.Equal(got.Payload, b) {
		t.Errorf("%s, %v", m, err)
	}
	if _, err := CoRIMMessage(b[1:]); err == nil {
		t.Error("a message of something else")
	}
}

// TestCoRIMOfTrustee reads Trustee's sample. The names and the third value are
// those of Trustee's own test.
func TestCoRIMOfTrustee(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/trustee/rvps/unsigned-example-corim.cbor"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCoRIM(b)
	if err != nil {
		t.Fatal(err)
	}
	got := c.RVPS()
	name := "ACME/RoadRunner/31fb5abf-023e-4992-aa4e-95f9c1503bfa/digests"
	if len(got) != 3 || got[0].Name != name || got[2].Name != name || fmt.Sprint(got[2].Value) != "[a3a5e715f0cc574a73c3f9bebb6bc24f32ffd5b67b387244c2c909da779a1478]" {
		t.Errorf("%v", got)
	}
	if c.ID != "test corim id" || c.Tags[0].ID != "43bbe37f-2e61-4b33-aed3-53cff1428b16" {
		t.Errorf("%+v", c)
	}
	for _, prefix := range []string{"\xd9\x01\xf4", "\xd9\x01\xf4\xd9\x01\xf6"} { // tags of older drafts
		if c, err := ParseCoRIM(append([]byte(prefix), b...)); err != nil || len(c.RVPS()) != 3 {
			t.Errorf("%x: %v", prefix, err)
		}
	}
}

// sign1 is a COSE_Sign1 without headers and signature.
func sign1(payload []byte) []byte {
	return append(cbor.AppendBytes([]byte("\xd2\x84\x40\xa0"), payload), 0x40)
}

func corimOf(body ...[]byte) []byte {
	return append(cbor.AppendTag(nil, tagCoRIM), bytes.Join(body, nil)...)
}

func TestParseCoRIMRefuses(t *testing.T) {
	good, err := tdxSet().CoRIM(CoRIMParams{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := ParseCoRIM(good[:n]); err == nil {
			t.Errorf("the first %d bytes pass", n)
		}
	}
	un := func(s string) []byte { b, _ := hex.DecodeString(s); return b }
	comid := func(body string) []byte {
		b := un(body)
		return corimOf(un("a20061780181d901fa"), cbor.AppendBytes(nil, b)) // {0: "x", 1: [506(body)]}
	}
	reference := func(measurement string) []byte { return comid("a104a1008182a0" + "81" + measurement) }
	if _, err := ParseCoRIM(reference("a101a10281820141" + "00")); err == nil || !strings.Contains(err.Error(), "want 32") {
		t.Errorf("a SHA-256 of one byte: %v", err)
	}
	if c, err := ParseCoRIM(reference("a101a1028182" + "0241" + "00")); err != nil || len(c.RVPS()) != 1 {
		t.Errorf("a short hash: %+v, %v", c, err)
	}
	long := hex.EncodeToString(cbor.AppendText(nil, strings.Repeat("n", maxName+1)))
	for name, row := range map[string]struct {
		b    []byte
		want string
	}{
		"data behind":      {append(bytes.Clone(good), 0), "behind"},
		"no tag":           {good[3:], "want a tag"},
		"another tag":      {append(cbor.AppendTag(nil, 61), good[3:]...), "tag 61"},
		"no identifier":    {corimOf(un("a10180")), "no identifier"},
		"key twice":        {corimOf(un("a200617800617801")), "key 0 is there twice"},
		"indefinite":       {corimOf(un("bf006178ff")), "indefinite"},
		"bad UTF-8":        {corimOf(un("a10061ff")), "UTF-8"},
		"UUID of 15":       {corimOf(un("a1004f" + strings.Repeat("00", 15))), "15 bytes"},
		"signed in signed": {sign1(sign1(good)), "tag 18"},
		"sign1 of three":   {cbor.AppendBytes(un("d28340a0"), good), "3 items"},
		"CoMID cut":        {comid("a1"), "CoMID 0"},
		"CoMID and more":   {comid("a000"), "behind"},
		"one in a triple":  {comid("a104a1008181a0"), "1 items"},
		"one in a digest":  {reference("a101a102818101"), "1 items"},
		"three in digest":  {reference("a101a10281830241" + "0000"), "3 items"},
		"long vendor":      {comid("a104a1008182a100a101" + long + "80"), "256"},
		"long name":        {reference("a101a10b" + long), "256"},
		"time without tag": {corimOf(un("a200617804a10100")), "want a tag"},
		"time by text":     {corimOf(un("a200617804a101c06161")), "tag 0"},
		"too large":        {make([]byte, maxCoRIM+1), "at most"},
		"map too large":    {corimOf(un("b90101")), "257 pairs"},
		"many tags":        {corimOf(un("a2006178019a00000401"), bytes.Repeat(un("d901fa41a0"), 1025)), "1024 tags"},
		"many references":  {comid("a104a1008182a09a00000801" + strings.Repeat("a0", 2049)), "2048"},
		"many digests":     {reference("a101a1029a00002001" + strings.Repeat("820240", 8193)), "8192"},
	} {
		if _, err := ParseCoRIM(row.b); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

// TestParseCoRIMMemory: short items that become long in memory are refused before
// they are many.
func TestParseCoRIMMemory(t *testing.T) {
	head := "a104a1008182a0"
	fill := func(prefix, item string) []byte {
		n := (maxCoRIM - 64) / (len(item) / 2)
		b, _ := hex.DecodeString(prefix + "9a" + fmt.Sprintf("%08x", n))
		one, _ := hex.DecodeString(item)
		return append(b, bytes.Repeat(one, n)...)
	}
	for name, body := range map[string][]byte{
		"measurements": fill(head, "a0"),
		"digests":      fill(head+"81a101a102", "820240"),
		"triples":      fill("a104a100", "82a080"),
	} {
		b := corimOf([]byte("\xa2\x00\x61x\x01\x81\xd9\x01\xfa"), cbor.AppendBytes(nil, body))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		_, err := ParseCoRIM(b)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > uint64(4*len(b)+1<<20) || took > 5*time.Second {
			t.Errorf("%s: %d bytes of memory for %d bytes, %v, %v", name, got, len(b), took, err)
		}
	}
}

// TestParseCoRIMNames: what Trustee makes of keys of every kind.
func TestParseCoRIMNames(t *testing.T) {
	for mkey, want := range map[string]string{
		"6161":                                   "V/a/N/S/digests",
		"07":                                     "V/claim7/N/S/digests",
		"d82550000102030405060708090a0b0c0d0e0f": "V/00010203-0405-0607-0809-0a0b0c0d0e0f/N/S/digests",
		"d86f4100":                               "V/N/S/digests", // an OID, which it skips
	} {
		body, _ := hex.DecodeString("a104a1008182a100a1016156" + // {4: {0: [[{0: {1: "V"}},
			"81" + "a200" + mkey + "01a3" + "0281820241000861530b614e") // [{0: mkey, 1: {2: [[2, h'00']], 8: "S", 11: "N"}}]]]}}
		c, err := ParseCoRIM(corimOf([]byte("\xa2\x00\x61x\x01\x81\xd9\x01\xfa"), cbor.AppendBytes(nil, body)))
		if err != nil {
			t.Fatalf("%s: %v", mkey, err)
		}
		if got := c.RVPS()[0].Name; got != want {
			t.Errorf("%s: got %s, want %s", mkey, got, want)
		}
	}
}

// TestParseCoRIMSkips: tags of other kinds, other triples, other parts of an
// environment and what no draft has yet are left aside.
func TestParseCoRIMSkips(t *testing.T) {
	body, _ := hex.DecodeString("a3" + "6161" + "f6" + // {"a": null,
		"01" + "a2" + "004161" + "0102" + // 1: {0: "a", 1: 2} with a UUID below in place of "a",
		"04" + "a2" + "08" + "8101" + // 4: {8: [1],
		"00" + "81" + "82" + "a2" + "01" + "d9023041ff" + "00" + "a2" + "0341" + "00" + "016156" + // 0: [[{1: 560(h'ff'), 0: {3: h'00', 1: "V"}},
		"81" + "a3" + "02" + "80" + "00" + "6161" + "01" + "a3" + "01" + "05" + "04" + "d9023341" + "00" + "02" + "8182024100") // [{2: [], 0: "a", 1: {1: 5, 4: 563(h'00'), 2: [[2, h'00']]}}]]]}}
	body = bytes.Replace(body, []byte("\x00\x41a"), append([]byte{0, 0x50}, make([]byte, 16)...), 1)
	tags := append([]byte("\x82\xd9\x01\xf9\x41\x00\xd9\x01\xfa"), cbor.AppendBytes(nil, body)...) // [505(h'00'), 506(body)]
	c, err := ParseCoRIM(corimOf([]byte("\xa4\x00\x61x\x07\xf5\x04\xa2\x00\xc1\x09\x05\x00\x01"), tags))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(c.RVPS()); c.Others != 1 || c.NotBefore != 9 || c.Tags[0].Version != 2 || got != "[{V/a/digests [00]}]" {
		t.Errorf("%+v, %s", c, got)
	}
}

func FuzzParseCoRIM(f *testing.F) {
	b, err := tdxSet().CoRIM(CoRIMParams{Entity: "me"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(sign1(b))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCoRIM(b)
		if err != nil {
			return
		}
		for _, v := range c.RVPS() {
			if v.Name == "" {
				t.Error("a value without a name")
			}
		}
	})
}
