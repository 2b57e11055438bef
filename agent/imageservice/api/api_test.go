package api

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Every message, field, value and method is CoCo's, and none is missing. Fields have
// no names on the wire.
func TestWire(t *testing.T) {
	b, err := os.ReadFile("testdata/coco.txt")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "#") {
			want = append(want, strings.TrimSpace(line))
		}
	}
	for _, f := range []protoreflect.FileDescriptor{File_attestation_proto, File_images_proto, File_keyprovider_proto, File_secrets_proto} {
		got = append(got, messages(f.Messages())...)
		for i := range f.Enums().Len() {
			e := f.Enums().Get(i)
			for j := range e.Values().Len() {
				v := e.Values().Get(j)
				got = append(got, fmt.Sprintf("value %s %d %s", e.FullName(), v.Number(), v.Name()))
			}
		}
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				got = append(got, fmt.Sprintf("method %s %s %s", m.FullName(), m.Input().FullName(), m.Output().FullName()))
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	for _, l := range want {
		if !slices.Contains(got, l) {
			t.Errorf("missing: %s", l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			t.Errorf("not CoCo's: %s", l)
		}
	}
	if len(want) < 60 {
		t.Errorf("only %d lines", len(want))
	}
}

func messages(list protoreflect.MessageDescriptors) (out []string) {
	for i := range list.Len() {
		m := list.Get(i)
		if m.ParentFile() == m.Parent() {
			out = append(out, "message "+string(m.FullName()))
		}
		for j := range m.Fields().Len() {
			out = append(out, field(m, m.Fields().Get(j)))
		}
		out = append(out, messages(m.Messages())...)
	}
	return out
}

func field(m protoreflect.MessageDescriptor, f protoreflect.FieldDescriptor) string {
	label := "single"
	switch {
	case f.Cardinality() == protoreflect.Repeated:
		label = "repeated"
	case f.HasOptionalKeyword():
		label = "optional"
	}
	kind := f.Kind().String()
	switch {
	case f.Enum() != nil:
		kind += " " + string(f.Enum().FullName())
	case f.Message() != nil:
		kind += " " + string(f.Message().FullName())
	}
	return fmt.Sprintf("field %s %d %s %s", m.FullName(), f.Number(), label, kind)
}
