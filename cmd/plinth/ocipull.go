package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/store"
	"github.com/plinth-os/plinth/imagepull/unpack"
)

// keyFlags open layers.
type keyFlags struct{ keys, pems []string }

func (f *keyFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.keys, "key", nil, "key of layers for CoCo's key broker, 32 bytes: kbs:///repository/type/tag=FILE")
	fl.StringArrayVar(&f.pems, "decryption-key", nil, "private key in PEM of layers that are encrypted for it (JWE)")
}

func newImagePull(c *common) *cobra.Command {
	f, j, k := &pullFlags{}, &judgeFlags{}, &keyFlags{}
	var dir, out string
	cmd := &cobra.Command{
		Use:   "pull REF --policy FILE",
		Short: "Get an image that a policy admits, as a guest does",
		Long: `Judges REF as "plinth image explain" does, fetches its layers, decrypts and unpacks
them, and publishes the image in the store when every digest, HMAC and diff ID is the
right one: all of it or nothing. Layers that the store has are not fetched again; a
pull that broke goes on where it was. Prints the EROFS image of the tree, and the
files that are its devices.

With --unpack DIR, which must be empty or not be there, it also makes DIR/rootfs and
DIR/config.json, the image's configuration; that needs the right to change owners.`,
		Example: `  plinth image pull docker://registry.example.com/app:1 --policy policy.json
  plinth image pull oci-archive:/tmp/app.tar --policy policy.json --key kbs:///team/key/app=app.key --unpack app`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			p, n, err := c.pullerOf(f, j, k, a[0])
			if err != nil {
				return err
			}
			return c.imagePull(cmd.Context(), p, n, dir, out)
		},
	}
	f.add(cmd)
	j.add(cmd)
	k.add(cmd)
	cmd.Flags().StringVar(&dir, "store", "", storeFlag)
	cmd.Flags().StringVar(&out, "unpack", "", "directory for the tree of files")
	return cmd
}

func newImageVerify(c *common) *cobra.Command {
	f, j, k := &pullFlags{}, &judgeFlags{}, &keyFlags{}
	cmd := &cobra.Command{
		Use:   "verify REF --policy FILE",
		Short: "Do all that pull does, and keep nothing",
		Long: `Fetches all of an image and proves it, as "plinth image pull" does: policy, digests,
HMACs, diff IDs, limits, every entry of every layer. Nothing is written. Ends with
exit code 7 where a guest would refuse the image.`,
		Example: "  plinth image verify oci:/srv/app --policy policy.json --decryption-key guest.pem",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			p, n, err := c.pullerOf(f, j, k, a[0])
			if err != nil {
				return err
			}
			pulled, err := p.Pull(cmd.Context(), n, imagepull.Nowhere{})
			if err != nil {
				return err
			}
			return c.printPulled(newPulledImage(pulled, nil))
		},
	}
	f.add(cmd)
	j.add(cmd)
	k.add(cmd)
	return cmd
}

// pullerOf reads all that the flags name.
func (c *common) pullerOf(f *pullFlags, j *judgeFlags, k *keyFlags, ref string) (*imagepull.Puller, policy.Name, error) {
	p, n, err := f.puller(ref)
	if err != nil {
		return nil, n, err
	}
	if err := j.apply(p, c.env.now()); err != nil {
		return nil, n, err
	}
	if p.Unwrappers, err = k.unwrappers(); err != nil {
		return nil, n, err
	}
	r, err := c.newReporter()
	if err != nil {
		return nil, n, err
	}
	p.Log, p.Registry.Log = r.notice, r.notice
	return p, n, nil
}

func (f *keyFlags) unwrappers() ([]crypt.Unwrapper, error) {
	keys := map[string][]byte{}
	for _, s := range f.keys {
		i := strings.LastIndexByte(s, '=')
		if i <= 0 {
			return nil, usagef("--key %q: want kbs:///repository/type/tag=FILE", s)
		}
		b, err := os.ReadFile(s[i+1:])
		if err != nil {
			return nil, err
		}
		if len(b) != 32 {
			return nil, usagef("--key %s: %d bytes: want 32", s, len(b))
		}
		keys[s[:i]] = b
	}
	var private []crypto.PrivateKey
	for _, path := range f.pems {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		k, err := parsePrivateKey(b)
		if err != nil {
			return nil, usagef("%s: %w", path, err)
		}
		private = append(private, k)
	}
	var out []crypt.Unwrapper
	if len(private) > 0 {
		out = append(out, crypt.JWE(private...))
	}
	return append(out, crypt.CoCo(func(_ context.Context, id string) ([]byte, error) {
		if b, ok := keys[id]; ok {
			return b, nil
		}
		return nil, fmt.Errorf("no key %.200q: give it with --key", id)
	})), nil
}

// parsePrivateKey reads the first private key of a PEM file.
func parsePrivateKey(b []byte) (crypto.PrivateKey, error) {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "PRIVATE KEY":
			return x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			return x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		}
	}
	return nil, errors.New("no private key in PEM")
}

