package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/agent/storage"
)

// Keys of volumes, and a file's content. Nothing of them is ever on a disk.
const (
	volumeKey = "VOLUME-KEY-CANARY-0123456789abcdef"
	otherKey  = "OTHER-VOLUME-KEY-0123456789abcdefg"
	canary    = "PLAINTEXT-CANARY-0d9b1f"
)

var (
	withIntegrity = storage.VolumeOptions{Device: "/dev/vda", Name: "a", Key: []byte(volumeKey), Integrity: true, Filesystem: "ext4"}
	plain         = storage.VolumeOptions{Device: "/dev/vdb", Name: "b", Key: []byte(volumeKey), Filesystem: "ext4"}
	prepared      = storage.VolumeOptions{Device: "/dev/vdc", Name: "c", Key: []byte(volumeKey), Filesystem: "ext4"}
	ephemeral     = storage.VolumeOptions{Device: "/dev/vdd", Name: "d", Random: true, Integrity: true, Filesystem: "ext4"}
)

// formatted is o with Format.
func formatted(o storage.VolumeOptions) storage.VolumeOptions {
	o.Format = true
	return o
}

// attempt opens a volume that is to be refused.
func attempt(what string, o storage.VolumeOptions) {
	v, err := storage.OpenVolume(context.Background(), o)
	if err == nil {
		err = errors.Join(errors.New("not refused"), v.Close())
	}
	devices, _ := filepath.Glob("/sys/block/dm-*")
	fmt.Printf("guest: %s: %v, devices %v\n", what, err, devices)
}

// opened opens and mounts a volume.
func opened(o storage.VolumeOptions) (*storage.Volume, error) {
	began := time.Now()
	v, err := storage.OpenVolume(context.Background(), o)
	if err != nil {
		return nil, err
	}
	fmt.Printf("guest: time: %s opened in %.1f s\n", o.Name, time.Since(began).Seconds())
	return v, v.Mount("/v/"+o.Name, false)
}

// on opens a volume, does something in its file system and closes it.
func on(o storage.VolumeOptions, do func(dir string) error) error {
	v, err := opened(o)
	if err != nil {
		return err
	}
	return errors.Join(do("/v/"+o.Name), v.Close())
}

// show says what a volume holds.
func show(what string, o storage.VolumeOptions) error {
	return on(o, func(dir string) error {
		fmt.Printf("guest: %s: %s\n", what, walk(dir))
		return nil
	})
}

// populate makes files and directories of many sizes.
func populate(dir string) error {
	for i := range 40 {
		sub := fmt.Sprintf("%s/dir-%d/%s", dir, i, strings.Repeat("x/", i%5))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for n := range 8 {
			if err := os.WriteFile(fmt.Sprintf("%s/file-%d", sub, n), noise(uint64(i), i*n*100), 0o600); err != nil {
				return err
			}
		}
	}
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("end"), 5<<20)
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(dir+"/dir-3/x/x/x/file-1"), os.Symlink(canary, dir+"/link"),
		os.WriteFile(dir+"/"+canary, bytes.Repeat([]byte(canary), 50000), 0o644))
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// makeVolumes makes volumes on disks of several kinds and ends as at a power failure.
func makeVolumes() error {
	attempt("empty", withIntegrity)
	attempt("empty", plain)
	for _, x := range []struct {
		what, device string
	}{{"foreign", "/dev/vde"}, {"luks", "/dev/vdf"}, {"small", "/dev/vdg"}} {
		for _, o := range []storage.VolumeOptions{formatted(withIntegrity), formatted(plain)} {
			o.Device = x.device
			attempt(x.what, o)
		}
	}
	err := on(prepared, func(dir string) error {
		b, err := os.ReadFile(dir + "/from-host")
		fmt.Printf("guest: from-host: %x\n", sha256.Sum256(b))
		return err
	})
	if err != nil {
		return err
	}
	if err := temporary(); err != nil {
		return err
	}
	for _, o := range []storage.VolumeOptions{withIntegrity, plain} {
		if err := on(formatted(o), populate); err != nil {
			return err
		}
		if err := show(o.Name+" made", o); err != nil {
			return err
		}
		refused := formatted(o)
		refused.Empty = true
		attempt(o.Name+" empty", refused)
		if _, err := opened(formatted(o)); err != nil { // which formats nothing
			return err
		}
		f, err := os.Create("/v/" + o.Name + "/late")
		if err != nil {
			return err
		}
		_, err = f.Write(noise(77, 100000))
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		fmt.Printf("guest: %s before: %s\n", o.Name, walk("/v/"+o.Name))
	}
	return nil
}

