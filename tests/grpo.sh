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
    medium) echo rl.beta=0.05 float32_matmul_precision=medium ;;
    lora) echo $lora ;;
    esac
}
lora="lora.r=4 train.learning_rate=0.01 rl.beta=0.05 rl.num_iterations=2"
kinds="plain everything truncated drawing routed shared medium lora"
splits="threads=1 train.micro_batches=4 rl.lanes=3"
pauses="0.1 0.3 0.5 0.8"
counts="2 4"
[ "$length" = whole ] || kinds="plain truncated routed lora" splits=train.micro_batches=4 pauses=0.5 counts=2
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

# ids that the tokenizer lacks are drawn, and learnt from, as any others
expect "a padded vocabulary" "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir="$dir/padded" run.steps=2 model.vocab=1000 \
    model.family=gpt2 model.layers=1 model.heads=1 model.channels=16 model.context=48 rl.log_completions=2
expect "its completions have some" grep -q "$(printf '\357\277\275')" "$dir/padded/rollouts/step-00000001.jsonl"
expect "replay of a padded vocabulary" "$tapir" replay "$dir/padded" 2

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

# ---- LoRA ---------------------------------------------------------------------------------------
expect "LoRA, half of it" grpo half $lora run.steps=3
expect "LoRA, the other half" grpo half $lora run.steps=6 --resume
expect "LoRA, stopped and resumed: the same bits" same lora half
expect "LoRA, a step" grpo begins lora.r=4 rl.beta=0.05 run.steps=1
expect "LoRA: the reference is what it begins with" sh -c "[ '$(first begins kl)' = 0 ]"
expect "LoRA: and stays so" sh -c "grep -o '\"kl\":[^,]*' '$dir/lora/metrics.jsonl' | tail -1 | grep -q ':0\.'"
expect "a run that goes on with the adapters" "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir="$dir/more" \
    model.init_from="$dir/lora" run.steps=1 rl.beta=0.05
expect "whose reference has them, too" sh -c "[ '$(first more kl)' = 0 ]"
expect "a reference that moves" grpo moves $lora rl.sync_ref_model=true rl.ref_model_sync_steps=2
expect "moves" other lora moves

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
refuses() { # TEXT COMMAND…
    text=$1
    shift
    checks=$((checks + 1))
    if "$@" >"$dir/out" 2>"$dir/err"; then
        echo "FAILED: accepted: $*"
        bad=$((bad + 1))
    elif ! grep -v '^Try ' "$dir/err" | tail -1 | grep -q -- "$text"; then
        echo "FAILED: $* said: $(cat "$dir/err")"
        bad=$((bad + 1))
    fi
}
says() { # TEXT KEYS…
    text=$1
    shift
    rm -rf "$dir/wrong"
    refuses "$text" grpo wrong "$@"
}
tells() { # TEXT COMMAND…: it goes well, and a line is the text
    text=$1
    shift
    checks=$((checks + 1))
    if ! "$@" >"$dir/out" 2>"$dir/err" || ! cat "$dir/out" "$dir/err" | grep -qx -- "$text"; then
        echo "FAILED: $* said: $(cat "$dir/out" "$dir/err")"
        bad=$((bad + 1))
    fi
}
says 'there is no task "chian"' rl.task=chian
says 'sizes go from' rl.task_max=1000
says 'there is no reward "correct"' rl.reward_weights=correct
says 'no number' rl.reward_weights=format=x
says 'needs rl.reward_program' rl.reward_weights=program=1
says 'needs a weight' rl.reward_program=cat
says 'needs a weight' rl.overlong_buffer=2
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
expect "a refused start leaves no folder" test ! -e "$dir/wrong"
says 'another value; leave the key out' model.layers=3
says 'dropout must be 0' model.dropout=0.1
printf 'no json\n' >"$dir/bad.jsonl"
says 'line 1: not a JSON object; a line is' rl.task="$dir/bad.jsonl"
for key in epsilon epsilon_high delta clip_ratio_c beta entropy_coef; do
    says "command line: rl.$key must be a number .* and <= 1000000000" rl.$key=1e38
done
says 'rl.temperature must be a number >= 0.001' rl.temperature=1e-38
says 'rl.max_completion_length is 32: it must be less than model.context' rl.max_completion_length=32
tells 'warning: a prompt of . tokens in a model.context of 32 leaves room for 2., not for rl.max_completion_length = 31' \
    grpo long rl.max_completion_length=31 run.steps=1
