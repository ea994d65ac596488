#!/bin/sh
# Models of real widths on the device beside the CPU: two steps' losses and norms of the gradient, for
# both families, head sizes 64 and 128, rows of 1024 tokens. For a GPU: on the CPU the kernels would
# take hours. $1: a tapir with CUDA, $2: the source folder, $3: "short" for widths that a CPU can.
set -u
tapir=$1
src=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. "$src/tests/lib/runs.sh"
failed=0
checks=0
context=1024 lines=4000
gpt2="model.family=gpt2 model.channels=768 model.heads=12 model.tie_embeddings=true"
llama="model.family=llama model.channels=1024 model.heads=8 model.kv_heads=2 model.ffn=2752"
if [ "${3:-}" = short ]; then
    context=40 lines=200
    gpt2="model.family=gpt2 model.channels=32 model.heads=2" llama="model.family=llama model.channels=32 model.heads=2"
fi
make_corpus "$tapir" "$dir" $lines

# run NAME WORD…: leaves "loss norm loss norm" of two steps in $got
run() {
    name=$1
    shift
    "$tapir" train "$src/configs/tests/cuda.yaml" run.dir="$dir/$name" data.train="$dir/train.h5" data.val= model.layers=2 \
        model.context=$context train.micro_batches=1 run.steps=2 log.every=1 train.warmup_steps=0 \
        train.learning_rate=0.0001 "$@" >/dev/null 2>"$dir/err" || { cat "$dir/err"; return 1; }
    got=$(sed -n 's/.*"train_loss":\([0-9.e+-]*\),.*"grad_norm":\([0-9.e+-]*\),.*/\1 \2/p' "$dir/$name/metrics.jsonl" | tr '\n' ' ')
}
# near "A…" "B…" TOLERANCE: four numbers each (what is none was not printed), within a share of the other
near() {
    printf '%s\n%s\n' "$1" "$2" | awk -v t="$3" 'NR == 1 { n = split($0, a) }
        NR == 2 { m = split($0, b); bad = n != m || n != 4
            for (i = 1; i <= n; i++) { d = (a[i] - b[i]) / b[i]; if (!(d <= t && -d <= t)) bad = 1 } }
        END { exit bad }'
}
near "1 2 3 4" "1 2 3 4.001" 0.001 && ! near "1 2 3 4" "1 2 3 4.01" 0.001 && ! near "1 2 3" "1 2 3 4" 0.1 ||
    { echo "the comparison does not work"; exit 1; }

for family in gpt2 llama; do
    [ $family = gpt2 ] && f=$gpt2 || f=$llama
    run $family-cpu $f || exit 1
    cpu=$got
    for how in "f32 0.0005" "bf16 0.02"; do
        dtype=${how% *}
        checks=$((checks + 1))
        if ! run $family-$dtype $f device=cuda dtype=$dtype || ! near "$got" "$cpu" "${how#* }"; then
            failed=$((failed + 1))
            echo "FAILED: $family, $dtype"
        fi
        echo "$family $dtype: losses and norms $got, on the CPU $cpu"
    done
done
echo "$checks checks, $failed failed"
[ $failed = 0 ]
