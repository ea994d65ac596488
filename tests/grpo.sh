#!/bin/sh
# Fine-tuning and GRPO from end to end: the same bits for any threads, micro-batches and ranks,
# after kill -9 anywhere and resume, and in replay; log-probs of sampling and training that never
# differ; dynamic sampling with its account; wrong inputs in words. $1: tapir, $2: the source folder,
# $3: "short" for the parts that are worth a slow build.
set -eu
tapir=$1 src=$2 length=${3:-whole}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
bad=0 checks=0
expect() { # WHAT COMMAND…
    what=$1
    shift
    checks=$((checks + 1))
    "$@" >/dev/null 2>"$dir/err" || { echo "FAILED: $what"; tail -3 "$dir/err"; bad=$((bad + 1)); }
}
hash_of() { "$tapir" hash "$dir/$1" | cut -d' ' -f1; }
same() { [ "$(hash_of "$1")" = "$(hash_of "$2")" ]; }
other() { ! same "$1" "$2"; }
"$tapir" task parity --min 4 --max 8 -n 2000 -p 0.5 >"$dir/demos.jsonl"
"$tapir" task parity --min 4 --max 8 -n 64 -p 0.5 --held-out >"$dir/val.jsonl"
sft() { # NAME KEYS…
    name=$1
    shift
    rm -rf "$dir/$name"
    "$tapir" train "$src/configs/tests/sft.yaml" run.dir="$dir/$name" data.train="$dir/demos.jsonl" \
        data.val="$dir/val.jsonl" "$@"
}
grpo() {
    name=$1
    shift
    "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir="$dir/$name" model.init_from="$dir/sft" "$@"
}

# ---- fine-tuning --------------------------------------------------------------------------------
expect "sft" sft sft
expect "sft, packed" sft packed data.packing=documents
for keys in "threads=1" "train.micro_batches=4"; do
    expect "sft with $keys" sft again $keys
    expect "sft has the same bits with $keys" same sft again
    expect "packed sft with $keys" sft again data.packing=documents $keys
    expect "packed sft has the same bits with $keys" same packed again
done
expect "another seed" sft again seed=2
expect "has other bits" other sft again
rm -rf "$dir/again"
expect "half of it" sft again run.steps=60 train.lr_scheduler_type=constant
"$tapir" train "$src/configs/tests/sft.yaml" run.dir="$dir/again" data.train="$dir/demos.jsonl" \
    data.val="$dir/val.jsonl" train.lr_scheduler_type=constant --resume >/dev/null 2>&1
expect "whole" sft whole train.lr_scheduler_type=constant
expect "sft, stopped and resumed" same again whole
expect "eval on conversations" "$tapir" eval "$dir/sft" "$dir/val.jsonl"

# ---- the same bits ------------------------------------------------------------------------------
everything="rl.beta=0.05 rl.sync_ref_model=true rl.ref_model_sync_steps=2 rl.num_iterations=2
    rl.steps_per_generation=2 rl.entropy_coef=0.01 rl.top_entropy_quantile=0.6
    rl.mask_truncated_completions=true rl.overlong_buffer=4
    rl.reward_weights=exact_match=1,format=0.2,overlong=0.5"
truncated="rl.top_k=40 rl.top_p=0.95 rl.min_p=0.01 rl.temperature=0.9 rl.loss_type=dr_grpo
    rl.scale_rewards=none rl.objective=cispo rl.epsilon_high=5 rl.num_iterations=2"
drawing="rl.dynamic_sampling=true rl.max_draws=3 rl.importance_sampling_level=sequence
    rl.loss_type=grpo rl.advantage_estimator=rloo rl.scale_rewards=batch"
