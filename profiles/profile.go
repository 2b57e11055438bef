// Package profiles reads profiles: the TOML files that say what an image is.
//
// The struct tags below are the one table behind the parser, the JSON Schema, the
// explanation of values and the reference in docs/profiles.md:
//
//	toml      name of the key; ",id" marks the key that identifies an entry of a list of tables,
//	          ",required" one that the resolved profile must have, ",nonempty" a list that must not
//	          be empty, ",unique" a list without duplicates
//	default   TOML value of a key that no file gives
//	enum      values that exist; only: those of them that this version builds
//	format    entry of the formats table
//	min, max  bounds of an integer
//	excludes  keys of the same table that cannot stand beside this one
//	doc       what the key means, in Markdown
package profiles

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Profile is a resolved profile: bases merged, overrides applied, defaults filled in.
// Paths of the building host are relative to the working directory, or absolute; a profile writes them relative to its own file.
type Profile struct {
	Schema   int               `toml:"schema" min:"1" max:"1" doc:"Version of the profile format: 1. Every profile says it."`
	Extends  string            `toml:"extends" format:"profile" doc:"Profile that this one adds to: the name of one beside this file or built in, or a path ending in .toml relative to this file."`
	Arch     string            `toml:"arch" default:"'amd64'" format:"name" only:"amd64" doc:"Machine architecture, as Debian calls it."`
	Platform string            `toml:"platform,required" enum:"vtpm|snp|tdx" doc:"What measures the guest: a virtual TPM, AMD SEV-SNP or Intel TDX."`
	Seed     string            `toml:"seed,required" format:"line" doc:"Every identifier of the image (partition and disk GUIDs, volume numbers) derives from this text and from content. It is no secret."`
	Epoch    int64             `toml:"epoch,required" min:"315532800" max:"4294967295" doc:"The only time in the image, in seconds since 1970, from 1980 (FAT) to 2106 (cpio). SOURCE_DATE_EPOCH overrides it."`
	Cmdline  []string          `toml:"cmdline" format:"argument" doc:"Kernel command line, one argument each; a blank only within double quotes. At most 2047 bytes in all."`
	Sources  map[string]Source `toml:"sources" format:"name" doc:"Where packages come from. All of them are searched; the newest version of a package wins."`
	Kernel   Kernel            `toml:"kernel" doc:"The kernel and its modules."`
	Stub     Stub              `toml:"stub" doc:"systemd-stub, the EFI program that the kernel, initrd and command line are added to."`
	Firmware Firmware          `toml:"firmware" doc:"The firmware the guest is measured and started with."`
	Initrd   Initrd            `toml:"initrd" doc:"How the initrd is packed."`
	Root     Root              `toml:"root" doc:"The root file system."`
	Files    []File            `toml:"files" doc:"Files added to the root file system, one table each; an entry of the same path in an extended profile is changed."`
	Layers   []Layer           `toml:"layers" doc:"Layers of container images, and other archives that registries keep, unpacked into the root file system like packages; an entry of the same name in an extended profile is changed."`
	Users    []User            `toml:"users" doc:"Accounts added to those that packages declare, one table each; an entry of the same name in an extended profile is changed."`
	Groups   []Group           `toml:"groups" doc:"Groups added in the same way."`
	Services []Service         `toml:"services" doc:"Programs that the agent starts and supervises, in this order; an entry of the same name in an extended profile is changed."`
	Agent    Agent             `toml:"agent" doc:"PID 1 of the guest."`

	Network   Network    `toml:"network" doc:"The guest's one network interface. Absent: loopback alone."`
	Workloads Workloads  `toml:"workloads" doc:"Container images that the guest pulls, checks, measures and runs. Absent: none."`
	Workload  []Workload `toml:"workload" doc:"A container, one table each, started in this order; an entry of the same name in an extended profile is changed. For workloads.from = image."`

	Attestation Attestation `toml:"attestation" doc:"What the guest is attested by, and the brokers that give it secrets for it. Absent: it shows no evidence and has no broker."`
	Volume      []Volume    `toml:"volume" doc:"A disk that the guest encrypts, one table each, opened before the first container is made; an entry of the same name in an extended profile is changed."`

	SecureBoot SecureBoot `toml:"secure_boot" doc:"Authenticode signature of the image and the keys that the firmware checks it with. Absent: unsigned."`
	PCRPolicy  PCRPolicy  `toml:"pcr_policy" doc:"Signed PCR 11 policy, as systemd-measure makes it. Absent: none."`
	Machine    Machine    `toml:"machine" doc:"The virtual machine that boot runs and measure predicts."`
	SNP        SNP        `toml:"snp" doc:"What decides an SEV-SNP launch digest besides the files, and what the attestation report says beside it. For platform snp."`
	TDX        TDX        `toml:"tdx" doc:"What a quote says beside the measurement registers. For platform tdx. Absent: not said."`
	Initdata   string     `toml:"initdata" format:"file" doc:"Initdata that the guest is given at launch, as plinth initdata build writes it. It is no part of the image: measurements.json says what its evidence then shows, PCR 8, HOSTDATA or MRCONFIGID. Absent: not said."`
	Outputs    Outputs    `toml:"outputs" doc:"What a build writes."`

	// Name is the file's name without .toml.
	Name string `toml:"-"`
	// Origin says which profile was taken: a path, or "built-in profile NAME".
	Origin string `toml:"-"`
	// Dir is the directory of the profile's file; empty when built in.
	Dir string `toml:"-"`
	// Stock is true for a profile that comes with plinth: the built-in one, or a file with the same bytes.
	Stock bool `toml:"-"`

	tree *node
}

