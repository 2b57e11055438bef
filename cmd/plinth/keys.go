package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/measure/ovmf"
)

func newKeys() *cobra.Command {
	return group(&cobra.Command{Use: "keys", Short: "Work with Secure Boot keys"}, newKeysEnroll())
}

// enrollFlags name the certificates that become variables.
type enrollFlags struct {
	pk, out, owner string
	kek, db        []string
	epoch          int64
	setupMode      bool
}

func newKeysEnroll() *cobra.Command {
	f := &enrollFlags{}
	cmd := &cobra.Command{
		Use:   "enroll FILE",
		Short: "Write PK, KEK and db into a firmware's variables and turn Secure Boot on, or take them out",
		Long: `Rewrites the variables of OVMF offline, in FILE, which is a variables file or a
firmware with variables and code in one, as TDX uses it. The code does not change.
The certificates become PK, KEK and db, other keys go, and Secure Boot is on at the
next boot. A --kek or --db that is not given is the platform key's certificate.
With --setup-mode all keys go, dbx too, and the firmware starts what it is given.
The same arguments give the same bytes.`,
		Example: "  plinth keys enroll OVMF_VARS_4M.fd --pk pk.pem --db db.pem -o vars.fd\n" +
			"  plinth keys enroll OVMF.inteltdx.ms.fd --setup-mode -o firmware.fd",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error { return f.enroll(cmd, a[0]) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.pk, "pk", "", "certificate of the platform key, PEM or DER")
	fl.StringArrayVar(&f.kek, "kek", nil, "certificate of a key exchange key; repeatable")
	fl.StringArrayVar(&f.db, "db", nil, "certificate that may sign boot programs; repeatable")
	fl.StringVarP(&f.out, "out", "o", "", "file to write")
	fl.StringVar(&f.owner, "owner", builder.KeyOwner, "GUID of the signatures' owner")
	fl.Int64Var(&f.epoch, "epoch", defaultKeyTime.Unix(), "time stamp of the variables, seconds since 1970")
	fl.BoolVar(&f.setupMode, "setup-mode", false, "take all keys out")
	return cmd
}

// enroll writes the firmware or variables file at path, with keys or without, to
// the file f.out.
func (f *enrollFlags) enroll(cmd *cobra.Command, path string) error {
	if f.out == "" || (f.pk == "") != f.setupMode {
		return usagef("--out is needed, and either --pk or --setup-mode")
	}
	for _, name := range []string{"kek", "db", "owner", "epoch"} {
		if f.setupMode && cmd.Flags().Changed(name) {
			return usagef("--%s has no meaning with --setup-mode", name)
		}
	}
	flash, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	rewrite := ovmf.SetupMode
	if !f.setupMode {
		keys, err := f.keys()
		if err != nil {
			return err
		}
		rewrite = func(flash []byte) ([]byte, error) { return ovmf.Enroll(flash, keys) }
	}
	b, err := rewrite(flash)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return builder.WriteFile(f.out, b)
}

func (f *enrollFlags) keys() (k ovmf.Keys, err error) {
	if k.Owner, err = ovmf.ParseGUID(f.owner); err != nil {
		return k, usageError{err}
	}
	k.Epoch = f.epoch
	pk, err := readCerts([]string{f.pk})
	if err != nil {
		return k, err
	}
	k.PK, k.KEK, k.DB = pk[0], pk, pk
	if len(f.kek) > 0 {
		if k.KEK, err = readCerts(f.kek); err != nil {
			return k, err
		}
	}
	if len(f.db) > 0 {
		k.DB, err = readCerts(f.db)
	}
	return k, err
}

// defaultKeyTime is the time stamp of enrolled variables. Firmware accepts a
// later update only with a later stamp, so it is old.
var defaultKeyTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// readCerts reads certificates, PEM or DER, and returns DER.
func readCerts(paths []string) ([][]byte, error) {
	var out [][]byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		der, err := builder.CertificateDER(b)
		if err != nil {
			return nil, usagef("%s: %w", p, err)
		}
		out = append(out, der)
	}
	return out, nil
}
