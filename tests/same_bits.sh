#!/bin/sh
# One hash for every way to split a run: threads, micro-batches, ranks, ZeRO stages, kill -9 and
# resume on another number of ranks; for a small GPT-2 and a small Llama, with dropout, dense and with
# routed blocks. A build whose micro-batches are added one after the other must be told apart.
# $1: the tapir binary, $2: the source folder. QUICK=1: a few of the combinations.
set -eu
tapir=$1
config=$2/configs/tests/same-bits.yaml
mutant=$(dirname "$tapir")/tapir_mutant
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
. "$2/tests/lib/runs.sh"

make_corpus "$tapir" "$tmp" 700

launch() { # launch PROGRAM RANKS WORDS…
    program=$1
    n=$2
    shift 2
    if [ "$n" = 1 ]; then set -- "$program" train "$@"; else
        set -- mpirun -np "$n" "$program" train "$@"
    fi
    exec "$@" data.train="$tmp/train.h5" data.val="$tmp/val.h5" >"$tmp/out" 2>&1
}
weights() { "$tapir" hash "$1" | tail -n 1; }
bad=0
runs=0
expect() { # expect NAME HASH
    runs=$((runs + 1))
    [ "$2" = "$want" ] || { echo "DIFFERENT: $1: $2, not $want"; tail -n 3 "$tmp/out"; bad=1; }
}
metrics() { sed 's/"tokens_per_s.*//; s/"time[^,]*,//' "$1/metrics.jsonl"; }

# Starts on $1 ranks with words $3, kills one rank with -9 once a checkpoint is there, and goes on
# with $2 ranks and words $4.
killed() {
    tries=0
    while :; do
        rm -rf "$tmp/run"
        (launch "$tapir" "$1" "$config" run.dir="$tmp/run" $family $3) &
        pid=$!
        while [ ! -e "$tmp/run/checkpoints/step-00000008.h5" ] && kill -0 $pid 2>/dev/null; do sleep 0.02; done
        victim=$(pgrep -P $pid -f "tapir train" | tail -n 1) # one rank of mpirun's
        kill -9 "${victim:-$pid}" 2>/dev/null || :
        wait $pid 2>/dev/null || :
        [ -e "$tmp/run/checkpoints/step-00000020.h5" ] || break
        tries=$((tries + 1)) # it was faster than this script
        [ $tries -lt 20 ] || { echo "no run could be killed in time"; exit 1; }
    done
    (launch "$tapir" "$2" "$config" run.dir="$tmp/run" $family $4 --resume) || :
    expect "$family: killed on $1 ranks ($3), resumed on $2 ($4)" "$(weights "$tmp/run")"
}