// Source is a suite of a Debian archive, or a directory of .deb files.
type Source struct {
	Suite           string   `toml:"suite" format:"suite" doc:"Suite, as the archive's InRelease file calls it."`
	Components      []string `toml:"components,unique" default:"['main']" format:"suite" doc:"Components of the suite."`
	Mirror          []string `toml:"mirror" format:"url" doc:"Archive roots, tried in this order. Absent: the host's own apt configuration. --mirror and PLINTH_MIRROR come first."`
	Keyring         string   `toml:"keyring" format:"file" doc:"OpenPGP public keys, one of which must have signed InRelease. Absent: the Debian archive keys that come with plinth."`
	CheckValidUntil bool     `toml:"check_valid_until" default:"true" doc:"Refuse, when the lock is made, an InRelease file past its Valid-Until; false for an archive of old versions."`
	NotAutomatic    bool     `toml:"not_automatic" doc:"Take packages from this source only for parts that name its suite, and what those need."`
	Debs            string   `toml:"debs" format:"file" excludes:"suite components mirror keyring check_valid_until not_automatic" doc:"Directory of .deb files that serves as a source. They are locked by digest; nobody signs for them."`

	Name string `toml:"-"`
}

// Kernel comes from a package or from a file.
type Kernel struct {
	Package    string   `toml:"package" format:"package" doc:"Package with boot/vmlinuz-* and its modules, or a meta package that depends on one."`
	Suite      string   `toml:"suite" format:"suite" doc:"Take the package from this suite alone. A suite that no source names is read with defaults."`
	File       string   `toml:"file" format:"file" excludes:"package suite" doc:"A kernel of one's own, bzImage, instead of a package."`
	ModulesDir string   `toml:"modules_dir" format:"file" excludes:"package suite" doc:"Module directory of that kernel, as make modules_install leaves it (lib/modules/RELEASE)."`
	Modules    []string `toml:"modules,unique" format:"module" doc:"Modules or aliases that the agent loads; what they depend on comes along. A leading ? marks one that the kernel may lack."`
}

// Stub comes from a package or from a file.
type Stub struct {
	Package string `toml:"package" format:"package" doc:"Package with linuxx64.efi.stub."`
	Suite   string `toml:"suite" format:"suite" doc:"As kernel.suite."`
	File    string `toml:"file" format:"file" excludes:"package suite" doc:"A stub of one's own instead of a package."`
}

// Firmware comes from a package, from files, or one half from each. That of snp and tdx is one file, code.
type Firmware struct {
	Package  string `toml:"package" format:"package" doc:"Package with the files that code and vars name."`
	Suite    string `toml:"suite" format:"suite" doc:"As kernel.suite."`
	Code     string `toml:"code" format:"member" doc:"Path of the code image in the package; for snp and tdx, of the whole firmware image."`
	Vars     string `toml:"vars" format:"member" doc:"Path of the empty variable store in the package. Not for snp and tdx, whose firmware is one file."`
	CodeFile string `toml:"code_file" format:"file" excludes:"code" doc:"A code image of one's own."`
	VarsFile string `toml:"vars_file" format:"file" excludes:"vars" doc:"A variable store of one's own, for instance one with keys enrolled."`

	Generic Generic `toml:"generic" doc:"The firmware that boot takes where the host has no SEV-SNP or TDX: the same kernel, initrd and command line run under it, with a software TPM. Never measured into what the hardware attests. Absent: no such boots."`
}

