#!/bin/sh
# Decoding and reinforcement learning on the device: the log-probs of a training forward are those of
# decoding to the bit, in f32 and bf16, over the whole vocabulary or a set of it; replay and resume have
# the bits of the run; text and replies come out. $1: a tapir with CUDA, $2: the source folder, $3:
# "short" for the least of it (sanitizers).
set -u
tapir=$1
src=$2
short=${3:-}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
checks=0
expect() { # expect WHAT COMMAND…
    what=$1
    shift
    checks=$((checks + 1))
    "$@" >"$dir/out" 2>"$dir/err" || { echo "FAILED: $what"; tail -3 "$dir/err"; failed=$((failed + 1)); }
}
"$tapir" task parity --min 4 --max 8 -n 200 -p 0.5 >"$dir/demos.jsonl"
expect "a model to begin with" "$tapir" train "$src/configs/tests/sft.yaml" run.dir="$dir/sft" run.steps=8 \
    data.train="$dir/demos.jsonl" data.val="$dir/demos.jsonl" eval.every=0 model.layers=1 model.channels=32 \
    model.heads=2 model.kv_heads=1
grpo() { # grpo NAME KEY…
    name=$1
    shift
    "$tapir" grpo "$src/configs/tests/grpo.yaml" device=cuda model.init_from="$dir/sft" run.dir="$dir/$name" \
        run.steps=2 rl.prompts_per_step=2 rl.num_generations=3 rl.max_completion_length=6 rl.eval_prompts=0 \
        checkpoint.every=1 rl.reward_weights=program=1 \
        rl.reward_program='while read -r line; do echo ${#line}; done' "$@" # so that rewards differ
}
no_difference() { # all of COUNT steps were logged, and none with a difference
    [ "$(grep -c '"logp_diff/max":0[,}]' "$dir/$1/metrics.jsonl")" = "$2" ] &&
        [ "$(grep -c logp_diff/max "$dir/$1/metrics.jsonl")" = "$2" ]
}
same() { [ "$("$tapir" hash "$dir/$1" | cut -d' ' -f1)" = "$("$tapir" hash "$dir/$2" | cut -d' ' -f1)" ]; }
differ() { ! same "$1" "$2"; }

expect "f32" grpo f32 rl.num_iterations=2 rl.beta=0.05
expect "f32: no log-prob differs" no_difference f32 2
expect "LoRA, bf16" grpo lora dtype=bf16 lora.r=4 rl.num_iterations=2 rl.beta=0.05
expect "LoRA, bf16: no log-prob differs" no_difference lora 2
if [ "$short" != short ]; then
    expect "replay" "$tapir" replay "$dir/f32" 2
    expect "another seed" grpo seed rl.num_iterations=2 rl.beta=0.05 seed=3
    expect "another seed, other bits" differ f32 seed
    moving="rl.beta=0.05 rl.sync_ref_model=true rl.ref_model_sync_steps=1"
    expect "a moving reference" grpo straight $moving
    expect "one step of it" grpo stopped $moving run.steps=1
    expect "and the other" grpo stopped $moving --resume
    expect "stopped and resumed: the same bits" same straight stopped
    expect "a reference that stays, other bits" grpo stays rl.beta=0.05
    expect "a reference that stays, other bits" differ straight stays
    for kind in "80 " "90 rl.top_k=40"; do # the emulator's Hopper: its own attention must stand back
        sm=${kind%% *}
        export TAPIR_EMU_SM=$sm
        expect "bf16, sm_$sm" grpo bf16-$sm dtype=bf16 ${kind#* }
        expect "bf16, sm_$sm: no log-prob differs" no_difference bf16-$sm 2
        unset TAPIR_EMU_SM
    done
    for device in cpu cuda; do
        "$tapir" generate "$dir/sft" "12:" --device $device -t 0 -n 12 >"$dir/text-$device" 2>"$dir/err" ||
            { echo "FAILED: generate on $device: $(cat "$dir/err")"; failed=$((failed + 1)); }
        echo "12:" | "$tapir" chat "$dir/sft" --device $device -t 0 -n 4 >"$dir/reply-$device" 2>"$dir/err" ||
            { echo "FAILED: chat on $device: $(cat "$dir/err")"; failed=$((failed + 1)); }
    done
    expect "the likeliest text is the CPU's" cmp "$dir/text-cpu" "$dir/text-cuda"
    expect "and the likeliest reply" cmp "$dir/reply-cpu" "$dir/reply-cuda"
    expect "several texts" "$tapir" generate "$dir/f32" "1" --device cuda -c 3 -n 8 -k 20 -s 2
fi
expect "no such device" sh -c "'$tapir' generate '$dir/sft' x --device gpu 2>&1 | grep -q 'must be cpu or cuda'"
echo "$checks checks, $failed failed"
[ $failed = 0 ]
