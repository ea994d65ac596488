#!/bin/sh
# What the docs quote is what the program says. $1: the tapir binary, $2: the source folder.
set -eu
cd "$2"
"$1" ops --markdown | cmp - docs/ops.md || {
    echo "docs/ops.md is out of date: tapir ops --markdown >docs/ops.md"
    exit 1
}
# the tape printed in the README is the one of configs/tests/readme.yaml
"$1" tape configs/tests/readme.yaml | sed 's/ *$//' >"${TMPDIR:-/tmp}/tape.$$"
awk '/^<!-- tape -->/{on=1; next} /^<!-- end -->/{on=0} on && !/^```/' README.md | sed 's/ *$//' |
    cmp - "${TMPDIR:-/tmp}/tape.$$" || {
    echo "the README's tape is out of date: tapir tape configs/tests/readme.yaml"
    rm -f "${TMPDIR:-/tmp}/tape.$$"
    exit 1
}
rm -f "${TMPDIR:-/tmp}/tape.$$"
# every picture that the README shows is there, and well-formed
pictures=$(grep -o "](docs/[a-z/-]*\.svg)" README.md | sed "s/^](//; s/)$//")
[ -n "$pictures" ]
for f in $pictures; do xmllint --noout "$f"; done
# and its picture is the one beside the README, but for the memory, which depends on this machine's kernels
"$1" tape configs/tests/readme.yaml --svg "${TMPDIR:-/tmp}/tape.$$" >/dev/null
sed '/ at most</d' docs/plots/tape.svg >"${TMPDIR:-/tmp}/want.$$"
sed '/ at most</d' "${TMPDIR:-/tmp}/tape.$$" | cmp - "${TMPDIR:-/tmp}/want.$$" || {
    echo "docs/plots/tape.svg is out of date: tapir tape configs/tests/readme.yaml --svg docs/plots/tape.svg"
    rm -f "${TMPDIR:-/tmp}/tape.$$" "${TMPDIR:-/tmp}/want.$$"
    exit 1
}
rm -f "${TMPDIR:-/tmp}/tape.$$" "${TMPDIR:-/tmp}/want.$$"
# every folder and every config of the tree that the README prints exists
sed -n '/^<!-- tree -->/,/^<!-- end -->/p' README.md | grep -oE '^[a-z_./]+(/|\.c|\.sh)' | while read -r f; do
    [ -e "$f" ] || { echo "README names $f, which is not there"; exit 1; }
done
