#!/bin/sh
# Prints what apt would install for each line of packages on standard input, given
# only the *.Packages files beside this script. Everything apt writes goes to a
# temporary directory. Packages and apt.want were recorded on 2026-11-21 with apt
# 2.6.1: the stanzas, with the fields that matter, of what these lines need in
# Debian 13.7 and its security suite, and of the alternatives.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/etc/preferences.d" "$dir/etc/apt.conf.d" "$dir/etc/sources.list.d" "$dir/lists/partial" "$dir/cache/archives/partial"
touch "$dir/status"
for p in "$here"/*.Packages; do
	suite=$(basename "$p" .Packages)
	mkdir -p "$dir/$suite"
	cp "$p" "$dir/$suite/Packages"
	echo "deb [trusted=yes] file:$dir/$suite ./" >>"$dir/etc/sources.list"
done
cat >"$dir/apt.conf" <<CONF
Dir::Etc "$dir/etc";
Dir::State "$dir";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
CONF
export APT_CONFIG="$dir/apt.conf" LC_ALL=C
apt-get -qq update >&2
while read -r names; do
	# Inst NAME (VERSION SOURCE [ARCH])
	apt-get -s install $names | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1 \2/p' | sort -k1,1 | tr ' \n' '= ' | sed 's/ $//'
	echo
done
