#!/bin/sh
# Beyond the demonstrated length: a model that has seen chains of 4 to 8 operations, with their steps, is rewarded
# on chains of 8 to 12, once for right answers only and once for every right step, and evaluated on both and on 13
# to 16. Guessing among ten digits has a pass@1 of 0.1 and a pass@16 of 0.81.
#   sh examples/longer.sh [SEED…]        (301)
# TAPIR names the program (build/tapir), OUT the folder for runs (runs/longer).
set -eu
cd "$(dirname "$0")/.."
tapir=${TAPIR:-build/tapir}
out=${OUT:-runs/longer}
[ -x "$tapir" ] || { echo "build first: cmake --preset release && cmake --build --preset release"; exit 1; }
[ $# -gt 0 ] || set -- 301
mkdir -p "$out"
"$tapir" task chain --min 4 --max 8 --scratchpad 1 --number 100000 >"$out/demos.jsonl"
# run NAME COMMAND…
run() {
    name=$1
    shift
    rm -rf "$out/$name"
    "$tapir" "$@" run.dir="$out/$name" >"$out/$name.txt" 2>"$out/$name.log" || { cat "$out/$name.log" >&2; exit 1; }
}
number() { echo "$1" | sed "s/.* $2=\([-0-9.]*\).*/\1/"; }
table() { # LABEL RUN SEED
    for range in "4 8" "8 12" "13 16"; do
        line=$("$tapir" grpo configs/grpo-longer.yaml --evaluate seed="$3" model.init_from="$out/$2" \
            rl.task_min="${range% *}" rl.task_max="${range#* }" 2>/dev/null)
        printf '  %-16s %2s to %-2s   greedy %.3f   pass@1 %.3f   pass@16 %.3f   length %4.1f\n' "$1" $range \
            "$(number "$line" eval_greedy)" "$(number "$line" eval_pass_1)" "$(number "$line" eval_pass_16)" \
            "$(number "$line" eval_length)"
    done
}
for seed in "$@"; do
    start=$(date +%s)
    run "sft-$seed" train configs/sft-longer.yaml seed="$seed" data.train="$out/demos.jsonl"
    run "answers-$seed" grpo configs/grpo-longer.yaml seed="$seed" model.init_from="$out/sft-$seed"
    run "steps-$seed" grpo configs/grpo-longer.yaml seed="$seed" model.init_from="$out/sft-$seed" \
        rl.reward_weights=exact_match=1,steps=1
    echo "seed $seed   (sft and both: $(($(date +%s) - start)) s)"
    table sft "sft-$seed" "$seed"
    table "right answers" "answers-$seed" "$seed"
    table "right steps" "steps-$seed" "$seed"
done
