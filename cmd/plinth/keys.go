package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/measure/ovmf"
)

func newKeys(c *common) *cobra.Command {
	return group(&cobra.Command{Use: "keys", Short: "Work with Secure Boot keys"}, newKeysEnroll(c))
}

func newKeysEnroll(c *common) *cobra.Command {
	var (
		pk, out string
		kek, db []string
		owner   string
		epoch   int64
	)
	cmd := &cobra.Command{
		Use:   "enroll VARS.fd",
		Short: "Write PK, KEK and db into a firmware variables file and turn Secure Boot on",
		Long: `Rewrites an OVMF variables file offline: the certificates become PK, KEK and db,
and Secure Boot is on at the next boot. The same arguments give the same bytes.
A --kek or --db that is not given is the platform key's certificate.`,
		Example: "  plinth keys enroll OVMF_VARS_4M.fd --pk pk.pem --db db.pem -o vars.fd",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			if pk == "" || out == "" {
				return usagef("--pk and --out are needed")
			}
			vars, err := os.ReadFile(a[0])
			if err != nil {
				return err
			}
			k := ovmf.Keys{Epoch: epoch}
			if k.Owner, err = ovmf.ParseGUID(owner); err != nil {
				return usageError{err}
			}
			certs, err := readCerts([]string{pk})
			if err != nil {
				return err
			}
			k.PK, k.KEK, k.DB = certs[0], certs, certs
			if len(kek) > 0 {
				if k.KEK, err = readCerts(kek); err != nil {
					return err
				}
			}
			if len(db) > 0 {
				if k.DB, err = readCerts(db); err != nil {
					return err
				}
			}
			b, err := ovmf.Enroll(vars, k)
			if err != nil {
				return fmt.Errorf("%s: %w", a[0], err)
			}
			return builder.WriteFile(out, b)
		},
	}
	f := cmd.Flags()
	f.StringVar(&pk, "pk", "", "certificate of the platform key, PEM or DER")
	f.StringArrayVar(&kek, "kek", nil, "certificate of a key exchange key; repeatable")
	f.StringArrayVar(&db, "db", nil, "certificate that may sign boot programs; repeatable")
	f.StringVarP(&out, "out", "o", "", "file to write")
	f.StringVar(&owner, "owner", builder.KeyOwner, "GUID of the signatures' owner")
	f.Int64Var(&epoch, "epoch", defaultKeyTime.Unix(), "time stamp of the variables, seconds since 1970")
	return cmd
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
