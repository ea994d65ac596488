#!/bin/sh
# Training on the device: the loss follows the CPU's, every run has the bits of the one before, a run
# that was killed goes on with the same bits, and the plan is the memory that is used.
# $1: a tapir with CUDA, $2: the source folder, $3: "short" for two short runs only (sanitizers).
set -u
tapir=$1
src=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. "$src/tests/lib/runs.sh"
. "$src/tests/cuda/expect.sh"
make_corpus "$tapir" "$dir" 400

# run NAME WORD…: trains, leaves the last line in $last
run() {
    name=$1
    shift
    last=$("$tapir" train "$src/configs/tests/cuda.yaml" run.dir="$dir/$name" data.train="$dir/train.h5" \
        data.val="$dir/val.h5" "$@" 2>"$dir/err") || { cat "$dir/err"; return 1; }
}
evaluates() { # evaluates DEVICE NAME: leaves the loss in $got
    got=$("$tapir" eval "$dir/$2" --device "$1" --json 2>"$dir/err") || return 1
    got=$(echo "$got" | sed 's/.*"loss":\([0-9.]*\).*/\1/')
}
loss_of() { echo "$last" | sed 's/.*train_loss=\([0-9.]*\).*/\1/'; }
hash_of() { "$tapir" hash "$dir/$1" | cut -d' ' -f1; }
near() { # near A B TOLERANCE
    awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a > 0 && d <= t) }'
}

if [ "${3:-}" = short ]; then
    expect "GPT-2 in bf16" run short1 device=cuda dtype=bf16 run.steps=2 model.dropout=0.1
    expect "Llama in f32" run short2 model.family=llama device=cuda run.steps=2
    echo "$checks checks, $failed failed"
    [ $failed = 0 ]
    exit
fi

for family in gpt2 llama routed; do
    f="model.family=$family"
    [ $family = routed ] && f="model.family=llama mod.capacity=0.25 data.packing=documents mod.segments=document"
    expect "$family on the CPU" run "cpu-$family" $f
    cpu=$(loss_of)
    for dtype in f32 bf16; do
        d="device=cuda dtype=$dtype"
        name=$family-$dtype
        expect "$name" run "$name" $f $d
        gpu=$(loss_of)
        [ $dtype = f32 ] && tolerance=0.0005 || tolerance=0.01
        expect "$name: loss $gpu, on the CPU $cpu" near "$gpu" "$cpu" $tolerance
        expect "evaluation of $name on the CPU" evaluates cpu "$name"
        cpu_loss=$got
        expect "evaluation of $name on the device" evaluates cuda "$name"
        expect "$name: evaluated, $got, on the CPU $cpu_loss" near "$got" "$cpu_loss" $tolerance
    done
done

# adapters beside frozen weights: GPT-2's MLP as ops apart, the head without its gradient
f="model.family=gpt2 model.init_from=$dir/cpu-gpt2 lora.r=4"
expect "LoRA on the CPU" run cpu-lora $f
cpu=$(loss_of)
for dtype in f32 bf16; do
    expect "LoRA in $dtype" run lora-$dtype $f device=cuda dtype=$dtype
    gpu=$(loss_of)
    [ $dtype = f32 ] && tolerance=0.0005 || tolerance=0.01
    expect "LoRA in $dtype: loss $gpu, on the CPU $cpu" near "$gpu" "$cpu" $tolerance
done
expect "LoRA, half of it" run lora-half $f device=cuda dtype=bf16 run.steps=6 train.lr_scheduler_type=constant
expect "LoRA, the other half" run lora-half $f device=cuda dtype=bf16 train.lr_scheduler_type=constant --resume
expect "LoRA, all of it" run lora-whole $f device=cuda dtype=bf16 train.lr_scheduler_type=constant \
    train.cuda_graph=true
expect "LoRA, stopped and resumed: the same bits" [ "$(hash_of lora-half)" = "$(hash_of lora-whole)" ]

