#!/bin/sh
# Dense against Mixture-of-Depths at equal floating-point operations: four sizes, three budgets,
# three seeds, on the King James Bible (the text that quickstart.sh prepares, vocabulary of 1024) and
# on chain arithmetic with its steps. A run has as many steps as its budget pays for, by the count of
# `tapir plan`. Learning rates: the best of five for each task, model and size, by the mean of the
# seeds at the smallest budget, found in the same way for both. Writes OUT/results.jsonl, tables and a picture a
# task. Run it again and it goes on where it stopped.
#   sh bench/isoflop.sh [OUT]        (runs/isoflop; about an hour on two cores)
# TAPIR and DRAW name the programs (build/tapir, build/bench_isoflop), JOBS how many runs go at once.
set -eu
cd "$(dirname "$0")/.."
tapir=${TAPIR:-build/tapir}
draw=${DRAW:-build/bench_isoflop}
sizes="4:3:96 4:5:160 6:7:224 8:10:320" # layers:heads:channels, 0.5M to 10M parameters
rates="0.0005 0.001 0.002 0.004 0.008"
seeds="1 2 3"
budgets_of() { # TASK: the smallest first, 2.5 times apart; chains are learnt sooner
    case $1 in
    bible) echo "1.0e12 2.5e12 6.25e12" ;;
    chain) echo "4.0e11 1.0e12 2.5e12" ;;
    esac
}

number() { # KEY of a line of JSON
    sed "s/.*\"$1\":\([-+0-9.e]*\).*/\1/"
}
# one OUT TASK CAPACITY SIZE BUDGET RATE SEED: a run, its result in a file of one line
one() {
    out=$1 task=$2 capacity=$3 size=$4 budget=$5 rate=$6 seed=$7
    name=$task-$capacity-$(echo "$size" | tr : _)-$budget-$rate-$seed
    [ ! -s "$out/$name.json" ] || return 0
    layers=${size%%:*}
    channels=${size##*:}
    heads=${size#*:}
    heads=${heads%:*}
    case $task in
    bible) data="data.train=$out/train.h5 data.val=$out/val.h5" ;;
    chain) data="data.train=$out/chain.jsonl data.val=$out/chain-val.jsonl data.packing=documents" ;;
    esac
    set -- configs/bench/isoflop.yaml $data model.layers="$layers" model.heads="$heads" \
        model.channels="$channels" mod.capacity="$capacity"
    plan=$("$tapir" plan "$@" --json)
    step_flops=$(echo "$plan" | number step_flops)
    steps=$(awk "BEGIN {printf \"%d\", $budget / $step_flops + 0.5}")
    rm -rf "${out:?}/$name"
    "$tapir" train "$@" run.dir="$out/$name" run.steps="$steps" seed="$seed" train.learning_rate="$rate" \
        train.warmup_steps="$((steps / 10))" eval.every=0 log.every="$steps" >"$out/$name.log" 2>&1 ||
        { cat "$out/$name.log" >&2; return 1; }
    last=$(grep '"val_loss":' "$out/$name/metrics.jsonl" | tail -n 1)
    causal=null
    case $last in *val_loss_causal*) causal=$(echo "$last" | number val_loss_causal) ;; esac
    printf '{"step":%d,"task":"%s","capacity":%s,"layers":%d,"channels":%d,"parameters":%d,"budget":%s,' \
        "$steps" "$task" "$capacity" "$layers" "$channels" "$(echo "$plan" | number parameters)" "$budget" >"$out/$name.part"
    printf '"step_flops":%s,"learning_rate":%s,"seed":%d,"val_loss":%s,"val_loss_causal":%s}\n' \
        "$step_flops" "$rate" "$seed" "$(echo "$last" | number val_loss)" "$causal" >>"$out/$name.part"
    mv "$out/$name.part" "$out/$name.json"
    [ "$seed" = 1 ] || rm -rf "${out:?}/$name"
    echo "$name  $(echo "$last" | number val_loss)"
}
if [ "${1-}" = --one ]; then
    shift
    one "$@"
    exit
fi

out=${1:-runs/isoflop}
[ -x "$tapir" ] || { echo "build first: cmake --preset release && cmake --build --preset release"; exit 1; }
mkdir -p "$out"
if [ ! -e "$out/chain-val.jsonl" ]; then
    bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' >"$out/text.txt"
    "$tapir" prepare "$out/text.txt" --out "$out/train.h5" --val "$out/val.h5" --val-fraction 0.1 --vocab 1024
    "$tapir" task chain --number 200000 --scratchpad 1 >"$out/chain.jsonl"
    "$tapir" task chain --number 4000 --scratchpad 1 --held-out >"$out/chain-val.jsonl"
fi
# queue: lines "TASK CAPACITY SIZE BUDGET RATE SEED" from standard input, JOBS at a time
queue() {
    TAPIR=$tapir xargs -L 1 -P "${JOBS:-$(nproc)}" sh bench/isoflop.sh --one "$out"
}
# the rate with the lowest loss at the smallest budget
best_rate() { # TASK CAPACITY SIZE
    for rate in $rates; do
        for seed in $seeds; do
            number val_loss <"$out/$1-$2-$(echo "$3" | tr : _)-$smallest-$rate-$seed.json"
        done | awk -v rate="$rate" '{sum += $1} END {print sum, rate}'
    done | sort -g | head -n 1 | cut -d' ' -f2
}
for task in bible chain; do
    budgets=$(budgets_of "$task")
    smallest=${budgets%% *}
    for size in $sizes; do
        for capacity in 0 0.125; do
            for rate in $rates; do
                for seed in $seeds; do echo "$task $capacity $size $smallest $rate $seed"; done
            done
        done
    done | queue
    for budget in $budgets; do
        for seed in $seeds; do
            for size in $sizes; do
                for capacity in 0 0.125; do
                    echo "$task $capacity $size $budget $(best_rate "$task" "$capacity" "$size") $seed"
                done
            done
        done
    done >"$out/$task.queue"
    queue <"$out/$task.queue"
    while read -r t c s b r n; do
        cat "$out/$t-$c-$(echo "$s" | tr : _)-$b-$r-$n.json"
    done <"$out/$task.queue" >"$out/$task.jsonl"
done
cat "$out"/bible.jsonl "$out"/chain.jsonl >"$out/results.jsonl"
"$draw" "$out/results.jsonl" "$out"
