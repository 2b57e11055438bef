package export

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure/refvalue"
)

// Object names a Kubernetes object that holds reference values.
type Object struct {
	Kind      string // one of ObjectKinds
	Name      string
	Namespace string
}

// ObjectKinds are what a pod can mount as a file.
var ObjectKinds = []string{"ConfigMap", "Secret"}

// Defaults of trustee-operator: config/samples/all-in-one. A KbsConfig names the
// object as kbsRvpsRefValuesConfigMapName.
const (
	ObjectName  = "rvps-reference-values"
	ObjectSpace = "trustee-operator-system"
)

// storeKey is the name of the file that RVPS keeps its values in, which is that of
// its name space in the local_json storage, and the key that trustee-operator
// mounts: rvps/src/lib.rs, internal/controller/kbsconfig_controller.go at dec08ea.
const storeKey = "reference_value"

// dnsLabel and dnsName are what Kubernetes takes for names: RFC 1123, section 2.1.
var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dnsName  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)
)

const (
	maxName   = 253
	maxObject = 1 << 20 // bytes of data in an object
)

// Marshal writes the object with the values of s, YAML. RVPS finds them in its
// storage when it starts: no call of its API is needed, and it stores the time at
// which each expires, so s must have one.
func (o Object) Marshal(s *refvalue.Set) ([]byte, error) {
	switch {
	case !slices.Contains(ObjectKinds, o.Kind):
		return nil, fmt.Errorf("export: kind %q: want %s", o.Kind, strings.Join(ObjectKinds, " or "))
	case !dnsName.MatchString(o.Name) || len(o.Name) > maxName:
		return nil, fmt.Errorf("export: name %q: want lower-case letters, digits, dots and dashes", o.Name)
	case !dnsLabel.MatchString(o.Namespace):
		return nil, fmt.Errorf("export: name space %q: want at most 63 lower-case letters, digits and -", o.Namespace)
	}
	store, err := rvpsStore(s)
	if err != nil {
		return nil, err
	}
	if len(store) > maxObject {
		return nil, fmt.Errorf("export: %s: %d bytes: want at most %d", o.Kind, len(store), maxObject)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "apiVersion: v1\nkind: %s\nmetadata:\n  name: %s\n  namespace: %s\n", o.Kind, o.Name, o.Namespace)
	if o.Kind == "Secret" {
		fmt.Fprintf(&b, "type: Opaque\ndata:\n  %s: %s\n", storeKey, base64.StdEncoding.EncodeToString(store))
		return b.Bytes(), nil
	}
	fmt.Fprintf(&b, "data:\n  %s: |\n", storeKey)
	for line := range strings.Lines(string(store)) {
		b.WriteString("    " + line)
	}
	return b.Bytes(), nil
}

// A storedValue is a reference value as RVPS keeps it: rvps/src/reference_value.rs.
type storedValue struct {
	Version    string `json:"version"`
	Name       string `json:"name"`
	Expiration string `json:"expiration"`
	Value      any    `json:"value"`
}

// storedTime is how RVPS writes a time, in UTC.
const storedTime = "2006-01-02T15:04:05Z"

// rvpsStore is the file of RVPS's local_json storage: names, and base64 with the
// URL alphabet of what is stored. deps/key-value-storage/src/local_json/mod.rs.
func rvpsStore(s *refvalue.Set) ([]byte, error) {
	if s.Expires.IsZero() {
		return nil, errors.New("export: RVPS stores with each value when it expires: say it")
	}
	items := map[string]string{}
	for _, v := range s.Values {
		b, err := json.Marshal(storedValue{"0.1.0", v.Name, s.Expires.UTC().Format(storedTime), v.Compared()})
		if err != nil {
			return nil, err
		}
		items[v.Name] = base64.URLEncoding.EncodeToString(b)
	}
	b, err := json.MarshalIndent(items, "", "  ")
	return append(b, '\n'), err
}