# the same bits again; after a kill; with other values the hash must differ
w="model.family=gpt2 device=cuda dtype=bf16 model.dropout=0.1"
expect "dropout" run again1 $w
expect "dropout" run again2 $w
expect "run to run" [ "$(hash_of again1)" = "$(hash_of again2)" ]
expect "another seed" run other $w seed=2
expect "another seed has other bits" [ "$(hash_of again1)" != "$(hash_of other)" ]
killed_at "$dir/killed/checkpoints/*4.h5" "$tapir" train "$src/configs/tests/cuda.yaml" run.dir="$dir/killed" \
    data.train="$dir/train.h5" data.val="$dir/val.h5" $w
expect "resumed" run killed $w --resume
expect "kill -9 and resume" [ "$(hash_of killed)" = "$(hash_of again1)" ]

# recomputation changes nothing but the memory
expect "recomputation" run recomputed $w model.activation_checkpointing=true
expect "recomputation has the same bits" [ "$(hash_of recomputed)" = "$(hash_of again1)" ]

# a step that is recorded once and replayed: other data each time, validations in between, a kill
for f in "model.family=gpt2 dtype=bf16 train.micro_batches=1 eval.every=3 gemm=cublaslt" \
    "model.family=llama data.packing=documents model.activation_checkpointing=true" \
    "model.family=gpt2 mod.capacity=0.25 mod.causal=threshold eval.every=3"; do
    g="$f device=cuda run.steps=7 train.lr_scheduler_type=constant"
    rm -rf "$dir/launched" "$dir/replayed"
    expect "launched: $f" run launched $g
    expect "replayed: $f" run replayed $g train.cuda_graph=true run.steps=5
    expect "replayed, resumed: $f" run replayed $g train.cuda_graph=true --resume
    expect "replayed steps have the bits of launched ones: $f" [ "$(hash_of replayed)" = "$(hash_of launched)" ]
done

# micro-batches of 8 samples and more are cut out of one tree (TP_CUDA_LEAF)
m="model.family=llama device=cuda dtype=bf16 train.batch=16 run.steps=3"
expect "one pass" run whole $m train.micro_batches=1
expect "two passes" run halves $m train.micro_batches=2
expect "two passes have the bits of one" [ "$(hash_of whole)" = "$(hash_of halves)" ]

expect "the head's loss with room for its logits" run roomy $m train.micro_batches=1 train.loss_chunk_size=4096
expect "that room changes no bit" [ "$(hash_of whole)" = "$(hash_of roomy)" ]

for who in own cublaslt; do
    expect "gemm: $who" run $who $m train.micro_batches=1 gemm=$who
    expect "gemm: $who, two passes" run $who-halves $m train.micro_batches=2 gemm=$who
    expect "gemm: $who: two passes have the bits of one" [ "$(hash_of $who)" = "$(hash_of $who-halves)" ]
done

json=$("$tapir" bench step "$src/configs/tests/cuda.yaml" device=cuda dtype=bf16 model.vocab=300 --steps 2 \
    --warmup 1 --json 2>"$dir/err") || bad "bench: $(cat "$dir/err")"
number() { echo "$json" | sed "s/.*\"$1\":\([0-9.]*\).*/\1/"; }
expect "planned memory is used memory: $json" near "$(number planned_mb)" "$(number pool_peak_mb)" 0
json=$("$tapir" bench step "$src/configs/tests/cuda.yaml" device=cuda dtype=bf16 model.vocab=300 --steps 3 \
    --warmup 2 train.cuda_graph=true --json 2>"$dir/err") || bad "bench: $(cat "$dir/err")"
expect "the same, replayed: $json" near "$(number planned_mb)" "$(number pool_peak_mb)" 0

# too large: one sentence with what takes how much, before anything is trained
checks=$((checks + 1))
if run large device=cuda train.batch=4096 model.channels=4096 model.heads=64 model.layers=64 >/dev/null; then
    bad "a run that needs terabytes began"
elif ! grep -q 'the GPU has .*activations.*train.micro_batches' "$dir/err"; then
    bad "no sentence about memory: $(cat "$dir/err")"
fi

echo "$checks checks, $failed failed"
[ $failed = 0 ]
