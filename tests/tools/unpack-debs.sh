#!/bin/sh
# unpack-debs.sh SUITE DIR [PACKAGE...]: unpack QEMU (and swtpm, or the packages
# named) of another Debian suite with every library it needs into DIR, and write
# DIR/bin/PROGRAM for each, which runs it by its own dynamic loader. Nothing is
# installed and root is not needed. The mirror and the keyring are those of the
# host's apt configuration; DIR/VERSIONS lists what was unpacked.
#
#	tests/tools/unpack-debs.sh trixie /tmp/qemu-trixie
#	PLINTH_QEMU=/tmp/qemu-trixie/bin/qemu-system-x86_64 plinth boot out/vtpm
set -eu

suite=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
shift 2
[ $# -gt 0 ] || set -- qemu-system-x86 swtpm

mirror=${PLINTH_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(SITE) $(REPO_URI)' 'Created-By: Packages' |
	sed -n 's/^Debian [^ ]* //p' | grep -v security | head -n 1)}
[ -n "$mirror" ] || {
	echo "unpack-debs: apt names no Debian mirror; set PLINTH_MIRROR" >&2
	exit 1
}

# A private apt root with an empty package database: "install" then downloads
# the whole closure, libc included.
apt=$dir/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/etc"
: >"$apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/etc/sources.list"
cat >"$apt/etc/apt.conf" <<EOF
Dir::State "$apt"; Dir::State::lists "$apt/lists"; Dir::State::status "$apt/status";
Dir::Cache "$apt"; Dir::Cache::archives "$apt/archives";
Dir::Etc::sourcelist "$apt/etc/sources.list"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64"; APT::Architectures "amd64"; APT::Install-Recommends "false"; APT::Sandbox::User "";
Acquire::Languages "none"; Debug::NoLocking "true";
EOF
export APT_CONFIG="$apt/etc/apt.conf"
apt-get -q update >&2
apt-get -q -y --download-only install "$@" >&2

rm -rf "$dir/root"
mkdir -p "$dir/root/usr/lib64" "$dir/bin"
ln -s usr/lib "$dir/root/lib"
ln -s usr/lib64 "$dir/root/lib64"
for deb in "$apt"/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$dir/root" --keep-directory-symlink --no-same-owner
	dpkg-deb -f "$deb" Package Version | sed 's/^[^:]*: //' | paste -s -d ' '
done | sort >"$dir/VERSIONS"

# /proc/self/exe is the loader then, so QEMU has to be told where its data is.
lib=$dir/root/usr/lib/x86_64-linux-gnu
loader="$lib/ld-linux-x86-64.so.2"
for program in qemu-system-x86_64 swtpm; do
	real=$dir/root/usr/bin/$program
	[ -x "$real" ] || continue
	data=
	[ "$program" = swtpm ] || data="-L $dir/root/usr/share/qemu -L $dir/root/usr/share/seabios -L $dir/root/usr/lib/ipxe/qemu"
	cat >"$dir/bin/$program" <<EOF
#!/bin/sh
export QEMU_MODULE_DIR=$lib/qemu
exec $loader --library-path $lib:$lib/swtpm --argv0 $program $real $data "\$@"
EOF
	chmod 755 "$dir/bin/$program"
	"$dir/bin/$program" --version | head -n 1
done