// temporary: volumes with random keys, with a file system and without.
func temporary() error {
	var first string
	for i := range 2 {
		err := on(ephemeral, func(dir string) error {
			if names, err := filepath.Glob(dir + "/*"); len(names) != 1 || err != nil { // lost+found
				return fmt.Errorf("volume %d is not empty: %v, %v", i, names, err)
			}
			if err := populate(dir); err != nil {
				return err
			}
			first = walk(dir)
			return nil
		})
		if err != nil {
			return err
		}
	}
	fmt.Println("guest: temporary:", first)
	m, err := storage.ParseSecureMount("block-device", map[string]string{
		"deviceId": deviceID("/dev/vdd"), "sourceType": "empty", "targetType": "device", "encryptionType": "luks2", "dataIntegrity": "true", "mapperName": "raw",
	}, nil, "/secure")
	if err != nil {
		return err
	}
	v, err := storage.OpenVolume(context.Background(), m.Volume)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(v.Device())
	if err != nil {
		return err
	}
	fmt.Printf("guest: device: %d MiB, zeros %v\n", len(b)>>20, bytes.Count(b, []byte{0}) == len(b))
	if err := v.Close(); err != nil {
		return err
	}
	m, err = storage.ParseSecureMount("block-device", map[string]string{
		"deviceId": deviceID("/dev/vdd"), "sourceType": "empty", "targetType": "fileSystem", "encryptionType": "luks2", "dataIntegrity": "false",
		"mkfsOpts": "-O ^has_journal -m 0 -i 163840 -I 128",
	}, nil, "/emptydir/x")
	if err != nil {
		return err
	}
	if v, err = storage.OpenVolume(context.Background(), m.Volume); err != nil {
		return err
	}
	if err := v.Mount(m.Target, m.ReadOnly); err != nil {
		return err
	}
	if err := os.WriteFile("/emptydir/x/"+canary, []byte(canary), 0o644); err != nil {
		return err
	}
	fmt.Println("guest: emptydir:", walk("/emptydir/x"))
	return v.Close()
}

func deviceID(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// useVolumes opens in another boot what makeVolumes made, while the host interferes.
func useVolumes() error {
	for _, what := range []string{"journal-entries", "journal-data"} {
		step(what)
		attempt(what, withIntegrity)
	}
	step("journal-restore")
	for _, o := range []storage.VolumeOptions{withIntegrity, plain} {
		wrong := formatted(o)
		wrong.Key = []byte(otherKey)
		attempt(o.Name+" wrong key", wrong)
		if err := show(o.Name+" after", o); err != nil {
			return err
		}
	}
	exchanged := withIntegrity
	exchanged.Integrity = false
	attempt("a without integrity", exchanged)
	exchanged = plain
	exchanged.Integrity = true
	attempt("b with integrity", exchanged)
	if err := tampered(); err != nil {
		return err
	}
	for _, what := range []string{"sb-interleave", "sb-journal", "sb-sectors", "sb-flags", "sb-salt", "sb-mac", "sb-unsigned", "sb-bitmap", "sb-recalculate", "sb-zero", "mark-luks", "mark-gone"} {
		step(what)
		attempt(what, withIntegrity)
	}
	step("mark-gone")
	return show("again", formatted(withIntegrity))
}

// tampered has the host change blocks of a file.
func tampered() error {
	step("before")
	write := func(seed uint64) error {
		return on(withIntegrity, func(dir string) error {
			f, err := os.OpenFile(dir+"/big", os.O_RDWR|os.O_CREATE, 0o600) // written in place
			if err != nil {
				return err
			}
			_, err = f.WriteAt(noise(seed, 4<<20), 0)
			return errors.Join(err, f.Sync(), f.Close())
		})
	}
	read := func(what string) error {
		return on(withIntegrity, func(dir string) error {
			b, err := os.ReadFile(dir + "/big")
			if err != nil {
				fmt.Printf("guest: %s: %v\n", what, err)
				return nil
			}
			fmt.Printf("guest: %s: %x\n", what, sha256.Sum256(b))
			return nil
		})
	}
	if err := write(1); err != nil {
		return err
	}
	step("after")
	for _, what := range []string{"flip", "swap", "restore"} {
		step(what)
		if err := read(what); err != nil {
			return err
		}
	}
	if err := write(2); err != nil {
		return err
	}
	for _, what := range []string{"replay-data", "replay-all"} {
		step(what)
		if err := read(what); err != nil {
			return err
		}
	}
	return nil
}