expect "sft of a model with a routed block" sft depths mod.capacity=0.5 mod.causal=aux_loss
routed="model.init_from=$dir/depths rl.beta=0.05 rl.num_iterations=2"
shared="$everything rl.share_prompts=true rl.top_k=40 rl.top_p=0.95"
keys_of() { # KIND
    case $1 in
    plain) echo ;;
    everything) echo $everything ;;
    truncated) echo $truncated ;;
    drawing) echo $drawing ;;
    routed) echo $routed ;;
    shared) echo $shared ;;
    esac
}
kinds="plain everything truncated drawing routed shared"
splits="threads=1 train.micro_batches=4 rl.lanes=3"
pauses="0.1 0.3 0.5 0.8"
counts="2 4"
[ "$length" = whole ] || kinds="plain truncated routed" splits=train.micro_batches=4 pauses=0.5 counts=2
for kind in $kinds; do
    keys=$(keys_of $kind)
    expect "$kind" grpo "$kind" $keys
    for other in $splits; do
        rm -rf "$dir/x"
        expect "$kind with $other" grpo x $keys $other
        expect "$kind has the same bits with $other" same "$kind" x
    done
    expect "replay of $kind" "$tapir" replay "$dir/$kind" 5
    expect "replay of $kind from the beginning" "$tapir" replay "$dir/$kind" 1 -j 1
    expect "$kind: no log-prob differs" sh -c "grep -o '\"logp_diff/max\":[^,]*' '$dir/$kind/metrics.jsonl' |
        grep -vc ':0\$' | grep -qx 0"
    expect "$kind: six steps were logged" sh -c "[ \$(grep -c logp_diff '$dir/$kind/metrics.jsonl') = 6 ]"
done
expect "kinds have other bits" other plain truncated
# prompts that are shared: the same log-probs and so the same loss, gradients that differ in the last bits
expect "plain with shared prompts" grpo once rl.share_prompts=true
first() { sed -n "/\"loss\":/{s/.*\"$2\":\([-0-9.e]*\).*/\1/p;q;}" "$dir/$1/metrics.jsonl"; }
expect "shared prompts: the same loss" [ "$(first plain loss)" = "$(first once loss)" ]
expect "shared prompts: the same gradient" awk "BEGIN {a = $(first plain grad_norm); b = $(first once grad_norm)
    exit !(a > 0 && (a - b) ^ 2 < 1e-10 * a * a)}"
expect "the seed matters" grpo x2 seed=5
expect "another seed, other bits" other plain x2

# a dump that was changed is noticed
sed 's/"advantage":-*[0-9.]*/"advantage":0.123/' "$dir/plain/rollouts/step-00000003.jsonl" >"$dir/changed"
cp "$dir/changed" "$dir/plain/rollouts/step-00000003.jsonl"
expect "replay notices another advantage" sh -c "'$tapir' replay '$dir/plain' 3 | grep -q 'they differ'"
head -5 "$dir/changed" >"$dir/plain/rollouts/step-00000003.jsonl"
expect "replay refuses a step that is none" sh -c "'$tapir' replay '$dir/plain' 1000000000000 2>&1 | grep -q 'has 6 steps'"
expect "replay notices a file cut short" sh -c "'$tapir' replay '$dir/plain' 3 2>&1 | grep -q 'ends before'"

# a policy that writes any bytes: the dump is still text
expect "random weights" "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir="$dir/noise" run.steps=1 \
    model.family=gpt2 model.layers=1 model.heads=1 model.channels=16 model.context=48 rl.max_completion_length=30
expect "its dump is UTF-8" iconv -f utf-8 -t utf-8 "$dir/noise/rollouts/step-00000001.jsonl"
expect "and would not be, had its bytes been written as they are" grep -q "$(printf '\357\277\275')" \
    "$dir/noise/rollouts/step-00000001.jsonl"