for weights in exact_match=0 exact_match=0,format=-0; do says 'every weight is 0' rl.reward_weights=$weights; done
says 'the weight of format must lie between' rl.reward_weights=exact_match=1,format=-1e308
says 'overlong needs rl.overlong_buffer' rl.reward_weights=overlong=1
says 'rl.overlong_buffer is 13, but rl.max_completion_length only 12' rl.overlong_buffer=13
refuses 'evaluate needs rl.eval_prompts' grpo none --evaluate rl.eval_prompts=0
refuses 'leave out --resume' grpo none --evaluate --resume
tells 'done: run=none step=0 reward=none eval_greedy=[0-9.]* eval_pass_1=[0-9.]* eval_length=[0-9.]* eval_reward=[0-9.]* s_per_step=0.000' \
    grpo none --evaluate rl.eval_samples=1
tells 'step 0/6  held out: reward [0-9.]*  greedy [0-9.]*  pass@1 [0-9.]*  length [0-9.]*' grpo none --evaluate rl.eval_samples=1
tells 'step 0/6  .*  pass@1 [0-9.]*  pass@2 [0-9.]*  length .*' grpo none --evaluate rl.eval_samples=2

# ---- keys of the other program ------------------------------------------------------------------
tells 'warning: data.val, train.z_loss, sample.every are not used by grpo' grpo unused run.steps=1 \
    data.val=x.h5 data.packing=stream train.z_loss=0.1 train.weight_decay=0.1 sample.every=5
tells 'warning: rl.beta is not used by train' sft unused rl.beta=0.1 rl.top_k=0 train.z_loss=0.1 run.steps=2
tells 'done: run=.*/used step=1 .*' "$tapir" grpo "$src/configs/grpo-chain8.yaml" model.init_from="$dir/sft" \
    run.dir="$dir/used" run.steps=1 train.warmup_steps=0 rl.eval_prompts=0 train.batch=16
cp "$dir/err" "$dir/told"
expect "a config whose keys are used, or at their defaults, warns of nothing" sh -c "! grep ^warning '$dir/told'"

refuses 'the run ends with 5 skipped updates, as gradients were not finite: its weights are those of update 1' \
    "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir="$dir/broken" run.steps=6 model.family=llama model.layers=1 model.heads=1 \
    model.channels=16 model.context=48 rl.max_completion_length=30 rl.reward_weights=length=1 rl.eval_prompts=0 \
    train.learning_rate=1e30 train.warmup_steps=0 train.max_bad_steps=0
expect "nobody says that it is done" sh -c "! grep -q '^done' '$dir/out'"

# ---- what cannot be gone on with ----------------------------------------------------------------
cp "$dir/truncated/config.yaml" "$dir/before.yaml"
refuses 'run.steps is 2, but .*/truncated is at step 6 already' grpo truncated $truncated run.steps=2 --resume
expect "its config stays" cmp "$dir/before.yaml" "$dir/truncated/config.yaml"
expect "and so does replay" "$tapir" replay "$dir/truncated" 6
tells 'going on from step 6 of 6' grpo truncated $truncated --resume
refuses 'run.steps is 60, but .*/packed is at step 120 already' "$tapir" train "$dir/packed/config.yaml" run.steps=60 --resume
refuses 'packed is a run of .tapir train' grpo packed --resume
refuses 'truncated is a run of .tapir grpo' "$tapir" train "$src/configs/tests/sft.yaml" run.dir="$dir/truncated" \
    data.train="$dir/demos.jsonl" --resume
expect "a model of another shape" sft narrow model.channels=16 run.steps=2
refuses 'truncated was trained with another config: "init_from: .*/sft"" there' grpo truncated $truncated \
    model.init_from="$dir/narrow" run.steps=7 --resume
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
# on held-out prompts, too: a right answer is worth 1, and the program gives each half of 2
scored() { # KEYS…: eval_reward and eval_pass_1 of an evaluation
    grpo none --evaluate rl.eval_samples=3 rl.reward_weights=exact_match=1,program=0.5 \
        rl.reward_program="while read -r x; do echo 2; done" "$@" 2>/dev/null |
        sed -n 's/.*eval_pass_1=\([0-9.]*\).*eval_reward=\([0-9.]*\) .*/\1 \2/p'
}
scored threads=1 >"$dir/scores"
expect "held-out rewards" awk '{ good = $1 > 0 && $2 > $1 && ($2 - $1 - 1) ^ 2 < 1e-10 } END { exit !good }' "$dir/scores"
expect "the same for any number of threads" [ "$(scored threads=2)" = "$(cat "$dir/scores")" ]
expect "held-out rewards are logged" grep -q '"eval/reward":.*"eval/rewards/program/mean":' "$dir/program/metrics.jsonl"
says 'ended with code 3' "$program" rl.reward_program="exit 3"
says 'took more than 0.2 seconds' "$program" rl.reward_program="sleep 5" rl.reward_timeout=0.2
says 'wrote more than a line' "$program" rl.reward_program="while read -r x; do echo 1; echo 0; done"
says 'where a number should be' "$program" rl.reward_program="while read -r x; do echo good; done"
for answer in inf -inf 1e300; do
    says "the program .* answered \"$answer\": a reward must lie between" "$program" \
        rl.reward_program="while read -r x; do echo $answer; done"
