package builder

import (
	"slices"
	"time"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/profiles"
)

// Roles that ask for packages.
const (
	roleKernel   = "kernel"
	roleStub     = "stub"
	roleFirmware = "firmware"
	roleGeneric  = "firmware.generic"
	roleRoot     = "root"
)

// Request says what a profile asks of its sources. files are its local inputs,
// as Import returned them; now judges the freshness of the archives' signatures.
func Request(p *profiles.Profile, files []source.File, now time.Time) source.Request {
	r := source.Request{Profile: p.Name, Arch: p.Arch, Files: files, Now: now}
	for _, s := range p.SourcesFor("") {
		r.Sources = append(r.Sources, archive(s, s.NotAutomatic))
	}
	want := func(role, pkg, suite string, closure bool) {
		if pkg == "" {
			return
		}
		r.Wants = append(r.Wants, source.Want{Role: role, Package: pkg, Suite: suite, Closure: closure})
		if suite != "" && !hasSuite(r.Sources, suite) {
			for _, s := range p.SourcesFor(suite) {
				r.Sources = append(r.Sources, archive(s, true))
			}
		}
	}
	want(roleKernel, p.Kernel.Package, p.Kernel.Suite, false)
	want(roleStub, p.Stub.Package, p.Stub.Suite, false)
	want(roleFirmware, p.Firmware.Package, p.Firmware.Suite, false)
	want(roleGeneric, p.Firmware.Generic.Package, p.Firmware.Generic.Suite, false)
	for _, pkg := range p.Root.Packages {
		want(roleRoot, pkg, "", true)
	}
	for _, pkg := range p.Root.Bare {
		if !slices.Contains(p.Root.Packages, pkg) {
			want(roleRoot, pkg, "", false)
		}
	}
	return r
}

// archive maps a profile's source to the fetcher's. onRequest keeps a suite that
// only one package names, and one that is not automatic, from offering newer
// versions of the others.
func archive(s profiles.Source, onRequest bool) source.Source {
	return source.Source{
		Name:             s.Name,
		Suite:            s.Suite,
		Components:       s.Components,
		Dir:              s.Debs,
		Mirrors:          s.Mirror,
		OnRequest:        onRequest,
		IgnoreValidUntil: !s.CheckValidUntil,
	}
}

func hasSuite(sources []source.Source, suite string) bool {
	for _, s := range sources {
		if s.Suite == suite {
			return true
		}
	}
	return false
}
