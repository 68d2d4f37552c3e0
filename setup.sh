#!/usr/bin/env bash
# Installs what building and running Causeway needs and is not there yet; says what it installs.
# usage: setup.sh build|run|test      build: compile; run: also bring a cluster up; test: also the test suite
# Debian and Ubuntu as root. Anything that is already present, from whatever source, is left alone.
set -euo pipefail
cd "$(dirname "$0")"
stage=${1:-build}
LLVM=22
BPF_LINKER='^0.13'

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 2; }
has() { command -v "$1" >/dev/null 2>&1; }

[ "$(uname -s)" = Linux ] || die "Causeway runs on Linux only; this is $(uname -s)"
has cargo || die "cargo is missing: install Rust 1.95 or newer from https://rustup.rs, then run this again"

apt_updated=
apt_install() {
  [ $# -gt 0 ] || return 0
  has apt-get || die "missing: $*. This script can install them only with apt-get; install them with this system's own tools, then run it again"
  [ "$(id -u)" = 0 ] || die "missing: $*. Run as root, or first: sudo apt-get install -y $*"
  say "installing with apt: $*"
  if [ -z "$apt_updated" ]; then apt-get update -qq >/dev/null; apt_updated=1; fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Prints the packages, of "command:package" pairs, whose command is missing.
missing_commands() {
  local pair
  for pair in "$@"; do has "${pair%%:*}" || printf '%s\n' "${pair#*:}"; done
}

packages=$(missing_commands cc:build-essential pkg-config:pkg-config protoc:protobuf-compiler git:git)
[ -f /usr/include/google/protobuf/descriptor.proto ] || packages+=" libprotobuf-dev"
if [ "$stage" != build ]; then
  packages+=" $(missing_commands ip:iproute2 nft:nftables curl:curl etcdctl:etcd-client)"
  has kubectl || packages+=" kubernetes-client"
fi
if [ "$stage" = test ]; then
  packages+=" $(missing_commands dig:bind9-dnsutils conntrack:conntrack tcpdump:tcpdump python3:python3)"
  [ -x /usr/lib/cni/bridge ] || packages+=" containernetworking-plugins"
fi
# shellcheck disable=SC2086
apt_install $(printf '%s\n' $packages | sort -u)

# --- BPF toolchain: rust-src of the active toolchain, or Debian's rustc-web; bpf-linker against LLVM 22.
sysroot=$(rustc --print sysroot)
if [ -f "$sysroot/lib/rustlib/src/rust/library/core/Cargo.toml" ]; then
  say "BPF: core from the active toolchain's rust-src"
elif [ -x /usr/bin/rustc ] && ls -d /usr/src/rustc*/library/core >/dev/null 2>&1 || ls -d /usr/share/rustc-web*/library/core >/dev/null 2>&1; then
  say "BPF: core from Debian's rust-web-src"
elif has rustup && rustup component add rust-src >/dev/null 2>&1; then
  say "BPF: core from rust-src, just added with rustup"
else
  apt_install rustc-web cargo-web rust-web-src
  say "BPF: core from Debian's rust-web-src"
fi
if ! has bpf-linker; then
  apt_install llvm-$LLVM-dev libpolly-$LLVM-dev zlib1g-dev libzstd-dev libxml2-dev
  say "installing bpf-linker with cargo (about two minutes, once)"
  LLVM_PREFIX=/usr/lib/llvm-$LLVM cargo install bpf-linker --version "$BPF_LINKER" --locked --quiet \
    --no-default-features --features llvm-$LLVM \
    || die "bpf-linker could not be built. It needs LLVM $LLVM (packages llvm-$LLVM-dev libpolly-$LLVM-dev zlib1g-dev libzstd-dev libxml2-dev); see https://github.com/aya-rs/bpf-linker"
fi

# --- A real etcd and the oldest kubectl to compare with, unpacked beside the build: nothing is installed or started.
unpack() { # PACKAGE PROGRAM
  [ ! -x "target/tools/usr/bin/$2" ] || return 0
  has apt-get || die "$2 is missing for the tests: put it at target/tools/usr/bin/$2"
  say "unpacking Debian's $1 into target/tools"
  if [ -z "$apt_updated" ]; then apt-get update -qq >/dev/null; apt_updated=1; fi
  mkdir -p target/tools
  (cd target/tools && apt-get download -qq "$1" >/dev/null && dpkg -x "$1"_*.deb . && rm -f "$1"_*.deb)
}
if [ "$stage" = test ]; then
  has etcd || unpack etcd-server etcd
  unpack kubernetes-client kubectl
fi
say "ready: $stage"
