package builder

import "context"

// stubMember is where Debian and its relatives keep the stub.
const stubMember = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// runStub makes stub.
func runStub(ctx context.Context, w *work) error {
	return w.part(ctx, "stub", "stub.file", w.Profile.Stub.File != "", roleStub, stubMember)
}

// part makes one output out of a local file or out of a package's member.
func (w *work) part(ctx context.Context, name, key string, local bool, role, path string) error {
	if local {
		r, err := w.file(key)
		w.out[name] = r
		return err
	}
	pkgs, err := w.unpackRole(ctx, role)
	if err != nil {
		return err
	}
	return w.extractFrom(ctx, name, pkgs, path)
}