# ---- kill -9 at any moment, and resume ----------------------------------------------------------
long="$everything rl.dynamic_sampling=true run.steps=12"
expect "uninterrupted" grpo straight $long
for pause in $pauses; do
    rm -rf "$dir/killed"
    grpo killed $long >/dev/null 2>&1 &
    pid=$!
    sleep $pause
    pkill -9 -P $pid 2>/dev/null || kill -9 $pid 2>/dev/null || true
    wait $pid 2>/dev/null || true
    expect "resumed after $pause s" grpo killed $long --resume
    expect "killed after $pause s and resumed: the same bits" same straight killed
    expect "and the same metrics" sh -c "
        strip() { sed 's/\"\(timing_s[^\"]*\|step_time\)\":[^,}]*,*//g' \"\$1\"; }
        strip '$dir/straight/metrics.jsonl' >'$dir/a'; strip '$dir/killed/metrics.jsonl' >'$dir/b'
        cmp '$dir/a' '$dir/b'"
done

# ---- ranks --------------------------------------------------------------------------------------
leaks=${ASAN_OPTIONS-}
if command -v mpirun >/dev/null; then
    . "$src/tests/lib/runs.sh"
    for kind in $kinds; do
        keys=$(keys_of $kind)
        for ranks in $counts; do
            rm -rf "$dir/ranks"
            expect "$kind on $ranks ranks" mpirun -np $ranks "$tapir" grpo "$src/configs/tests/grpo.yaml" \
                run.dir="$dir/ranks" model.init_from="$dir/sft" $keys
            expect "$kind on $ranks ranks: the same bits" same "$kind" ranks
        done
    done
fi
export ASAN_OPTIONS="$leaks"

# ---- wrong inputs -------------------------------------------------------------------------------
says() { # TEXT KEYS…
    text=$1
    shift
    checks=$((checks + 1))
    rm -rf "$dir/wrong"
    if grpo wrong "$@" >"$dir/out" 2>"$dir/err"; then
        echo "FAILED: accepted: $*"
        bad=$((bad + 1))
    elif ! tail -1 "$dir/err" | grep -q "$text"; then
        echo "FAILED: $* said: $(cat "$dir/err")"
        bad=$((bad + 1))
    fi
}
says 'there is no task "chian"' rl.task=chian
says 'sizes go from' rl.task_max=1000
says 'there is no reward "correct"' rl.reward_weights=correct
says 'no number' rl.reward_weights=format=x
says 'needs rl.reward_program' rl.reward_weights=program=1
says 'needs a weight' rl.reward_program=cat
says 'must be 1' rl.repetition_penalty=1.1
says 'must divide' rl.steps_per_generation=5
says 'does not go with mod' rl.share_prompts=true mod.capacity=0.5 model.init_from=
says 'train.micro_batches: 5 does not divide the 32 rows of an update' train.micro_batches=5
says 'whole groups in every pass' rl.share_prompts=true train.micro_batches=16
says 'no power of two' rl.share_prompts=true rl.num_generations=3 train.micro_batches=2
says 'activation_checkpointing' rl.share_prompts=true model.activation_checkpointing=true
says 'cispo needs rl.epsilon_high' rl.objective=cispo
says 'more updates than can be counted' run.steps=1000000000000 rl.num_iterations=65536
says 'model.init_from: .*no such run' model.init_from="$dir/nothing"
says 'another value; leave the key out' model.layers=3
says 'dropout must be 0' model.dropout=0.1
printf 'no json\n' >"$dir/bad.jsonl"
says 'line 1: not a JSON object; a line is' rl.task="$dir/bad.jsonl"
mv "$dir/demos.jsonl" "$dir/good.jsonl"
for line in 'no json' '{"prompt":1,"response":"x"}' '{"prompt":"x"}' '{"messages":[{"role":"boss","content":"x"}]}' \
    '{"messages":{}}' '{"prompt":"a\u0000","response":"b"}'; do
    printf '%s\n' '{"prompt":"1:","response":"#1"}' "$line" >"$dir/demos.jsonl"
    checks=$((checks + 1))
    if sft wrong >/dev/null 2>"$dir/err" || ! grep -q 'line 2: ' "$dir/err"; then
        echo "FAILED: sft on $line said: $(cat "$dir/err")"
        bad=$((bad + 1))
    fi
done

# ---- rewards of a program of one's own ----------------------------------------------------------
cat >"$dir/reward.sh" <<'R'
while read -r line; do case $line in *'#'*) echo 1 ;; *) echo 0.5 ;; esac; done
R
program="rl.reward_weights=exact_match=1,program=0.5"
expect "a reward program" grpo program "$program" rl.reward_program="sh $dir/reward.sh" run.steps=2
expect "its rewards are logged" grep -q '"rewards/program/mean":' "$dir/program/metrics.jsonl"
says 'ended with code 3' "$program" rl.reward_program="exit 3"
says 'took more than 0.2 seconds' "$program" rl.reward_program="sleep 5" rl.reward_timeout=0.2
says 'wrote more than a line' "$program" rl.reward_program="while read -r x; do echo 1; echo 0; done"
says 'where a number should be' "$program" rl.reward_program="while read -r x; do echo good; done"
# own exercises from a file
{ "$tapir" task parity -m 4 -M 8 -n 60; "$tapir" task parity -m 4 -M 8 -n 20 --held-out; } >"$dir/own.jsonl"
expect "a task from a file" grpo own rl.task="$dir/own.jsonl" run.steps=2
echo "$checks checks, $bad failed"
exit $((bad > 0))
