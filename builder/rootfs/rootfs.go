// Package rootfs makes the tree of a root file system from packages and files.
// No maintainer script is run: what scripts would have done and matters (users,
// groups, alternatives, the cache of the dynamic linker, the bundle of
// certificates) is declared or generated here, and what else a script would do
// is said in a note.
//
// Equal packages, files and parameters give the equal tree, whatever the order
// in which they come.
package rootfs

import (
	"github.com/plinth-os/plinth/internal/tree"
)

// A Package is one Debian package, unpacked.
type Package struct {
	Name, Version, Arch string
	// Source is the source package, with its version in parentheses where that is
	// another: "glibc (2.41-12)". Empty: what Control says, else Name.
	Source string
	// SHA256 is that of the .deb, zero when unknown.
	SHA256 [32]byte
	// PURL is the package URL of what is no Debian package, but a layer of a
	// container image. It has no Control, and its directories give way to those of
	// packages.
	PURL string
	// Control has the members of the control archive by name: "control",
	// "postinst", "preinst". Without it no Replaces is known, the bills of
	// materials name no supplier, and nothing is said of scripts.
	Control map[string][]byte
	Entries []tree.Entry
}

// Params decide the tree besides packages and files.
type Params struct {
	Epoch  int64 // seconds since 1970: the last change of a password in /etc/shadow
	Users  []User
	Groups []Group
	// Exclude are patterns of what is left out of packages: "/usr/share/man/**".
	// They are those of path.Match between slashes; "**" stands for any number of
	// names. What is below a directory that matches is left out too.
	Exclude []string
	// Alternatives are symbolic links to make, by path: "/usr/bin/awk" to
	// "/usr/bin/mawk". The target must be in the tree.
	Alternatives map[string]string
}

// A User is an account that a profile declares. It cannot log in with a password.
type User struct {
	Name    string
	UID     *uint32 // nil: the next free one downwards from 999
	Group   string  // primary group; "": one of the same name and number
	Comment string
	Home    string   // "": "/"
	Shell   string   // "": /usr/sbin/nologin
	Groups  []string // others that it is a member of
}

// A Group is a group that a profile declares.
type Group struct {
	Name string
	GID  *uint32 // nil: the next free one downwards from 999
}

// A Tree is the content of a root file system.
type Tree struct {
	Entries   []tree.Entry // normalised; every file has its digest
	Inventory Inventory    // what the bills of materials say of it
	Notes     []Note       // sorted
}

// A Note is something about a package that its user should know.
type Note struct {
	Package string `json:"package"`
	Text    string `json:"text"`
}

// Agent is where the agent lies. When the tree has it, /init is a link to it.
const Agent = "usr/lib/plinth/agent"

// basePackage wins when packages do not agree on a directory's mode or owner.
const basePackage = "base-files"

// Build makes the tree. Files override those of packages, also directories and
// links; they and the packages are read more than once, now and later.
//
// Names in /bin, /sbin, /lib and /lib64 become those in /usr. Two packages with
// different files by one name are an error, unless one replaces the other or
// diverts the file.
func Build(pkgs []Package, files []tree.Entry, p Params) (*Tree, error) {
	b := &build{params: p, at: map[string]*node{}, kids: map[string]map[string]bool{}}
	for _, step := range []func() error{
		func() error { return b.readPackages(pkgs) },
		func() error { return b.readFiles(files) },
		b.exclude,
		b.place,
		b.keepOff,
		b.digest,
		b.merge,
		b.layout,
		b.defaults,
		b.accounts,
		b.tmpfiles,
		b.alternatives,
		b.certificates,
		b.linkerCache,
		b.scripts,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b.finish()
}

// build is a tree in the making.
type build struct {
	params   Params
	packages []*pkg
	nodes    []*node                    // of packages and files, until they are merged
	links    links                      // the symbolic links among them
	at       map[string]*node           // the tree, by path
	kids     map[string]map[string]bool // names in each directory
	notes    []Note
}

// A pkg is a package and what is known of it.
type pkg struct {
	Package
	control  stanza
	licences *copyright // nil without a copyright file
	commands []command  // of its scripts
}

// A node is a name in the tree. Its Link stays empty until the end: names that
// share an inode are links of each other.
type node struct {
	tree.Entry
	pkg     *pkg // nil: of the profile, or made here
	profile bool
	inode   *inode // nil for directories
}

// An inode is what hard links have in common.
type inode struct {
	blob   tree.Blob
	sha1   [20]byte
	hashed bool
}

func (n *node) owner() string {
	switch {
	case n.pkg != nil:
		return "package " + n.pkg.Name
	case n.profile:
		return "the profile"
	}
	return "plinth"
}

// pkgName is how notes and inventory name the owner: "" for all but packages.
func (n *node) pkgName() string {
	if n.pkg == nil {
		return ""
	}
	return n.pkg.Name
}