have_mpi=no
command -v mpirun >/dev/null && "$tapir" version | grep -qw MPI && have_mpi=yes
for family in "model.family=gpt2" "model.family=llama train.optimizer=adamw model.qk_norm=true model.kv_heads=1" \
    "model.family=gpt2 mod.capacity=0.3 mod.every=1" \
    "model.family=llama mod.capacity=0.25 mod.causal=aux_loss mod.gate=sigmoid mod.aux_coef=0.1"; do
    rm -rf "$tmp/reference"
    (launch "$tapir" 1 "$config" run.dir="$tmp/reference" $family threads=1)
    want=$(weights "$tmp/reference")
    for ranks in 1 2 4; do
        [ $ranks = 1 ] || [ $have_mpi = yes ] || continue
        for micro in 1 2 4; do
            for zero in 0 1 2; do
                [ $ranks$zero != 11 ] && [ $ranks$zero != 12 ] || continue # alone there is nothing to shard
                for threads in 1 2; do
                    [ -z "${QUICK-}" ] || [ $((micro + zero + threads)) -ge 5 ] || continue
                    rm -rf "$tmp/run"
                    (launch "$tapir" $ranks "$config" run.dir="$tmp/run" $family threads=$threads \
                        train.micro_batches=$micro dist.zero_stage=$zero) || :
                    expect "$family, $ranks ranks, $micro micro-batches, ZeRO $zero, $threads threads" \
                        "$(weights "$tmp/run")"
                    planned=$("$tapir" plan "$config" data.train="$tmp/train.h5" data.val="$tmp/val.h5" $family \
                        threads=$threads train.micro_batches=$micro dist.zero_stage=$zero --ranks $ranks --json |
                        sed 's/.*"peak_mb":\([0-9]*\.[0-9]*\).*/\1/')
                    peak=$(sed -n 's/.*"memory_mb":\([0-9.]*\).*/\1/p' "$tmp/run/metrics.jsonl" | tail -n 1)
                    awk "BEGIN { d = $peak - $planned; exit !(d < 0.001 && d > -0.001) }" || {
                        echo "planned $planned MB, used $peak MB: $family, $ranks ranks, $micro micro-batches, ZeRO $zero"
                        bad=1
                    }
                    metrics "$tmp/reference" >"$tmp/a"
                    metrics "$tmp/run" | cmp -s - "$tmp/a" || { echo "other metrics: $ranks $micro $zero $threads"; bad=1; }
                done
            done
        done
    done
    killed 1 1 "threads=2" "threads=1 train.micro_batches=4"
    if [ $have_mpi = yes ]; then
        killed 2 4 "threads=1 dist.zero_stage=1" "threads=1 dist.zero_stage=2"
        killed 4 1 "threads=1 dist.zero_stage=2" "threads=2"
        killed 1 2 "threads=1" "threads=1 dist.zero_stage=1"
    fi
    # three micro-batches of an odd batch are no powers of two, and still subtrees
    rm -rf "$tmp/odd" "$tmp/run"
    (launch "$tapir" 1 "$config" run.dir="$tmp/odd" $family threads=1 train.batch=12)
    want=$(weights "$tmp/odd")
    (launch "$tapir" 1 "$config" run.dir="$tmp/run" $family threads=2 train.batch=12 train.micro_batches=6)
    expect "$family: 12 rows in 6 micro-batches" "$(weights "$tmp/run")"
    # shares of ten rows promise no equal bits, but must train
    if [ $have_mpi = yes ]; then
        rm -rf "$tmp/run"
        (launch "$tapir" 2 "$config" run.dir="$tmp/run" $family threads=1 train.batch=20 dist.zero_stage=2) || {
            echo "20 rows on 2 ranks, ZeRO 2:"
            tail -n 3 "$tmp/out"
            bad=1
        }
    fi
    # the mutant adds passes one after the other, and deals samples to ranks in another order
    for split in "1 4" "2 2"; do
        ranks=${split% *}
        [ "$ranks" = 1 ] || [ $have_mpi = yes ] || continue
        rm -rf "$tmp/run"
        (launch "$mutant" "$ranks" "$config" run.dir="$tmp/run" $family threads=1 train.micro_batches=${split#* })
        [ "$(weights "$tmp/run")" != "$(weights "$tmp/reference")" ] || {
            echo "the mutant was not noticed on $ranks ranks with ${split#* } micro-batches"
            bad=1
        }
    done
done
# products in bf16 promise the same; the mutant is f32, which must give another hash
family="model.family=llama float32_matmul_precision=medium"
rm -rf "$tmp/reference"
(launch "$tapir" 1 "$config" run.dir="$tmp/reference" $family threads=1)
want=$(weights "$tmp/reference")
for split in "1 2 4 0" "1 1 2 0" "2 1 1 0" "4 1 2 2"; do
    set -- $split
    [ "$1" = 1 ] || [ $have_mpi = yes ] || continue
    rm -rf "$tmp/run"
    (launch "$tapir" "$1" "$config" run.dir="$tmp/run" $family threads="$2" train.micro_batches="$3" dist.zero_stage="$4") || :
    expect "$family, $1 ranks, $2 threads, $3 micro-batches, ZeRO $4" "$(weights "$tmp/run")"
done
killed 1 1 "threads=2" "threads=1 train.micro_batches=4"
rm -rf "$tmp/run"
(launch "$tapir" 1 "$config" run.dir="$tmp/run" model.family=llama threads=1)
[ "$(weights "$tmp/run")" != "$want" ] || { echo "float32_matmul_precision=medium changes nothing"; bad=1; }
[ $have_mpi = yes ] || echo "built without MPI, or no mpirun: ranks were not tried"
echo "$runs runs, $([ $bad = 0 ] && echo one hash each family || echo NOT one hash)"
exit $bad
