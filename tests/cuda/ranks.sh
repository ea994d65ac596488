#!/bin/sh
# Ranks that each train on a device: the hash of one rank's run with the same batch, for ZeRO 0, 1
# and 2, in f32 and bf16, with streams that do their work at once or as late as they may; killed in
# the middle and resumed on another number of ranks; the plan is the memory that is used. And what is
# refused: ranks that share a GPU, a recorded step.
# $1: a tapir with CUDA, $2: the source folder, $3: "short" for the least of it (sanitizers).
# Exit code 77: skipped.
set -u
tapir=$1
src=$2
short=${3:-}
command -v mpirun >/dev/null || { echo "SKIPPED: there is no mpirun"; exit 77; }
"$tapir" version | grep -q '^ranks .*MPI' || { echo "SKIPPED: this build has no MPI"; exit 77; }
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') # the emulator: one for each rank
emulated=no
"$tapir" version | grep -q 'CPU emulation' && emulated=yes gpus=4
[ "$gpus" -ge 2 ] || { echo "SKIPPED: each rank needs a GPU, and there are $gpus"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. "$src/tests/lib/runs.sh"
export OMP_NUM_THREADS=1
. "$src/tests/cuda/expect.sh"
make_corpus "$tapir" "$dir" 200

# A leaf of a weight gradient's tree holds 8 samples on a device (TP_CUDA_LEAF): fewer a rank, and
# the bits would be others.
words="train.batch=32 train.micro_batches=1 run.steps=4 train.max_grad_norm=0.5 model.channels=16
    model.heads=1 model.layers=1 model.context=16 checkpoint.every=1 checkpoint.keep=0 device=cuda threads=1
    dist.bucket_mb=0.005 train.lr_scheduler_type=constant dist.timeout=60"
launch() { # launch RANKS NAME WORD…: leaves what was said in $dir/err
    n=$1
    name=$2
    shift 2
    set -- "$tapir" train "$src/configs/tests/cuda.yaml" run.dir="$dir/$name" data.train="$dir/train.h5" \
        data.val="$dir/val.h5" $words "$@"
    if [ "$n" = 1 ]; then "$@" >"$dir/err" 2>&1; else timeout 300 mpirun -np "$n" "$@" >"$dir/err" 2>&1; fi
}
hash_of() { "$tapir" hash "$dir/$1" | tail -n 1; }
same() { # same NAME: as the reference
    [ "$(hash_of "$1")" = "$want" ]
}
refused() { # refused PATTERN COMMAND…
    pattern=$1
    shift
    if "$@"; then return 1; fi
    grep -q -e "$pattern" "$dir/err"
}
planned_is_used() { # planned_is_used RANKS NAME WORD…
    n=$1
    used=$(sed -n 's/.*"memory_mb":\([0-9.]*\).*/\1/p' "$dir/$2/metrics.jsonl" | tail -n 1)
    shift 2
    planned=$("$tapir" plan "$src/configs/tests/cuda.yaml" data.train="$dir/train.h5" data.val="$dir/val.h5" $words \
        "$@" --ranks "$n" --json 2>"$dir/err" | sed 's/.*"peak_mb":\([0-9]*\.[0-9]*\).*/\1/')
    awk -v a="$planned" -v b="$used" 'BEGIN { d = a - b; exit !(a > 0 && d < 0.001 && d > -0.001) }' ||
        { echo "planned $planned MB, used $used MB"; return 1; }
}

for dtype in f32 bf16; do
    [ -z "$short" ] || [ $dtype = bf16 ] || continue
    d="dtype=$dtype model.dropout=0.1"
    [ $dtype = f32 ] || d="$d train.optimizer=muon"
    expect "one rank, $dtype" launch 1 one-$dtype $d
    want=$(hash_of one-$dtype)
    for split in "2 0 at_once" "2 1 at_once" "2 2 late" "4 0 late" "4 1 late" "4 2 at_once"; do
        n=${split%% *}
        streams=${split##* }
        zero=${split#* }
        zero=${zero% *}
        [ -z "$short" ] || [ "$split" = "2 1 at_once" ] || continue
        [ $n -le "$gpus" ] || continue
        name=$dtype-$n-$zero
        export TAPIR_EMU_STREAMS=$(echo $streams | tr _ ' ')
        expect "$name, streams $streams" launch $n $name $d dist.zero_stage=$zero
        unset TAPIR_EMU_STREAMS
        expect "$name: the same bits" same $name
        expect "$name: planned memory is used memory" planned_is_used $n $name $d dist.zero_stage=$zero
    done
done
[ -z "$short" ] || { echo "$checks checks, $failed failed"; exit $failed; }
checks=$((checks + 1))
launch 2 other $d seed=2
same other && bad "another seed has the same bits"

# passes of 8 samples on 2 ranks, ZeRO 2: ranks talk after each
expect "two passes" launch 2 passes $d dist.zero_stage=2 train.micro_batches=2
expect "two passes: the same bits" same passes

# the optimizer's state in bf16, which a checkpoint gathers from its owners
b="dtype=f32 train.optimizer_state_dtype=bf16"
expect "bf16 state" launch 1 state $b
want=$(hash_of state)
expect "bf16 state, 2 ranks, stopped" launch 2 state-2 $b dist.zero_stage=1 run.steps=2
expect "bf16 state, resumed on one" launch 1 state-2 $b --resume
expect "bf16 state: the same bits" same state-2

# reinforcement: 32 samples an update
"$tapir" task parity --min 4 --max 8 -n 200 -p 0.5 >"$dir/demos.jsonl"
expect "a model to begin with" "$tapir" train "$src/configs/tests/sft.yaml" run.dir="$dir/sft" run.steps=4 \
    data.train="$dir/demos.jsonl" data.val="$dir/demos.jsonl" eval.every=0 model.layers=1 model.channels=32 \
    model.heads=2 model.kv_heads=1 2>"$dir/err" >/dev/null
grpo() { # grpo RANKS NAME WORD…
    n=$1
    name=$2
    shift 2
    timeout 300 mpirun -np "$n" "$tapir" grpo "$src/configs/tests/grpo.yaml" device=cuda threads=1 \
        model.init_from="$dir/sft" run.dir="$dir/$name" run.steps=2 rl.prompts_per_step=8 rl.num_generations=4 \
        rl.max_completion_length=4 rl.eval_prompts=0 checkpoint.every=1 rl.reward_weights=program=1 \
        rl.reward_program='while read -r line; do echo ${#line}; done' "$@" >"$dir/err" 2>&1 # so that they differ
}
expect "grpo" grpo 1 grpo-1
want=$(hash_of grpo-1)
for n in 2 4; do
    [ $n -le "$gpus" ] || continue
    expect "grpo, $n ranks" grpo $n grpo-$n dist.zero_stage=$((n / 2 % 3))
    expect "grpo, $n ranks: the same bits" same grpo-$n
done

want=$(hash_of one-bf16)
# one rank is killed once there is a checkpoint; the others end, and another number goes on
for split in "2 0 4 2" "4 1 1 0"; do
    set -- $split
    [ "$gpus" -ge 4 ] || continue
    name=killed-$1-$3
    tries=0
    while :; do
        rm -rf "${dir:?}/$name"
        launch "$1" "$name" $d dist.zero_stage="$2" &
        pid=$!
        while [ ! -e "$dir/$name/checkpoints/step-00000002.h5" ] && kill -0 $pid 2>/dev/null; do sleep 0.02; done
        victim=$(pgrep -f "run.dir=$dir/$name " | while read -r p; do
            [ "$(cat /proc/"$p"/comm 2>/dev/null)" = mpirun ] || echo "$p"
        done | tail -n 1)
        kill -9 "${victim:-$pid}" 2>/dev/null
        wait $pid 2>/dev/null
        [ -e "$dir/$name/checkpoints/step-00000004.h5" ] || break
        tries=$((tries + 1)) # it was faster than this script
        [ $tries -lt 10 ] || { bad "no run could be killed in time"; break; }
    done
    expect "$name: resumed" launch "$3" "$name" $d dist.zero_stage="$4" --resume
    expect "$name: the same bits" same "$name"
done

expect "a recorded step is refused" refused 'train.cuda_graph is for one rank, there are 2' \
    launch 2 recorded dtype=f32 train.cuda_graph=true
[ $emulated = yes ] || { echo "$checks checks, $failed failed"; exit $failed; }
export TAPIR_EMU_DEVICES=1 # now they are the machine's
expect "more ranks than GPUs are refused" refused '2 ranks here, but 1 GPU: ' launch 2 crowded
export CUDA_VISIBLE_DEVICES=0
expect "ranks that were shown the same GPU are refused" refused 'ranks 0 and 1 have the same GPU: ' launch 2 crowded
unset CUDA_VISIBLE_DEVICES
export TAPIR_EMU_DEVICES=2
expect "a GPU for each" launch 2 spread $d
expect "a GPU for each: the same bits" same spread

echo "$checks checks, $failed failed"
[ $failed = 0 ]