// Generic is an OVMF in two halves, for hosts without the hardware.
type Generic struct {
	Package  string `toml:"package" format:"package" doc:"Package with the files that code and vars name."`
	Suite    string `toml:"suite" format:"suite" doc:"As kernel.suite."`
	Code     string `toml:"code" format:"member" doc:"Path of the code image in the package."`
	Vars     string `toml:"vars" format:"member" doc:"Path of the empty variable store in the package."`
	CodeFile string `toml:"code_file" format:"file" excludes:"code" doc:"A code image of one's own."`
	VarsFile string `toml:"vars_file" format:"file" excludes:"vars" doc:"A variable store of one's own."`
}

// Initrd is how the initrd is packed.
type Initrd struct {
	Compression string `toml:"compression" default:"'zstd'" enum:"none|gzip|zstd|xz" doc:"Compression of the initrd."`
	Level       int    `toml:"level" min:"0" max:"19" doc:"Compression level: gzip 1 to 9, zstd 1 to 19; xz has none. 0 is the compressor's own default."`
}

// Root is the root file system.
type Root struct {
	Kind         string   `toml:"kind" default:"'verity'" enum:"verity|initrd" doc:"verity: an EROFS on the disk, each block of which the kernel checks against the root hash in the measured command line. initrd: the initrd is the root."`
	Packages     []string `toml:"packages,unique" format:"package" doc:"Packages unpacked into the root, with all that they depend on. Their maintainer scripts do not run."`
	Bare         []string `toml:"bare,unique" format:"package" doc:"Packages unpacked without the packages of other sources that they depend on: those whose files are of use alone."`
	Exclude      []string `toml:"exclude,unique" format:"pattern" doc:"What is left out of packages and layers, with all below it: absolute paths, in which * and ? stand for parts of a name and ** for any number of names."`
	Overlay      bool     `toml:"overlay" default:"false" doc:"Lay a file system in memory over a verity root: it can be written to, and what was written is gone at the end."`
	OnCorruption string   `toml:"on_corruption" default:"'panic'" enum:"panic|restart" doc:"What the kernel does at the first block of a verity root that is not the one that was built."`
	Hash         string   `toml:"hash" default:"'sha256'" enum:"sha256|sha512" doc:"Hash algorithm of a verity root."`

	VerityKey  string `toml:"verity_key" format:"file" doc:"Private key that signs the root hash of a verity root, PEM (PKCS #8), RSA. The signature is a partition of its own, for veritysetup, systemd and kernels that ask for one; the guest needs none, because its root hash is measured."`
	VerityCert string `toml:"verity_cert" format:"file" doc:"Certificate of that key, PEM."`

	Alternatives map[string]string `toml:"alternatives" format:"guest" doc:"Symbolic links between programs, as update-alternatives would make them: /usr/bin/awk = /usr/bin/mawk. What they point to must be there."`
}

// User is an account. None has a password.
type User struct {
	Name    string   `toml:"name,id" format:"account" doc:"Name of the user."`
	UID     int      `toml:"uid" min:"1" max:"4294967294" doc:"Number. Absent: the next free one downwards from 999."`
	Group   string   `toml:"group" format:"account" doc:"Primary group. Absent: one of the same name and number."`
	Comment string   `toml:"comment" format:"comment" doc:"What /etc/passwd says of the user."`
	Home    string   `toml:"home" format:"guest" doc:"Home directory, which is not made. Absent: /."`
	Shell   string   `toml:"shell" format:"guest" doc:"Login shell. Absent: /usr/sbin/nologin."`
	Groups  []string `toml:"groups,unique" format:"account" doc:"Further groups of the user."`
}

// Group is a group of users.
type Group struct {
	Name string `toml:"name,id" format:"account" doc:"Name of the group."`
	GID  int    `toml:"gid" min:"1" max:"4294967294" doc:"Number. Absent: the next free one downwards from 999."`
}

