#!/bin/sh
# From nothing to a model that shows its steps, and what it takes to believe it: for each seed,
#   sft       supervised fine-tuning from random weights; a quarter of the demonstrations show steps
#   grpo      reinforcement of right answers
#   shuffled  the control: the same, with the rewards dealt out at random
#   more sft  the control: as much computation, spent on the demonstrations
#   stays     reinforcement goes on when all is solved
# and a table of accuracies on held-out prompts: greedy, and at temperature 1.
#   sh examples/reason.sh [SEED…]        (201 202 203 204 205)
# TAPIR names the program (build/tapir), OUT the folder for runs (runs/reason).
set -eu
cd "$(dirname "$0")/.."
tapir=${TAPIR:-build/tapir}
out=${OUT:-runs/reason}
[ -x "$tapir" ] || { echo "build first: cmake --preset release && cmake --build --preset release"; exit 1; }
[ $# -gt 0 ] || set -- 201 202 203 204 205
mkdir -p "$out"
"$tapir" task chain --number 100000 >"$out/demos.jsonl"
number() { echo "$1" | sed "s/.* $2=\([-0-9.]*\).*/\1/"; }
# run NAME COMMAND…: its last line, kept in NAME.txt
run() {
    name=$1
    shift
    rm -rf "$out/$name"
    "$tapir" "$@" run.dir="$out/$name" >"$out/$name.txt" 2>"$out/$name.log" ||
        { cat "$out/$name.log" >&2; exit 1; }
}
evaluate() { # of a run, on the held-out prompts of this seed
    "$tapir" grpo configs/grpo-chain8.yaml --evaluate seed="$1" model.init_from="$out/$2" 2>/dev/null
}
row() { # LABEL LINE
    printf '  %-10s greedy %.3f   T=1 %.3f   pass@16 %.3f   length %4.1f\n' "$1" \
        "$(number "$2" eval_greedy)" "$(number "$2" eval_pass_1)" "$(number "$2" eval_pass_16)" \
        "$(number "$2" eval_length)"
}
bad=0
expect() { # WHAT A OP B
    awk "BEGIN {exit !($2 $3 $4)}" || { echo "  not as promised: $1: $2 $3 $4"; bad=1; }
}
began=$(date +%s)
for seed in "$@"; do
    start=$(date +%s)
    g="configs/grpo-chain8.yaml seed=$seed"
    run "sft-$seed" train configs/sft-chain8.yaml seed="$seed" data.train="$out/demos.jsonl"
    before=$(evaluate "$seed" "sft-$seed")
    run "grpo-$seed" grpo $g model.init_from="$out/sft-$seed"
    after=$(cat "$out/grpo-$seed.txt")
    end=$(date +%s)
    run "shuffled-$seed" grpo $g model.init_from="$out/sft-$seed" rl.shuffle_rewards=true
    shuffled=$(cat "$out/shuffled-$seed.txt")
    run "more-$seed" train configs/sft-chain8.yaml seed="$((seed + 1000))" run.steps=1000 \
        data.train="$out/demos.jsonl" model.init_from="$out/sft-$seed"
    more=$(evaluate "$seed" "more-$seed")
    run "stays-$seed" grpo $g model.init_from="$out/grpo-$seed"
    stays=$(cat "$out/stays-$seed.txt")
    echo "seed $seed   (sft and grpo: $((end - start)) s)"
    row sft "$before"
    row grpo "$after"
    row shuffled "$shuffled"
    row "more sft" "$more"
    row stays "$stays"
    expect "greedy before" "$(number "$before" eval_greedy)" "<=" 0.35
    expect "greedy after" "$(number "$after" eval_greedy)" ">=" 0.95
    expect "gain at T=1" "$(number "$after" eval_pass_1) - $(number "$before" eval_pass_1)" ">=" 0.4
    expect "shuffled rewards" "$(number "$shuffled" eval_pass_1)" "<=" 0.45
    expect "more sft" "$(number "$more" eval_pass_1)" "<=" 0.45
    expect "stays solved" "$(number "$stays" eval_greedy)" ">=" 0.95
done
echo "$(($(date +%s) - began)) s for $# seeds"
exit $bad
