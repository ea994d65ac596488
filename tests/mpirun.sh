#!/bin/sh
# Ranks under a real mpirun: sums, and every way in which a rank can let the others down, with
# tests/dist_rank.c; then what tapir train says when ranks do not fit together.
# $1: the tapir binary, $2: the source folder. Exit code 77: skipped.
set -u
tapir=$1
config=$2/configs/tests/same-bits.yaml
rank=$(dirname "$tapir")/dist_rank
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
. "$2/tests/lib/runs.sh"
export OMP_NUM_THREADS=1

command -v mpirun >/dev/null || { echo "SKIPPED: there is no mpirun"; exit 77; }
"$tapir" version | grep -q '^ranks .*MPI' || { echo "SKIPPED: this build has no MPI"; exit 77; }
bad=0
complain() {
    echo "WRONG: $*"
    sed 's/^/    /' "$tmp/out"
    for f in "$tmp"/ranks/*.said; do [ -e "$f" ] && echo "    $(basename "$f"): $(cat "$f")"; done
    bad=1
}
now() { date +%s; }
limit() { # limit NAME BEGIN SECONDS
    took=$(($(now) - $2))
    [ $took -le "$3" ] || complain "$1 took $took s, at most $3 wanted"
}
all_gone() { # all_gone NAME: no rank is left, at most 5 s after mpirun has ended
    for f in "$tmp"/ranks/*.pid; do
        tries=0
        while kill -0 "$(cat "$f")" 2>/dev/null; do
            tries=$((tries + 1))
            [ $tries -lt 50 ] || { complain "$1: process $(cat "$f") is left"; kill -9 "$(cat "$f")"; break; }
            sleep 0.1
        done
    done
}

# ---- dist_rank -----------------------------------------------------------------------------------
clear_ranks() { rm -rf "$tmp/ranks"; mkdir "$tmp/ranks"; }
rank_code=
ranks() { # ranks N MODE TIMEOUT
    clear_ranks
    begin=$(now)
    timeout 60 mpirun -np "$1" "$rank" "$2" "$3" "$tmp/ranks" >"$tmp/out" 2>&1
    rank_code=$?
}
said() { # said NAME RANKS… : PATTERN
    name=$1
    shift
    list=
    while [ "$1" != : ]; do list="$list $1"; shift; done
    for r in $list; do
        grep -q -e "$2" "$tmp/ranks/$r.said" 2>/dev/null || complain "$name: rank $r does not say \"$2\""
    done
}

for n in 1 2 4; do
    ranks $n moves 20
    [ $rank_code = 0 ] || complain "moves on $n ranks: exit code $rank_code"
    said "moves on $n ranks" $(seq 0 $((n - 1))) : '^good$'
done
ranks 4 wrong 20
[ $rank_code = 1 ] || complain "a wrong value: exit code $rank_code"
said "a wrong value" 0 1 2 3 : 'value 76: '

ranks 4 fails 20
[ $rank_code = 1 ] || complain "a failure: exit code $rank_code"
said "a failure" 1 : '^disk full$'
said "a failure" 0 2 3 : '^rank 1 stopped: disk full$'
limit "a failure" "$begin" 10
all_gone "a failure"

ranks 4 text 20
[ $rank_code = 1 ] || complain "another text: exit code $rank_code"
said "another text" 0 1 2 3 : '^rank 2 has another config than rank 0: "seed: 2", not "seed: 1"$'
limit "another text" "$begin" 10

ranks 4 call 20
[ $rank_code = 1 ] || complain "another call: exit code $rank_code"
said "another call" 0 1 2 3 : '^rank 3 does something else than rank [12] '
limit "another call" "$begin" 10

# Sends signal $2 to rank 2 once all ranks are at work.
disturbed() { # disturbed NAME SIGNAL TIMEOUT
    clear_ranks
    timeout 60 mpirun -np 4 "$rank" endless "$3" "$tmp/ranks" >"$tmp/out" 2>&1 &
    job=$!
    tries=0
    while [ "$(ls "$tmp/ranks" | grep -c 'pid$')" != 4 ] && [ $tries -lt 200 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    sleep 0.3
    begin=$(now)
    kill "-$2" "$(cat "$tmp/ranks/2.pid")" || complain "$1: no rank 2"
    wait $job
    code=$?
    [ $code != 0 ] && [ $code != 124 ] || complain "$1: exit code $code"
    limit "$1" "$begin" 10
    all_gone "$1"
}
# mpirun sees the death before the ranks do, says who, and ends the job
disturbed "kill -9" KILL 20
grep -q 'rank 2 .*signal 9' "$tmp/out" || complain "kill -9: mpirun does not name rank 2"
disturbed "SIGSTOP" STOP 2
said "SIGSTOP" 0 1 3 : '^rank 2 (.*) has given no sign of life for 2 s: '

# ---- tapir train ---------------------------------------------------------------------------------
i=0
while [ $i -lt 300 ]; do
    i=$((i + 1))
    echo "Line $i of $((i * 7919 % 997)): the quick $((i * 31 % 17)) brown foxes jump over $((i % 23)) dogs."
done >"$tmp/text.txt"
"$tapir" prepare "$tmp/text.txt" --out "$tmp/train.h5" --val "$tmp/val.h5" --vocab 280 >"$tmp/out" 2>&1 ||
    complain "tapir prepare"
clear_ranks
words="train $config data.train=$tmp/train.h5 data.val=$tmp/val.h5 threads=1 run.steps=2 train.warmup_steps=1"
refused() { # refused NAME PATTERN MPIRUN'S WORDS…
    name=$1
    pattern=$2
    shift 2
    rm -rf "$tmp/run"
    begin=$(now)
    timeout 60 mpirun "$@" >"$tmp/out" 2>&1
    code=$?
    [ $code = 1 ] || complain "$name: exit code $code, not 1"
    grep -q -e "$pattern" "$tmp/out" || complain "$name: nobody says \"$pattern\""
    limit "$name" "$begin" 20
}
run="run.dir=$tmp/run"
refused "another seed" 'rank 1 has another config than rank 0: "seed: 2", not "seed: 1"' \
    -np 1 "$tapir" $words "$run" seed=1 : -np 1 "$tapir" $words "$run" seed=2
refused "3 ranks" '3 ranks: the reduction tree needs a power of two' -np 3 "$tapir" $words "$run"
refused "15 rows" 'the 15 rows of an update must be a multiple of ranks times train.micro_batches (2 times 1)' \
    -np 2 "$tapir" $words "$run" train.batch=15

# ---- tapir eval ----------------------------------------------------------------------------------
rm -rf "$tmp/run"
"$tapir" $words "$run" >"$tmp/out" 2>&1 || complain "tapir train"
"$tapir" eval "$tmp/run" --json >"$tmp/one" 2>"$tmp/out" || complain "tapir eval"
for n in 2 4; do
    timeout 60 mpirun -np $n "$tapir" eval "$tmp/run" --json >"$tmp/together" 2>"$tmp/out" ||
        complain "tapir eval on $n ranks"
    cmp -s "$tmp/one" "$tmp/together" ||
        complain "tapir eval on $n ranks: $(cat "$tmp/together"), alone $(cat "$tmp/one")"
done
refused "eval of nothing" 'rank 1: no-run: there is no such run or checkpoint' -np 2 "$tapir" eval no-run

# ---- NCCL ----------------------------------------------------------------------------------------
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if ! "$tapir" version | grep -q '^ranks .*NCCL'; then
    refused "no NCCL" 'this build has no NCCL' -np 2 "$tapir" $words "$run" dist.backend=nccl
elif [ "$gpus" = 0 ]; then
    refused "no GPU" 'rank 0 (.*): NCCL needs a GPU, and there is none: ' \
        -np 2 "$tapir" $words "$run" dist.backend=nccl
    module=$(dirname "$tapir")/libtapir_nccl.so
    mkdir "$tmp/alone" # the program without its module
    cp "$tapir" "$tmp/alone/tapir"
    refused "no module" 'the NCCL module cannot be loaded: libtapir_nccl.so: cannot open' \
        -np 2 "$tmp/alone/tapir" $words "$run" dist.backend=nccl
    echo "not a library" >"$tmp/alone/$(basename "$module")"
    refused "a broken module" 'the NCCL module cannot be loaded: .*/alone/libtapir_nccl.so: ' \
        -np 2 "$tmp/alone/tapir" $words "$run" dist.backend=nccl
    echo "no GPU here: NCCL was tried as far as its refusal"
elif [ "$gpus" = 1 ]; then
    echo "one GPU here: NCCL between ranks was NOT tried"
else
    for backend in mpi nccl; do
        timeout 60 mpirun -np 2 "$tapir" $words "run.dir=$tmp/$backend" dist.backend=$backend \
            >"$tmp/out" 2>&1 || complain "$backend: exit code $?"
        "$tapir" hash "$tmp/$backend" | tail -n 1 >"$tmp/$backend.hash"
    done
    cmp -s "$tmp/mpi.hash" "$tmp/nccl.hash" || complain "other weights over NCCL than over MPI"
fi
[ $bad = 0 ] && echo "ranks under mpirun: good"
exit $bad