// File is a file, link or directory of the guest: exactly one of Source, URL, Text, Link and Dir is given.
type File struct {
	Path   string `toml:"path,id" format:"guest" doc:"Absolute path in the guest. A file of a package by this name gives way."`
	Source string `toml:"source" format:"file" excludes:"url text link dir" doc:"File with the content."`
	URL    string `toml:"url" format:"url" excludes:"text link dir" doc:"Address of the content. Wants sha256."`
	SHA256 string `toml:"sha256" format:"sha256" excludes:"text link dir" doc:"SHA-256 of the content of source or url, which must have it."`
	Text   string `toml:"text" excludes:"link dir" doc:"The content itself."`
	Link   string `toml:"link" format:"target" excludes:"dir mode" doc:"Makes it a symbolic link to this path."`
	Dir    bool   `toml:"dir" doc:"Makes it a directory."`
	Mode   string `toml:"mode" format:"mode" doc:"Permissions, in octal digits. Absent: 0644, for a directory 0755."`
	Owner  string `toml:"owner" default:"'0:0'" format:"owner" doc:"Numeric user and group, UID:GID."`
}

// Layer is a layer of a container image, or another archive: exactly one of Source, Layout and Registry is given.
type Layer struct {
	Name     string   `toml:"name,id" format:"name" doc:"Name of the layer, in messages and in the bills of materials."`
	Digest   string   `toml:"digest,required" format:"digest" doc:"Digest of the layer as it is stored: a tar archive as it is, or packed with gzip, zstd or xz."`
	Source   string   `toml:"source" format:"file" excludes:"layout registry" doc:"File that is the layer."`
	Layout   string   `toml:"layout" format:"file" excludes:"registry" doc:"OCI image layout that has the layer: a directory, or a tar archive of one."`
	Registry string   `toml:"registry" format:"repository" doc:"Repository that has the layer, as in registry.example.com/team/image. It is asked over HTTPS, with the credentials that docker login left."`
	Paths    []string `toml:"paths,unique" format:"pattern" doc:"What is taken of the layer, with all below it: patterns as in root.exclude, of paths in the layer. Absent: all."`
	Strip    int      `toml:"strip" min:"0" max:"64" doc:"Number of leading parts to take off every path. What has no more parts is left out."`
	To       string   `toml:"to" format:"guest" doc:"Directory of the guest that the paths start from. Absent: /."`
	Owner    string   `toml:"owner" format:"owner" doc:"Numeric user and group of everything taken, UID:GID. Absent: as in the layer."`
}

// Service is a program that the agent starts.
type Service struct {
	Name string            `toml:"name,id" format:"name" doc:"Name of the service, in reports and on the console."`
	Exec []string          `toml:"exec,nonempty" format:"word" doc:"The program, by absolute path in the guest, and its arguments. No shell reads them."`
	Env  map[string]string `toml:"env" format:"variable" doc:"Environment; nothing is inherited."`

	After   string `toml:"after" json:",omitempty" format:"guest" doc:"Start it once this path is there, a socket for instance. Absent: at once."`
	Restart string `toml:"restart" json:",omitempty" enum:"failure|always" doc:"Start it again, after a second: failure, when it ended otherwise than with status 0, or always. Absent: never."`
}

// Agent is what PID 1 does beyond its fixed stages.
type Agent struct {
	Phases []string `toml:"phases,unique" default:"['enter-initrd', 'leave-initrd', 'sysinit', 'ready']" format:"phase" doc:"Boot phases that the agent extends into PCR 11, each when it is reached, in this order. Empty: none."`
	FWCfg  bool     `toml:"fw_cfg" default:"false" doc:"Load the qemu_fw_cfg module. It shows the guest whatever the host puts there, unmeasured."`
	Debug  bool     `toml:"debug" default:"false" doc:"Say what is wrong with the boot and go on, instead of stopping. Not for a guest with secrets."`
	Shell  bool     `toml:"shell" default:"false" doc:"Start a shell on the console. Wants debug."`

	TestKeys map[string]string `toml:"test_keys" json:",omitempty" format:"key" doc:"Keys that a broker would give the guest, in base64, by the names under which images and workloads.auth ask for them. They lie open in the image. Wants debug; plinth lint refuses it."`
}

// SecureBoot is the signature of the image and the keys in the firmware's variable store.
type SecureBoot struct {
	Key    string   `toml:"key" format:"file" doc:"Private key that signs the image, PEM (PKCS #8)."`
	Cert   string   `toml:"cert" format:"file" doc:"Certificate of that key, PEM."`
	Enroll bool     `toml:"enroll" default:"false" doc:"Write pk, kek and db into the image's variable store and turn Secure Boot on."`
	PK     string   `toml:"pk" format:"file" doc:"Certificate enrolled as platform key. Absent: cert."`
	KEK    []string `toml:"kek,unique" format:"file" doc:"Certificates enrolled as key exchange keys. Absent: cert."`
	DB     []string `toml:"db,unique" format:"file" doc:"Certificates that may sign what the firmware starts. Absent: cert."`

	SetupMode bool `toml:"setup_mode" excludes:"enroll" doc:"Take the keys out of the variable store that came with the firmware, which then checks no signature."`
}

