#!/bin/sh
# Public headers stand alone, as C11 and as C++17, and fit on a few screens. $2: the source folder.
set -eu
cd "$2"
headers="include/tapir.h $(sed -n 's/^#include "\(.*\)"/\1/p' include/tapir.h)
         $(for f in ops/*/; do n=$(basename "$f"); [ -e "$f$n.h" ] && echo "$f$n.h"; done)"
for h in $headers; do
    lines=$(wc -l <"$h")
    [ "$lines" -le 150 ] || { echo "$h has $lines lines, more than 150" >&2; exit 1; }
    echo "#include \"$h\""
done >"${TMPDIR:-/tmp}/headers.$$"
# each first in a file of its own, so that none leans on another
for h in $headers; do
    echo "#include \"$h\"" | gcc -std=c11 -Wall -Wextra -Wpedantic -Werror -I. -fsyntax-only -xc -
    echo "#include \"$h\"" | g++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -Wno-missing-field-initializers -I. -fsyntax-only -xc++ -
done
g++ -std=c++17 -I. -fsyntax-only -xc++ "${TMPDIR:-/tmp}/headers.$$"
rm -f "${TMPDIR:-/tmp}/headers.$$"
