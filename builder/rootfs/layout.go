package rootfs

import (
	"path"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// directories are in every tree: what the agent mounts on, and what programs
// expect of a Linux system.
var directories = []tree.Entry{
	tree.Dir(".", 0o755),
	tree.Dir("dev", 0o755),
	tree.Dir("etc", 0o755),
	tree.Dir("home", 0o755),
	tree.Dir("proc", 0o555),
	tree.Dir("root", 0o700),
	tree.Dir("run", 0o755),
	tree.Dir("sys", 0o555),
	tree.Dir("tmp", 0o1777),
	tree.Dir("usr", 0o755),
	tree.Dir("var", 0o755),
	tree.Dir("var/tmp", 0o1777),
}

// hosts is what a guest calls itself before it knows of any network.
const hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost\n"

// layout adds what every tree has. A machine-id that is empty is one that is not
// decided yet, machine-id(5); the addresses of name servers are the network's.
func (b *build) layout() error {
	for i, d := range mergedUsr {
		if i < alwaysMerged || b.isDir("usr/"+d) {
			b.make(tree.Dir("usr/"+d, 0o755))
			b.force(tree.Symlink(d, "usr/"+d))
		}
	}
	for _, d := range directories {
		b.make(d)
	}
	for _, link := range []string{"var/run", "var/lock"} {
		b.make(tree.Symlink(link, newLinks()[link]))
	}
	if n := b.at["etc/machine-id"]; n == nil || !n.profile {
		b.force(tree.File("etc/machine-id", 0o444, tree.Blob{}))
	}
	if n := b.at["etc/resolv.conf"]; n != nil && !n.profile {
		b.remove(n.Path)
	}
	if b.at[Agent] != nil {
		b.make(tree.Symlink("init", "/"+Agent))
	}
	b.make(tree.File("etc/hosts", 0o644, tree.Bytes([]byte(hosts))))
	b.noteHidden()
	return nil
}

// noteHidden says which files cannot be seen in the guest, as something is mounted
// over them.
func (b *build) noteHidden() {
	for name, n := range b.at {
		if n.Type() != tree.TypeDir && hidden(name) {
			top, _, _ := strings.Cut(name, "/")
			b.note(n.pkgName(), "/%s is hidden by what the agent mounts on /%s", name, top)
		}
	}
}

// hidden reports whether something is mounted over a name.
func hidden(name string) bool {
	top, _, below := strings.Cut(name, "/")
	return below && slices.Contains([]string{"dev", "proc", "run", "sys", "tmp"}, top)
}

func (b *build) remove(name string) {
	dir, base := cut(name)
	delete(b.at, name)
	delete(b.kids[dir], base)
	delete(b.links, name)
}

// copies are files that a package's script copies, by the package: its own
// default, to where programs read it.
var copies = map[string][][2]string{
	"base-files": {
		{"usr/share/base-files/dot.bashrc", "root/.bashrc"},
		{"usr/share/base-files/dot.profile", "root/.profile"},
		{"usr/share/base-files/motd", "etc/motd"},
		{"usr/share/base-files/profile", "etc/profile"},
	},
	"libc-bin":     {{"usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"}},
	"nginx-common": {{"usr/share/nginx/html/index.html", "var/www/html/index.nginx-debian.html"}},
}

// made are directories and links that a package's script makes.
var made = map[string][]tree.Entry{
	"base-files": {
		tree.Dir("etc/opt", 0o755), tree.Dir("media", 0o755), tree.Dir("mnt", 0o755), tree.Dir("opt", 0o755), tree.Dir("srv", 0o755),
		tree.Dir("usr/local/bin", 0o755), tree.Dir("usr/local/etc", 0o755), tree.Dir("usr/local/games", 0o755),
		tree.Dir("usr/local/include", 0o755), tree.Dir("usr/local/lib", 0o755), tree.Dir("usr/local/libexec", 0o755),
		tree.Dir("usr/local/sbin", 0o755), tree.Dir("usr/local/share/man", 0o755), tree.Dir("usr/local/src", 0o755),
		tree.Dir("var/opt", 0o755),
		tree.Symlink("etc/dpkg/origins/default", "debian"),
		tree.Symlink("usr/local/man", "share/man"),
	},
	"nginx-common": {
		tree.Dir("var/www/html", 0o755),
		tree.Symlink("etc/nginx/sites-enabled/default", "/etc/nginx/sites-available/default"),
	},
}

// defaults does what the scripts of some packages do.
func (b *build) defaults() error {
	for _, p := range b.packages {
		for _, c := range copies[p.Name] {
			if from := b.get(c[0]); from != nil && from.inode != nil {
				e := from.Entry
				e.Path, e.Content = c[1], from.inode.blob
				b.make(e)
			}
		}
		for _, e := range made[p.Name] {
			target := e.Target
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(e.Path), target)
			}
			if e.Type() != tree.TypeSymlink || b.get(target) != nil || b.isDir(target) {
				b.make(e)
			}
		}
	}
	return nil
}