// PCRPolicy is the .pcrsig section. It is off while Key is empty.
type PCRPolicy struct {
	Key    string   `toml:"key" format:"file" doc:"RSA private key that signs the policy, PEM (PKCS #8). Its public half becomes .pcrpkey."`
	Banks  []string `toml:"banks,unique,nonempty" default:"['sha256']" enum:"sha1|sha256|sha384|sha512" doc:"PCR banks to sign for."`
	Phases []string `toml:"phases,unique" format:"phases" doc:"Phase paths to sign for, as in enter-initrd:leave-initrd. Absent: every point that agent.phases passes."`
}

// Machine is the virtual machine: what runs and what is predicted.
type Machine struct {
	Type   string `toml:"type" default:"'q35'" format:"machine" doc:"QEMU machine type."`
	CPU    string `toml:"cpu" default:"'max'" format:"cpu" doc:"QEMU CPU model."`
	VCPUs  []int  `toml:"vcpus,unique,nonempty" default:"[1]" min:"1" max:"288" doc:"Numbers of virtual CPUs to predict for; boot takes the first."`
	Memory int    `toml:"memory" default:"1024" min:"128" max:"1048576" doc:"Memory in MiB."`
	Path   string `toml:"path" json:",omitempty" enum:"disk|uki|kernel" doc:"How the guest is started: the UKI on the disk, the UKI by -kernel, or kernel, initrd and command line by -kernel, -initrd and -append. Absent: disk."`
}

// SNP is what decides a launch digest besides files and vCPUs, and what stands beside it in a report. Numbers of 64 bits
// are texts, as measurements.json has them.
type SNP struct {
	VCPUTypes     []string `toml:"vcpu_types,unique" format:"cpu" doc:"vCPU models to predict for, each with every number of machine.vcpus, as sev-snp-measure calls them: EPYC-v4, EPYC-Milan, EPYC-Genoa."`
	Policy        string   `toml:"policy" format:"bits" doc:"Guest policy that the host launches with. Absent: 0x30000, SMT allowed, no debugging, no migration."`
	GuestFeatures string   `toml:"guest_features" format:"bits" doc:"SEV_FEATURES of each vCPU. Absent: what the host's kernel sets, 0x1 in the newest era."`
	HostEra       string   `toml:"host_era" format:"name" doc:"Span of host kernels that fill the vCPU's state alike. Absent: the newest."`
	FamilyID      string   `toml:"family_id" format:"hex16" doc:"Family ID of the ID block. Absent: zeros."`
	ImageID       string   `toml:"image_id" format:"hex16" doc:"Image ID of the ID block. Absent: zeros."`
	GuestSVN      int      `toml:"guest_svn" min:"0" max:"4294967295" doc:"Security version of the guest in the ID block."`
}

// TDX is what stands beside the registers in a quote. What is absent is not said.
type TDX struct {
	Attributes    string `toml:"attributes" format:"bits" doc:"TD attributes that the host launches with, 0x10000000 with SEPT_VE_DISABLE."`
	XFAM          string `toml:"xfam" format:"bits" doc:"Extended features available to the guest."`
	MRConfigID    string `toml:"mr_config_id" format:"hex48" doc:"MRCONFIGID."`
	MROwner       string `toml:"mr_owner" format:"hex48" doc:"MROWNER."`
	MROwnerConfig string `toml:"mr_owner_config" format:"hex48" doc:"MROWNERCONFIG."`
}

// Network is how the guest's network interface is set up.
type Network struct {
	DHCP      bool     `toml:"dhcp" excludes:"addresses gateways" doc:"Take what a DHCPv4 server and IPv6 routers say. Both are the host's: containers speak to the world over TLS or not at all."`
	Addresses []string `toml:"addresses,unique" format:"cidr" doc:"Fixed addresses with the lengths of their networks."`
	Gateways  []string `toml:"gateways,unique" format:"ip" doc:"Routers, at most one for IPv4 and one for IPv6."`
	DNS       []string `toml:"dns,unique" format:"ip" doc:"Name servers; with dhcp, in the place of those that it names."`
	MTU       int      `toml:"mtu" min:"1280" max:"65535" doc:"Largest packet, in bytes. Absent: what DHCP says, or 1500."`
}