func (c *common) imagePull(ctx context.Context, p *imagepull.Puller, n policy.Name, dir, out string) error {
	st, err := c.imageStore(dir)
	if err != nil {
		return err
	}
	p.Parts = st.Parts()
	var to *emptyDir
	if out != "" {
		if to, err = newEmptyDir(out); err != nil {
			return err
		}
		defer to.discard()
	}
	pulled, err := p.Pull(ctx, n, st)
	if err != nil {
		return err
	}
	if to != nil {
		if err := to.fill(ctx, st, pulled, p.Limits); err != nil {
			return err
		}
	}
	return c.printPulled(newPulledImage(pulled, st))
}

// An emptyDir appears under its name when it is complete.
type emptyDir struct {
	path, partial string
	lock          *os.File
}

// newEmptyDir takes the directory beside the one that is to be, over from a process
// that died, too.
func newEmptyDir(path string) (*emptyDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	list, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(list) > 0 {
		return nil, usagef("--unpack %s: not empty", path)
	}
	d := &emptyDir{path: path, partial: path + ".partial"}
	if err := os.Mkdir(d.partial, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if d.lock, err = os.OpenFile(d.partial, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	if err := d.own(); err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	return d, nil
}

// own locks the directory, and refuses one that somebody else may have filled.
func (d *emptyDir) own() error {
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return &fs.PathError{Op: "flock", Path: d.partial, Err: err}
	}
	var s unix.Stat_t
	if err := unix.Fstat(int(d.lock.Fd()), &s); err != nil {
		return &fs.PathError{Op: "stat", Path: d.partial, Err: err}
	}
	if int(s.Uid) != os.Geteuid() || s.Mode&0o077 != 0 {
		return usagef("--unpack: %s is there, user %d's with mode %#o: want this user's alone; remove it", d.partial, s.Uid, s.Mode&0o7777)
	}
	mine, err := d.lock.Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(d.partial)
	if err == nil && !os.SameFile(mine, there) { // whoever had the lock has renamed it
		err = &fs.PathError{Op: "lock", Path: d.partial, Err: fs.ErrNotExist}
	}
	return err
}

func (d *emptyDir) fill(ctx context.Context, st *store.Dir, p *imagepull.Pulled, l unpack.Limits) error {
	for _, name := range []string{"rootfs", "config.json"} {
		if err := os.RemoveAll(filepath.Join(d.partial, name)); err != nil {
			return err
		}
	}
	root := filepath.Join(d.partial, "rootfs")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := st.Extract(ctx, p, root, l); err != nil {
		return err
	}
	config, err := os.OpenFile(filepath.Join(d.partial, "config.json"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = config.Write(p.Raw)
	if err = errors.Join(err, config.Close()); err != nil {
		return err
	}
	if err := os.Rename(d.partial, d.path); err != nil { // an empty one is replaced
		return err
	}
	d.partial = "" // another's, from now on
	return os.Chmod(d.path, 0o755)
}

// discard removes what did not get its name.
func (d *emptyDir) discard() {
	os.RemoveAll(d.partial) // nothing of ""; what is left, the next takes over
	d.lock.Close()
}

// A pulledImage is what is said of one.
type pulledImage struct {
	*imagepull.Image
	ChainID string   `json:"chain_id"`
	DiffIDs []string `json:"diff_ids"`
	Fetched int64    `json:"fetched"`           // bytes
	Root    string   `json:"root,omitempty"`    // EROFS image
	Devices []string `json:"devices,omitempty"` // its devices, in order
}

func newPulledImage(p *imagepull.Pulled, st *store.Dir) *pulledImage {
	im := &pulledImage{Image: &p.Image, ChainID: p.ChainID.String(), Fetched: p.Fetched}
	for _, id := range p.DiffIDs {
		im.DiffIDs = append(im.DiffIDs, id.String())
	}
	if st == nil {
		return im
	}
	im.Root = st.Root(p.ChainID)
	for _, i := range p.Devices {
		im.Devices = append(im.Devices, st.Content(p.DiffIDs[i]))
	}
	return im
}

func (c *common) printPulled(im *pulledImage) error {
	if c.json {
		return printJSON(c.env.stdout, im)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n  manifest  %s\n  kind      %s\n  chain     %s\n  fetched   %d bytes\n", im.Name, im.Digest, im.Kind, im.ChainID, im.Fetched)
	if im.Root != "" {
		fmt.Fprintf(&b, "  root      %s\n", im.Root)
		for _, d := range im.Devices {
			fmt.Fprintf(&b, "  device    %s\n", d)
		}
		fmt.Fprintf(&b, "  mount     mount -t erofs -o %s %s DIR\n", im.mountOptions(), quoteShell(im.Root))
	}
	_, err := io.Copy(c.env.stdout, &b)
	return err
}

// mountOptions are for kernels before 6.12, too, which want block devices.
func (im *pulledImage) mountOptions() string {
	out := "ro,loop"
	for _, d := range im.Devices {
		out += fmt.Sprintf(`,device=$(losetup -rf --show %s)`, quoteShell(d))
	}
	return out
}

// quoteShell quotes a word for a shell where that is needed.
func quoteShell(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
