#!/usr/bin/env bash
# Builds programs twice, each time from a copy of the committed sources in a folder of another name and length, and
# compares them byte by byte.
# usage: tests/reproducible.sh -p PACKAGE… | --workspace
set -euo pipefail
cd "$(dirname "$0")/.."
folders=$(mktemp -d "${TMPDIR:-/tmp}/cwt-reproducible-XXXXXX")
trap 'rm -rf "$folders"' EXIT
first=$folders/a second=$folders/another-folder/b
for folder in "$first" "$second"; do
  mkdir -p "$folder"
  git archive HEAD | tar -x -C "$folder"
  CARGO_TARGET_DIR=$folder/target make -s -C "$folder" release PACKAGES="$*"
done
# Dynamic libraries of macros are no programs.
programs() { find "$1/target/release" -maxdepth 1 -type f -executable ! -name '*.so' -printf '%f\n' | sort; }
[ -n "$(programs "$first")" ] || { echo "no program was built" >&2; exit 2; }
differ=0
for program in $(programs "$first"); do
  if cmp "$first/target/release/$program" "$second/target/release/$program"; then
    echo "same  $(sha256sum <"$first/target/release/$program" | cut -c1-64)  $program"
  else
    differ=1
  fi
done
exit $differ