// Workloads is what holds for all container images of the guest.
type Workloads struct {
	From         string   `toml:"from" enum:"image|initdata" doc:"Where the one list of workloads comes from: this profile, in the image, or the part workloads.json of the initdata that the guest is given. The measured command line says which. With initdata, the keys below but event_pcr, pcr_23, memory and disk are for that document to say."`
	Policy       string   `toml:"policy" format:"policy" doc:"Which signatures images must have, a policy.json as containers-policy.json(5) describes it; keyPath in it is a path of the guest, or kbs:///REPOSITORY/TYPE/TAG. In the place of the file, what the broker calls it: kbs:///REPOSITORY/TYPE/TAG. Absent: every image is rejected."`
	PolicyFile   string   `toml:"policy_file" json:",omitempty" format:"file" doc:"The policy that the broker will give: with it the register of workloads is predicted. It is not in the image."`
	Admit        []string `toml:"admit,unique" enum:"encrypted+signed|encrypted+unsigned|plain+signed|plain+unsigned" doc:"Kinds of images that are taken at all, whatever the policy says. Absent: the two that are signed."`
	Registries   string   `toml:"registries" format:"file" doc:"Mirrors, blocked and insecure registries, a registries.conf of version 2."`
	RegistriesD  []string `toml:"registries_d,unique" format:"file" doc:"Where signatures lie: the YAML files of containers-registries.d(5)."`
	CAs          string   `toml:"cas" format:"file" doc:"Certificates in PEM that registries are trusted by, besides those of the root file system."`
	Proxy        string   `toml:"proxy" format:"url" doc:"Proxy for registries, http://HOST:PORT."`
	NoProxy      string   `toml:"no_proxy" format:"line" doc:"What is reached without it, as the variable NO_PROXY."`
	Auth         string   `toml:"auth" format:"resource" doc:"Name of the registries' credentials at the key broker, which are an auth.json. They are never in the image."`
	ImageService bool     `toml:"image_service" doc:"Let programs of the root file system pull images by the interface of CoCo's confidential-data-hub, under the same policy."`
	MaxSize      int      `toml:"max_size" min:"1" max:"16777216" doc:"The most that one image may hold, unpacked, in MiB. Absent: 64 GiB, or what there is room for."`
	MaxFiles     int      `toml:"max_files" min:"1" max:"1000000000" doc:"The most files that one image may have. Absent: the puller's default."`
	Memory       int      `toml:"memory" min:"16" max:"1048576" excludes:"disk" doc:"Keep images in memory, in so many MiB at most. Absent, and no disk: half of machine.memory."`
	Disk         string   `toml:"disk" format:"serial" doc:"Keep images on the virtio disk of this serial number, encrypted with a key that nobody knows and that is gone when the guest stops."`
	EventPCR     int      `toml:"event_pcr" min:"14" max:"15" doc:"Register of the TPM that workloads are measured into before they start. Absent: 14, which shim uses where there is one, and here is none. A trust domain measures them into RTMR 3 as well."`
	PCR23        bool     `toml:"pcr_23" doc:"Measure them into PCR 23, too, for tools that look there. Whoever reaches the TPM in the guest can reset it."`
}

