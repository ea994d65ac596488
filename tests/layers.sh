#!/bin/sh
# Each folder includes only layers below it (docs/architecture.md). $2: the source folder.
set -eu
cd "$2"
bad=0
check() { # check FOLDER ALLOWED…
    folder=$1
    shift
    allowed=$(printf '%s|' "$folder" "$@")
    found=$(grep -rnE '^#include "[a-z]+/' "$folder" --include='*.[ch]' | grep -vE "#include \"(${allowed%|})/" |
        grep -v '#include "nn/param.h"' || :)
    [ -z "$found" ] || { echo "$folder/ may include ${*:-nothing else}, but:"; echo "$found"; bad=1; }
}
check core
check ops core
check autograd core ops
check nn core ops autograd
check dist core
check optim core ops dist autograd
check data core
check infer core ops autograd nn
check rl core data
if grep -rn '#include "nn/param.h"' core ops autograd data; then
    echo "nn/param.h is for nn and optim"
    bad=1
fi
# the mutant: the check must see a forbidden include
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/core"
echo '#include "ops/op.h"' >"$tmp/core/x.c"
if (cd "$tmp" && bad=0 && check core >/dev/null && [ $bad = 0 ]); then
    echo "the layer test accepts a forbidden include"
    bad=1
fi
# no library code prints, exits, aborts or asserts
if grep -rnE '\b(printf|puts|exit|abort|assert|perror)\(' core ops autograd nn optim data dist infer rl --include='*.c' --include='*.h' |
    grep -vE '\b(sn|vsn|f|vf)printf\(|TP_PRINTF|^[^:]*:[0-9]+: *(/?\*|//)'; then
    echo "library code must not print or end the process"
    bad=1
fi
exit $bad
