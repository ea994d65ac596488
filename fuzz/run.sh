#!/bin/sh
# Usage: sh fuzz/run.sh [SECONDS] [NAME…]
# Runs the fuzzers (all, or those named: config, jsonl, …) side by side, an hour each unless told,
# and prints how many inputs each tried. Needs clang: apt-get install clang libclang-rt-dev libomp-dev
# An input that ends a fuzzer stays in build-fuzz/found/; to keep it as a test, copy it to fuzz/NAME/.
set -u
cd "$(dirname "$0")/.." || exit 2
seconds=${1:-3600}
case $seconds in '' | *[!0-9]*) echo "usage: sh fuzz/run.sh [SECONDS] [NAME…]" >&2; exit 2 ;; esac
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- $(ls fuzz | sed -n 's/_fuzzer\.c$//p')
targets=
for name; do
    [ -f "fuzz/${name}_fuzzer.c" ] || { echo "fuzz/run.sh: there is no fuzzer called $name" >&2; exit 2; }
    targets="$targets ${name}_fuzzer"
done
cmake --preset fuzz >/dev/null && cmake --build build-fuzz --target $targets || exit 1
out=build-fuzz/found
mkdir -p "$out"
pids=
trap 'kill $pids 2>/dev/null; exit 130' INT TERM
for name; do
    mkdir -p "build-fuzz/corpus/$name"
    # what is learnt stays in build-fuzz/corpus, so that another hour begins where this one ended
    nice -n 19 "build-fuzz/${name}_fuzzer" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -max_len=65536 \
        -print_final_stats=1 -artifact_prefix="$out/$name-" "build-fuzz/corpus/$name" "fuzz/$name" >"$out/$name.log" 2>&1 &
    pids="$pids $!"
    eval "pid_$name=$!"
done
failed=0
printf '%-12s %10s %12s  %s\n' fuzzer seconds executions findings
for name; do
    eval "wait \$pid_$name"
    code=$?
    inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$name.log" | tail -n 1)
    took=$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "$out/$name.log" | tail -n 1)
    say=none
    [ "$code" = 0 ] || { failed=1; say="exit $code, see $out/$name.log"; }
    printf '%-12s %10s %12s  %s\n' "$name" "${took:-?}" "${inputs:-?}" "$say"
done
exit $failed