// Workload is one container.
type Workload struct {
	Name    string            `toml:"name,id" format:"label" doc:"Name of the container, and its host name."`
	Image   string            `toml:"image" format:"image" doc:"The image: docker://HOST/REPOSITORY@sha256:..., or with a tag, where the policy asks for a signature; oci-archive:/dev/disk/by-id/virtio-SERIAL for an OCI archive that is the whole of a disk. Every workload has one."`
	Archive string            `toml:"archive" format:"file" doc:"The OCI archive that such a disk will hold: the image must be the one that is in it."`
	Command []string          `toml:"command" format:"word" doc:"Program and arguments in the place of the image's Entrypoint and Cmd."`
	Args    []string          `toml:"args" format:"word" doc:"Arguments in the place of the image's Cmd."`
	Env     map[string]string `toml:"env" format:"variable" doc:"Environment besides the image's. Names are measured as they are, values in a digest. No place for secrets, but for sealed ones: a value that begins with sealed. is opened in the guest."`
	Dir     string            `toml:"dir" format:"guest" doc:"Working directory. Absent: the image's."`
	User    string            `toml:"user" format:"user" doc:"User, or USER:GROUP, names as the image has them. Absent: the image's."`

	Mounts       []Mount  `toml:"mounts" doc:"Places that are not in the image."`
	Ports        []string `toml:"ports,unique" format:"port" doc:"Ports of the guest that lead to the container: GUEST:CONTAINER, with /udp behind it for UDP."`
	Network      string   `toml:"network" enum:"nat|none" doc:"nat: it reaches what the guest reaches. none: loopback. Absent: nat."`
	Memory       int      `toml:"memory" min:"1" max:"1048576" doc:"Most memory, in MiB. Absent: no bound of its own."`
	MilliCPU     int      `toml:"milli_cpu" min:"1" max:"1024000" doc:"Thousandths of a processor. Absent: no bound of its own."`
	PIDs         int      `toml:"pids" min:"1" max:"4194304" doc:"Most processes and threads. Absent: 1024."`
	Capabilities []string `toml:"capabilities,unique" format:"capability" doc:"Capabilities besides the default ones, as in CAP_NET_ADMIN."`
	ReadOnly     bool     `toml:"read_only" excludes:"scratch" doc:"Nothing can be written to the root of the container."`
	Scratch      int      `toml:"scratch" min:"1" max:"1048576" doc:"Most that is written to the root, which is kept in memory, in MiB. Absent: 64."`
	Devices      []string `toml:"devices,unique" format:"cdi" doc:"Devices by the Container Device Interface, as in vendor.example/class=name, of specifications in the root file system."`
	Restart      string   `toml:"restart" enum:"failure|always" doc:"Start it again: failure, when it ended otherwise than with status 0, or always. Absent: never."`
	Output       string   `toml:"output" enum:"console" doc:"console: what it prints goes to the console, which the host reads. Absent: nobody sees it."`
	Exec         bool     `toml:"exec" doc:"Programs of the guest may run others in the container."`
	API          API      `toml:"api" json:",omitzero" doc:"What the container may ask of the guest, by HTTP at 127.0.0.1:8006 of its own network, as CoCo's api-server-rest has it. Absent: nobody listens there."`
}

// API is what a container may ask of the guest.
type API struct {
	Resources []string `toml:"resources,unique" format:"resources" doc:"What it may have of the broker: kbs:///REPOSITORY/TYPE/TAG, or kbs:///REPOSITORY/TYPE/ and kbs:///REPOSITORY/ for all below."`
	Evidence  bool     `toml:"evidence" doc:"Evidence of the guest, over data of its choice: by that it can attest as the guest and have all that the guest may have, whatever resources says."`
	Token     bool     `toml:"token" doc:"The broker's token for the guest."`
	TEEKey    bool     `toml:"tee_key" doc:"With the token the private key that the broker encrypts secrets to: whoever has both has all that the guest may have. Wants token."`
	Measure   bool     `toml:"measure" doc:"It may extend events of its own into the register of workloads, in domains that are not the agent's."`
}

// Mount is a place of a container that is not in its image: exactly one of Tmpfs, Source, Volume and Secret is given.
type Mount struct {
	Path   string `toml:"path,id" format:"guest" doc:"Absolute path in the container."`
	Source string `toml:"source" format:"guest" excludes:"tmpfs volume secret" doc:"File or directory of the root file system, read-only."`
	Tmpfs  int    `toml:"tmpfs" min:"1" max:"1048576" excludes:"volume secret" doc:"Memory of its own, of at most so many MiB."`
	Volume string `toml:"volume" json:",omitempty" format:"label" excludes:"secret" doc:"Name of a [[volume]]."`
	Secret string `toml:"secret" json:",omitempty" format:"secret" doc:"A file in memory, read-only: what the broker calls kbs:///REPOSITORY/TYPE/TAG, or the plaintext of a sealed secret, sealed.… as plinth secret seal writes it."`
}

// Sources of workloads, see Workloads.From.
const (
	FromImage    = "image"
	FromInitdata = "initdata"
)

// HasWorkloads tells whether the guest runs containers.
func (p *Profile) HasWorkloads() bool { return p.Workloads.From != "" }

// HasNetwork tells whether the guest has more than loopback.
func (p *Profile) HasNetwork() bool { return p.Network.DHCP || len(p.Network.Addresses) > 0 }

// Kinds of a root file system, see Root.Kind.
const (
	RootVerity = "verity"
	RootInitrd = "initrd"
)

