#!/bin/sh
# Ranks under mpirun: the sums of tests/dist_rank.c, and what the others say when one of them fails,
# is stopped or is killed. $1: the tapir binary, beside which dist_rank lies.
set -u
program=$(dirname "$1")/dist_rank
if [ ! -x "$program" ] || ! command -v mpirun >/dev/null; then
    echo "built without MPI, or no mpirun: nothing to test"
    exit 0
fi
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export ASAN_OPTIONS=detect_leaks=0 # Open MPI's modules leak, and are unloaded before one could name them
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
bad=0
complain() {
    bad=1
    echo "FAILED: $*"
    for f in "$dir"/[0-9] "$dir/log"; do [ -f "$f" ] && sed "s|^|  ${f##*/}: |" "$f"; done
}
ranks() { # ranks N MODE [mpirun's options]: 124 or 137 if it hangs
    n=$1 mode=$2
    shift 2
    rm -f "$dir"/*
    timeout -k 5 60 mpirun "$@" --oversubscribe -np "$n" "$program" "$mode" "$dir" >"$dir/log" 2>&1
}
said() { # said "RANK…" TEXT: each of these ranks said it
    for r in $1; do grep -qF "$2" "$dir/$r" 2>/dev/null || complain "rank $r does not say: $2"; done
}

for n in 2 4; do
    ranks $n sums || complain "sums of $n ranks: mpirun ends with $?"
    for r in $(seq 0 $((n - 1))); do said "$r" "mpi $r of $n ($n here): well"; done
done
ranks 1 sums || complain "one rank: mpirun ends with $?"
said 0 "self 0 of 1 (1 here): well"

ranks 3 sums && complain "3 ranks go through"
grep -qF "3 ranks: the reduction tree needs a power of two" "$dir/log" || complain "3 ranks: no reason"

ranks 4 fail && complain "a rank fails, and mpirun ends with 0"
said 1 "the disk is full"
said "0 2 3" "said elsewhere: rank 1 stopped: the disk is full"

ranks 4 other && complain "a rank does something else, and mpirun ends with 0"
said "0 1 2 3" " does something else than rank "
grep -qF MPI_ABORT "$dir/log" && complain "ranks that all know of a failure need no MPI_ABORT"

start_four() { # start_four [mpirun's options]: four ranks that go on; $job is their mpirun
    rm -f "$dir"/*
    ranks 4 on "$@" &
    job=$!
    for i in $(seq 300); do
        [ -s "$dir/0.pid" ] && [ -s "$dir/1.pid" ] && [ -s "$dir/2.pid" ] && [ -s "$dir/3.pid" ] && break
        sleep 0.1
    done
    victim=$(cat "$dir/1.pid")
    sleep 0.5
}
ends_soon() { # ends_soon WHAT: mpirun comes to an end, and leaves nobody behind
    start=$(date +%s)
    wait $job
    code=$?
    seconds=$(($(date +%s) - start))
    [ $code != 124 ] && [ $seconds -lt 40 ] || complain "$1: hung for $seconds s ($code)"
    for i in $(seq 100); do # mpirun does not wait for those it has killed
        left=
        for f in "$dir"/?.pid; do lives "$(cat "$f")" && left="$left $(cat "$f")"; done
        [ -z "$left" ] && break
        sleep 0.1
    done
    [ -z "$left" ] || complain "$1: left behind:$left"
    for pid in $left; do kill -KILL "$pid"; done
}
lives() { grep -qx "Name:.dist_rank" "/proc/$1/status" 2>/dev/null && ! grep -q "^State:.Z" "/proc/$1/status"; }
silent="(.*) has given no sign of life for 2 s: it died, hangs, or its machine cannot be reached"

# A rank that is stopped, or killed while mpirun looks away, is found by the others.
for signal in STOP KILL; do
    if [ $signal = KILL ]; then start_four --enable-recovery; else start_four; fi
    kill -$signal "$victim"
    ends_soon $signal
    for r in 0 2 3; do
        grep -q ": rank 1 $silent" "$dir/$r" || complain "rank $r does not say that rank 1 $silent"
    done
done
# Killed in the ordinary way, mpirun ends the others, or they end by themselves.
start_four
kill -KILL "$victim"
ends_soon "kill -9"
[ $code != 0 ] || complain "a rank was killed, and mpirun ends with 0"
exit $bad
