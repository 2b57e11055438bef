package oracle

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"

	provenance "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/signerverifier"
	"google.golang.org/protobuf/encoding/protojson"

	keys "github.com/plinth-os/plinth/internal/sign"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/refvalue"
)

func artefacts() []refvalue.Resource {
	return []refvalue.Resource{{Name: "vmlinuz", SHA256: strings.Repeat("ab", 32)}, {Name: "initrd", SHA256: strings.Repeat("cd", 32)}}
}

// TestStatement reads our statements with in-toto's attestation library, which
// knows every key and checks what must be there.
func TestStatement(t *testing.T) {
	shape := measure.Shape{Type: "q35", VCPUs: 2, MemoryMiB: 1024}
	b, err := refvalue.Statement(artefacts(), &measure.Measurements{Schema: 1, Profile: "snp", Machine: shape, Machines: []measure.Shape{shape}})
	if err != nil {
		t.Fatal(err)
	}
	s := readStatement(t, b)
	if s.GetPredicateType() != refvalue.PredicateType || len(s.GetSubject()) != 2 || s.GetPredicate().AsMap()["profile"] != "snp" {
		t.Errorf("%v", s)
	}
}

func readStatement(t *testing.T, b []byte) *intoto.Statement {
	t.Helper()
	var s intoto.Statement
	if err := protojson.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return &s
}

func TestProvenance(t *testing.T) {
	b, err := refvalue.Provenance(artefacts(), refvalue.Build{Profile: "snp", Parameters: []byte(`{"platform":"snp"}`), Version: "1",
		Dependencies: []refvalue.Resource{{Name: "bash", URI: "pkg:deb/debian/bash@5.2", SHA256: strings.Repeat("01", 32)}}})
	if err != nil {
		t.Fatal(err)
	}
	s := readStatement(t, b)
	predicate, err := protojson.Marshal(s.GetPredicate())
	if err != nil {
		t.Fatal(err)
	}
	var p provenance.Provenance
	if err := protojson.Unmarshal(predicate, &p); err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	if d := p.GetBuildDefinition().GetResolvedDependencies(); s.GetPredicateType() != "https://slsa.dev/provenance/v1" || len(d) != 1 || d[0].GetUri() != "pkg:deb/debian/bash@5.2" {
		t.Errorf("%v", &p)
	}
}

// TestDSSE verifies our envelopes with securesystemslib, for every kind of key
// that it knows.
func TestDSSE(t *testing.T) {
	for name, s := range signers(t) {
		k, err := keys.New(s)
		if err != nil {
			t.Fatal(err)
		}
		b, err := keys.DSSE(keys.InTotoPayload, []byte("{}"), k)
		if err != nil {
			t.Fatal(err)
		}
		var e dsse.Envelope
		if err := json.Unmarshal(b, &e); err != nil {
			t.Fatal(err)
		}
		v := verifierOf(t, s.Public())
		if accepted, err := v.Verify(context.Background(), &e); err != nil || len(accepted) != 1 {
			t.Errorf("%s: %v, %v", name, accepted, err)
		}
		e.PayloadType += "x"
		if _, err := v.Verify(context.Background(), &e); err == nil {
			t.Errorf("%s: another payload type passes", name)
		}
	}
}

func verifierOf(t *testing.T, pub crypto.PublicKey) *dsse.EnvelopeVerifier {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	key, err := signerverifier.LoadKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	var one dsse.Verifier
	switch key.KeyType {
	case signerverifier.ECDSAKeyType:
		one, err = signerverifier.NewECDSASignerVerifierFromSSLibKey(key)
	case signerverifier.RSAKeyType:
		one, err = signerverifier.NewRSAPSSSignerVerifierFromSSLibKey(key)
	default:
		one, err = signerverifier.NewED25519SignerVerifierFromSSLibKey(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := dsse.NewEnvelopeVerifier(one)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
