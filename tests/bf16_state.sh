#!/bin/sh
# AdamW's moments in bf16, whole runs: half the state in the plan, the same bits for threads,
# micro-batches, ranks that shard it and after a resume, and a loss curve beside that of f32 state.
# $1: the tapir binary, $2: the source folder.
set -eu
tapir=$1
config=$2/configs/tests/resume.yaml
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
. "$2/tests/lib/runs.sh"
bad=0
fail() {
    echo "FAILED: $*"
    bad=1
}

make_corpus "$tapir" "$tmp" 900

train() { # train NAME WORDS…
    name=$1
    shift
    "$tapir" train "$config" run.dir="$tmp/$name" data.train="$tmp/train.h5" data.val="$tmp/val.h5" \
        train.optimizer=adamw train.lr_scheduler_type=constant train.adam_beta2=0.999 "$@" \
        >"$tmp/out" 2>&1 || { cat "$tmp/out"; fail "$name"; }
}
weights() { "$tapir" hash "$tmp/$1" | tail -n 1; }
state=train.optimizer_state_dtype

# ---- the bits
train whole $state=bf16 threads=1
want=$(weights whole)
expect() { [ "$(weights "$1")" = "$want" ] || fail "$1: other bits"; }
train split $state=bf16 threads=2 train.micro_batches=4
expect split
train half $state=bf16 threads=1 run.steps=11
train half $state=bf16 threads=2 --resume
expect half
if command -v mpirun >/dev/null && "$tapir" version | grep -qw MPI; then
    mpirun -np 2 "$tapir" train "$config" run.dir="$tmp/ranks" data.train="$tmp/train.h5" \
        data.val="$tmp/val.h5" train.optimizer=adamw train.lr_scheduler_type=constant \
        train.adam_beta2=0.999 $state=bf16 threads=1 dist.zero_stage=1 >"$tmp/out" 2>&1 || cat "$tmp/out"
    expect ranks
fi
train exact threads=1
[ "$(weights exact)" != "$want" ] || fail "bf16 state made no difference"
train other $state=bf16 threads=1 seed=4
[ "$(weights other)" != "$want" ] || fail "the seed made no difference"
"$tapir" train "$config" run.dir="$tmp/half" data.train="$tmp/train.h5" data.val="$tmp/val.h5" \
    train.optimizer=adamw train.lr_scheduler_type=constant train.adam_beta2=0.999 --resume \
    >"$tmp/out" 2>&1 && fail "f32 resumed from bf16"
grep -q "another config.*optimizer_state_dtype" "$tmp/out" || fail "the refusal does not name the key"

# ---- the plan: two bytes for four, and all else alike
planned() { # planned KEY=VALUE FIELD
    "$tapir" plan "$config" model.vocab=300 eval.every=0 train.optimizer=adamw "$1" --json |
        sed "s/.*\"$2\":\([0-9.]*\).*/\1/"
}
echo "$(planned $state=f32 optimizer_mb) $(planned $state=bf16 optimizer_mb)" |
    awk '{r = $2/$1; exit !(r > 0.49 && r < 0.51)}' || fail "the plan of the state"

# ---- the curve: both learn, and end within 2 % of each other
curve() { # the mean of the last four losses
    sed -n 's/.*"train_loss":\([0-9.]*\).*/\1/p' "$tmp/$1/metrics.jsonl" | tail -n 4 |
        awk '{s += $1} END {print s/NR}'
}
train long32 $state=f32 threads=1 run.steps=150 model.dropout=0 eval.every=0 checkpoint.every=0
train long16 $state=bf16 threads=1 run.steps=150 model.dropout=0 eval.every=0 checkpoint.every=0
a=$(curve long32) b=$(curve long16)
echo "loss after 150 steps: $a with f32 state, $b with bf16"
echo "$a $b" | awk '{r = $2/$1; exit !($1 < 2.5 && r > 0.98 && r < 1.02)}' || fail "the curves part"
exit $bad