// When a service is started again, see Service.Restart.
const (
	RestartFailure = "failure"
	RestartAlways  = "always"
)

// Platforms.
const (
	PlatformVTPM = "vtpm"
	PlatformSNP  = "snp"
	PlatformTDX  = "tdx"
)

// Ways to start a guest, see Machine.Path.
const (
	PathDisk   = "disk"
	PathUKI    = "uki"
	PathKernel = "kernel"
)

// BootPath is how the guest is started.
func (m Machine) BootPath() string { return cmp.Or(m.Path, PathDisk) }

// Combined tells whether the platform's firmware is one file, with the variables, if it has any, in it.
func (p *Profile) Combined() bool { return p.Platform == PlatformSNP || p.Platform == PlatformTDX }

// Verity tells whether the root is on the disk, and the initrd only leads to it.
func (p *Profile) Verity() bool { return p.Root.Kind == RootVerity }

// HasGeneric tells whether there is firmware for a host without the platform's hardware.
func (p *Profile) HasGeneric() bool { return p.Firmware.Generic.Code+p.Firmware.Generic.CodeFile != "" }

// Outputs is what a build writes beside the files it always writes.
type Outputs struct {
	Kinds []string `toml:"kinds,unique,nonempty" default:"['raw']" enum:"raw|qcow2|vhd|vmdk|gce" doc:"Forms of the disk. raw is always written; the others stand beside it: qcow2 (QEMU, OpenStack), vhd (Azure), vmdk (VMware, AWS), gce (Google Compute Engine, which makes the disk whole GiB)."`
}

// RawDisk is the kind of output that every image has.
const RawDisk = "raw"

// Forms are the forms of the disk besides raw, sorted.
func (o Outputs) Forms() []string {
	var out []string
	for _, k := range o.Kinds {
		if k != RawDisk {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

// Perm returns the permission bits of f, set-user-id, set-group-id and sticky included.
func (f File) Perm() uint32 {
	m, err := strconv.ParseUint(f.Mode, 8, 32) // the format was checked when f was read
	switch {
	case err == nil:
		return uint32(m)
	case f.Dir:
		return 0o755
	}
	return 0o644
}

// HasContent tells whether f is a file, and no link or directory.
func (f File) HasContent() bool { return f.Link == "" && !f.Dir }

// IDs returns the user and group of f.
func (f File) IDs() (uid, gid uint32) { return ids(f.Owner) }

// IDs returns the user and group of what is taken of l, and whether l says them.
func (l Layer) IDs() (uid, gid uint32, ok bool) {
	uid, gid = ids(l.Owner)
	return uid, gid, l.Owner != ""
}

func ids(owner string) (uid, gid uint32) {
	u, g, _ := strings.Cut(owner, ":") // the format was checked when it was read
	ui, _ := strconv.ParseUint(u, 10, 32)
	gi, _ := strconv.ParseUint(g, 10, 32)
	return uint32(ui), uint32(gi)
}

// Enrolled returns the certificates to enroll: those given, else the one that signs.
func (s SecureBoot) Enrolled() (pk string, kek, db []string) {
	or := func(list []string) []string {
		if len(list) == 0 && s.Cert != "" {
			return []string{s.Cert}
		}
		return list
	}
	return cmp.Or(s.PK, s.Cert), or(s.KEK), or(s.DB)
}

// PhasePaths returns the phase paths that the PCR policy is signed for, as systemd-measure writes them.
func (p *Profile) PhasePaths() []string {
	if len(p.PCRPolicy.Phases) > 0 {
		return p.PCRPolicy.Phases
	}
	return passed(p.Agent.Phases)
}

// passed returns the phase path at each point of the boot that phases lead to; the empty one when there are none.
func passed(phases []string) []string {
	if len(phases) == 0 {
		return []string{""}
	}
	paths := make([]string, len(phases))
	for i := range phases {
		paths[i] = strings.Join(phases[:i+1], ":")
	}
	return paths
}

// SourcesFor returns the sources to search for a package, sorted by name: all of them when suite is empty, else
// those of that suite. A suite that no source names gives one source with defaults, called like the suite.
func (p *Profile) SourcesFor(suite string) []Source {
	var found []Source
	for _, s := range p.Sources {
		if suite == "" || s.Suite == suite {
			found = append(found, s)
		}
	}
	if found == nil && suite != "" {
		return []Source{{Name: suite, Suite: suite, Components: []string{"main"}, CheckValidUntil: true}}
	}
	slices.SortFunc(found, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	return found
}