done
tells 'the last 10 steps had nothing to learn from: .*(mean 1)' "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir="$dir/alike" \
    model.init_from="$dir/sft" rl.reward_weights=program=1 rl.reward_program="while read -r x; do echo 1; done" run.steps=10 rl.eval_prompts=0
says 'answered nan to all of them' rl.reward_weights=program=1 rl.reward_program="while read -r x; do echo nan; done"
# own exercises from a file
{ "$tapir" task parity -m 4 -M 8 -n 60; "$tapir" task parity -m 4 -M 8 -n 20 --held-out; } >"$dir/own.jsonl"
expect "a task from a file" grpo own rl.task="$dir/own.jsonl" run.steps=2
says 'steps compares with solutions' rl.task="$dir/own.jsonl" rl.reward_weights=exact_match=1,steps=1
says 'no held-out prompts: .* in all; rl.eval_prompts=0 does without' rl.task="$dir/good.jsonl"
printf '{"prompt":"%s:"}\n' 0 1 10 >"$dir/unanswered.jsonl"
says 'line 1: there is no "answer"; a line is .*; without an answer only' rl.task="$dir/unanswered.jsonl" rl.eval_prompts=0
refuses 'line 1: there is no "answer"; a line is .*"}$' "$tapir" task "$dir/unanswered.jsonl"
unanswered="rl.task=$dir/unanswered.jsonl rl.reward_weights=format=0.1,program=1 run.steps=1"
says 'line 1: there is no "answer"' $unanswered rl.reward_program="sh $dir/reward.sh"
expect "prompts without answers, for a program" grpo unanswered $unanswered rl.reward_program="sh $dir/reward.sh" rl.eval_prompts=0
{ "$tapir" task parity --min 4 --max 8 -n 40 && head -3 "$dir/val.jsonl"; } | sed 's/"response":"[^"]*",//' >"$dir/few.jsonl"
tells "evaluations ask the 3 held-out prompts of .*, not 200" "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir="$dir/few" model.init_from="$dir/sft" rl.task="$dir/few.jsonl" \
    rl.eval_prompts=200 run.steps=1

# ---- what a run began with may change -----------------------------------------------------------
constant="train.lr_scheduler_type=constant rl.beta=0.5"
cp -r "$dir/sft" "$dir/base"
expect "a run with a reference" grpo kept $constant run.steps=4
rm -rf "$dir/gone"
expect "half of it, from a copy" grpo gone $constant run.steps=2 model.init_from="$dir/base"
rm -rf "$dir/base"
expect "goes on without the copy" grpo gone $constant run.steps=4 model.init_from="$dir/base" --resume
expect "and ends where the whole did" same kept gone
expect "replays without the copy" "$tapir" replay "$dir/gone" 4
expect "a task from a file, twice" grpo twice rl.task="$dir/own.jsonl" run.steps=1
"$tapir" task parity -m 4 -M 8 -n 61 >>"$dir/own.jsonl"
refused() { # TEXT COMMAND…
    text=$1
    shift
    "$@" >"$dir/out" 2>"$dir/err2" && return 1
    grep -q "$text" "$dir/err2" || { cat "$dir/err2" >&2; return 1; }
}
expect "another file is another task" refused 'another rl.task' \
    grpo twice rl.task="$dir/own.jsonl" run.steps=2 --resume
# ---- prompts as in fine-tuning ------------------------------------------------------------------
chatml="data.chat_template=chatml model.context=96"
expect "sft with a template" sft talks $chatml run.steps=4 data.train="$dir/good.jsonl"
expect "samples answer a turn" sft sampled $chatml run.steps=2 sample.every=2 sample.tokens=4 sample.prompt=101: data.train="$dir/good.jsonl"
expect "with the template's marks" grep -q '^<|im_start|>user$' "$dir/sampled/samples.txt"
expect "grpo with the same" grpo chatty model.init_from="$dir/talks" $chatml run.steps=2
expect "prompts are turns" grep -q '"prompt":"<|im_start|>user\\n[01]*:<|im_end|>\\n<|im_start|>assistant' \
    "$dir/chatty/rollouts/step-00000001.jsonl"
expect "which replay reads" "$tapir" replay "$dir/chatty" 2
# ---- a longer schedule --------------------------------------------------------------------------
expect "two steps" grpo longer train.lr_scheduler_type=linear run.steps=2
expect "replays" "$tapir" replay "$dir/longer" 2
expect "four steps" grpo longer train.lr_scheduler_type=linear run.steps=4 --resume
expect "the first ones had another schedule" refused 'was trained with the learning rate' "$tapir" replay "$dir/longer" 2
echo "$checks checks, $bad failed"
exit $((bad > 0))
