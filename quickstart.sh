#!/bin/sh
# From a fresh Debian 12 machine to a trained model and a sample of its text.
#   ./quickstart.sh            trains on the King James Bible
#   ./quickstart.sh FILE…      trains on your own text (files, folders, .jsonl)
# Run it again and it goes on where it stopped.
set -eu
cd "$(dirname "$0")"
if [ "${1-}" = -h ] || [ "${1-}" = --help ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 0
fi
for text; do
    [ -e "$text" ] || [ "$text" = - ] || { echo "quickstart.sh: there is no file $text" >&2; exit 2; }
done
./install.sh
cmake --preset release -DTAPIR_TESTS=OFF -B build-quick >build-quick.log 2>&1 || { cat build-quick.log >&2; exit 1; }
cmake --build build-quick --target tapir_bin -j "$(nproc)" >>build-quick.log 2>&1 || { tail -n 40 build-quick.log >&2; exit 1; }
rm -f build-quick.log
tapir=build-quick/tapir

if [ $# -eq 0 ]; then
    name=quickstart
else
    # the same files go on with the same run
    name=own-$(printf '%s\n' "$@" | cksum | cut -d' ' -f1)
fi
run=runs/$name
mkdir -p "$run"
if [ ! -e "$run/train.h5" ]; then
    if [ $# -eq 0 ]; then
        # every line is "Ge1:1 In the beginning…": the label goes
        bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' >"$run/text.txt"
        set -- "$run/text.txt"
    fi
    $tapir prepare "$@" --out "$run/train.h5" --val "$run/val.h5" --val-fraction 0.1 --vocab 4096
fi
$tapir train configs/quickstart.yaml --resume run.dir="$run" data.train="$run/train.h5" data.val="$run/val.h5"
echo
echo "A sample ($tapir generate $run):"
echo
if [ "$name" = quickstart ]; then
    $tapir generate "$run" "And God said" --max-new-tokens 200 --temperature 0.7
else
    $tapir generate "$run" --max-new-tokens 200 --temperature 0.7
fi
echo
echo "The run lies in $run: checkpoints, metrics.jsonl, TensorBoard events, config.yaml, samples."
