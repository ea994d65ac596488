#!/bin/sh
# What the world does to a program: full disks, signals, corpora of next to nothing, files that change
# under a run, nesting without end, clocks that leap. One sentence, the right exit code, and what was
# there before is intact: a run that was broken off ends with the bits of one that was not.
# $1: the tapir binary, $2: the source folder, $3: "short" for a slow build. TAPIR_DEEP: megabytes of
# the nested files (50); 1000 is a good night's test.
set -u
tapir=$(realpath "$1") src=$(realpath "$2") length=${3:-whole}
preload=$(dirname "$tapir")/libclock_jumps.so
deep=${TAPIR_DEEP:-50}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
failed=0 checks=0
fail() {
    failed=$((failed + 1))
    echo "FAILED: $*"
}
expect() { # WHAT COMMAND…
    what=$1
    shift
    checks=$((checks + 1))
    "$@" >out 2>err </dev/null || { fail "$what"; tail -3 err; }
}
# said CODE PATTERN WHAT: $code is CODE, and $text has one sentence of the program, with PATTERN
said() {
    checks=$((checks + 1))
    if [ "$code" != "$1" ] || [ "$(echo "$text" | grep -c '^tapir [a-z]*: ')" != 1 ] ||
        ! echo "$text" | grep '^tapir [a-z]*: ' | grep -q -- "$2"; then
        fail "$3: wanted exit $1 and one sentence with \"$2\"; got exit $code:"
        echo "$text" | tail -5 | cut -c1-300 | sed 's/^/  /'
    fi
}
says() { # CODE PATTERN COMMAND…
    want=$1 pattern=$2
    shift 2
    text=$("$@" 2>&1 >/dev/null </dev/null)
    code=$?
    said "$want" "$pattern" "$*"
}
# what is said goes through a pipe, as a file would be cut as well
limited() { # BLOCKS COMMAND…: no file may grow above so many blocks of 512 bytes
    (
        ulimit -f "$1"
        shift
        "$@"
    )
}
hash_of() { "$tapir" hash "$1" | cut -d' ' -f1; }
same() { [ -n "$(hash_of "$1")" ] && [ "$(hash_of "$1")" = "$(hash_of "$2")" ]; }
other() { ! same "$1" "$2"; }
none() { # no file of these names
    for f in "$@"; do [ ! -e "$f" ] || { echo "$f is there" >&2 && return 1; }; done
}
blocks() { echo $((($(wc -c <"$1") + 511) / 512)); }
steady() { # metrics without what the clock says
    sed -E 's/,"(tokens_per_s|mfu|memory_mb|step_time|timing_s[^"]*)":[^,}]*//g' "$1"
}
same_metrics() {
    steady "$1" >a && steady "$2" >b && cmp a b
}

i=0
while [ $i -lt 400 ]; do echo "line $i of a text that is long enough, with word$((i % 17))"; i=$((i + 1)); done >text.txt
expect "prepare" "$tapir" prepare text.txt --out train.h5 --val val.h5 --vocab 300
train() { # FOLDER KEYS…
    run=$1
    shift
    exec "$tapir" train "$src/configs/tests/tiny.yaml" run.dir="$run" data.train=train.h5 data.val=val.h5 threads=1 \
        train.lr_scheduler_type=constant eval.every=1000000 checkpoint.best=false "$@"
}
grpo() {
    run=$1
    shift
    exec "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir="$run" threads=1 model.family=gpt2 model.layers=1 \
        model.heads=1 model.channels=16 model.context=48 rl.entropy_coef=0.01 eval.every=1000000 "$@"
}
apart() { ("$@"); } # train and grpo replace the shell that they run in, so that $! is the program

# ---- a full disk --------------------------------------------------------------------------------
expect "the corpora before" "$tapir" prepare text.txt --out old.h5 --val rest.h5 --tokenizer bytes
before=$(cat old.h5 rest.h5 | sha256sum)
size=$(blocks train.h5)
for room in 0 1 9 $((size / 2)) $((size - 1)); do
    says 1 'File too large' limited $room "$tapir" prepare text.txt --out x.h5 --val y.h5 --vocab 300
    expect "prepare with $room blocks leaves nothing behind" none x.h5 x.h5.tmp y.h5 y.h5.tmp
    says 1 'File too large' limited $room "$tapir" prepare text.txt --force --out old.h5 --val rest.h5 --vocab 300
    expect "prepare --force with $room blocks leaves the old corpora" [ "$(cat old.h5 rest.h5 | sha256sum)" = "$before" ]
done
# room for the validation corpus, not for the other: the two of before stay a pair
i=0
while [ $i -lt 300 ]; do cat text.txt; i=$((i + 1)); done >long.txt
says 1 'File too large' limited $((size + 9)) "$tapir" prepare long.txt --force --out old.h5 --val rest.h5 --tokenizer bytes --val-fraction 0.001
expect "prepare --force never leaves one of each age" [ "$(cat old.h5 rest.h5 | sha256sum)" = "$before" ]
for program in train grpo; do
    rm -rf whole broken
    expect "$program, undisturbed" apart $program whole run.steps=6
    expect "$program, its first two steps" apart $program broken run.steps=2
    expect "$program: the next steps change the weights" other whole broken
    first=$(sha256sum <broken/checkpoints/step-00000002.h5)
    size=$(blocks whole/checkpoints/step-00000004.h5)
    for room in $((size / 2)) $((size - 9)) $((size - 1)); do
        says 1 "step-00000004.h5.*File too large" limited $room $program broken run.steps=6 --resume
        expect "$program: the good checkpoint stays" [ "$(sha256sum <broken/checkpoints/step-00000002.h5)" = "$first" ]
        expect "$program: no half checkpoint" none broken/checkpoints/step-00000004.h5 broken/checkpoints/step-00000004.h5.tmp
    done
    expect "$program, with room again" apart $program broken run.steps=6 --resume
    expect "$program after a full disk: the same bits" same whole broken
    # the log grows over the limit, a checkpoint does not; in a time that no machine's speed shifts
    keys="log.every=1 checkpoint.every=50" more=20
    [ $program = train ] || keys="log.every=1 checkpoint.every=10 rl.dump=false" more=3
    rm -rf whole broken
    says 1 'metrics.jsonl: cannot write' limited $((size + 8)) $program broken run.steps=100000 $keys
    expect "$program: the log has whole lines" [ "$(tail -c 1 broken/metrics.jsonl | wc -l)" = 1 ]
    steps=$(($(grep -c '"loss"\|"train_loss"' broken/metrics.jsonl) + more))
    expect "$program: checkpoints were made before" same broken broken
    expect "$program, undisturbed to step $steps" apart $program whole run.steps=$steps $keys
    expect "$program, with room for the log" apart $program broken run.steps=$steps $keys --resume
    expect "$program after a full log: the same bits" same whole broken
    expect "$program after a full log: the same metrics" same_metrics whole/metrics.jsonl broken/metrics.jsonl
done

# ---- signals ------------------------------------------------------------------------------------
endless="run.steps=1000000 log.every=1 checkpoint.every=1000000"
logged() { [ -f broken/metrics.jsonl ] && [ "$(wc -l <broken/metrics.jsonl)" -ge 3 ]; }
begin() { # PROGRAM KEYS…: in the background, until it has logged some steps
    rm -rf broken
    program=$1
    shift
    $program broken $endless "$@" >out 2>err </dev/null &
    pid=$!
    until logged || ! kill -0 $pid 2>/dev/null; do sleep 0.02; done
}
ended() {
    wait $pid
    code=$?
    text=$(cat err)
}
# goes_on PROGRAM WHAT STEP: from STEP some more steps, as a run that was never broken off
goes_on() {
    rm -rf whole
    expect "$2: undisturbed to step $(($3 + 4))" apart $1 whole run.steps=$(($3 + 4)) log.every=1 checkpoint.every=1000000
    expect "$2: resumed" apart $1 broken run.steps=$(($3 + 4)) log.every=1 checkpoint.every=1000000 --resume
    expect "$2: the same bits" same whole broken
}
interrupted() { # WHAT: exit 130, and the step of the last line
    checks=$((checks + 1))
    at=$(echo "$text" | sed -n '$s/^interrupted at step \([0-9]*\) of .*--resume goes on$/\1/p')
    [ $code = 130 ] && [ -n "$at" ] || { fail "$1: exit $code: $(echo "$text" | tail -1)"; at=0; }
}
for program in train grpo; do
    for signal in INT TERM HUP; do
        begin $program
        kill -s $signal $pid
        ended
        interrupted "$program, SIG$signal"
        expect "$program, SIG$signal: the checkpoint is of that step" [ "$("$tapir" hash broken | cut -d' ' -f4)" = "$at" ]
        goes_on $program "$program, SIG$signal" "$at"
    done
    # twice: at once, from whatever it does; at worst as after kill -9
    begin $program checkpoint.every=1
    kill -s INT $pid
    kill -s INT $pid 2>/dev/null
    ended
    expect "$program, SIGINT twice: exit $code" [ $code = 130 ]
    goes_on $program "$program, SIGINT twice" "$("$tapir" hash broken | cut -d' ' -f4)"
done
# a reward that takes a minute: the first signal waits for it, the second does not
rm -rf broken
grpo broken rl.reward_program='echo $$ >reward.pid; exec sleep 60' rl.reward_weights=program=1 rl.reward_timeout=60 >out 2>err </dev/null &
pid=$!
until [ -s reward.pid ] || ! kill -0 $pid 2>/dev/null; do sleep 0.02; done
kill -s TERM $pid
sleep 0.3
expect "one signal waits for the reward" kill -0 $pid
kill -s TERM $pid
ended
expect "the second one ends at once: exit $code" [ $code = 143 ]
kill "$(cat reward.pid)" 2>/dev/null # it reads nothing, so it does not see that nobody asks any more
# on a terminal the first signal is answered at once
if command -v script >/dev/null; then
    rm -rf broken typescript
    keys="run.dir=broken data.train=train.h5 data.val=val.h5 threads=1 $endless"
    TERM=xterm script -qec "echo \$\$ >train.pid; exec '$tapir' train '$src/configs/tests/tiny.yaml' $keys" typescript >/dev/null </dev/null &
    pid=$!
    until logged || ! kill -0 $pid 2>/dev/null; do sleep 0.02; done
    kill -s INT "$(cat train.pid)"
    wait $pid
    cp typescript heard
    expect "a terminal hears of the first signal" grep -q 'finishing this step; once more to stop now' heard
    expect "and of the end" grep -q 'interrupted at step' heard
    : >typescript
    sleep 2 | TERM=xterm script -qfec "echo \$\$ >chat.pid; exec '$tapir' chat whole" typescript >/dev/null &
    pid=$!
    until grep -q 'begins anew' typescript || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done
    kill -s INT "$(cat chat.pid)"
    wait $pid
    expect "chat ends at its prompt" grep -q 'tapir chat: interrupted' typescript
    expect "it finishes no step" sh -c '! grep -q finishing typescript'
fi
# years are not told as no time
begin train run.steps=1000000000000
kill -s INT $pid
ended
expect "a run of years: $(echo "$text" | grep -o '[^ ]* [^ ]* left' | tail -1)" sh -c 'echo "$1" | grep "[0-9] years left"' - "$text"
# under nohup a hang-up is none
rm -rf broken
(trap '' HUP && train broken run.steps=3000 log.every=1 checkpoint.every=1000000) >out 2>err </dev/null &
pid=$!
until logged || ! kill -0 $pid 2>/dev/null; do sleep 0.02; done
kill -s HUP $pid
ended
expect "nohup: exit $code" [ $code = 0 ]
# who waits for input ends with the first signal: a pipe whose writer says nothing, one that has no writer yet
mkfifo silent absent
sleep 60 >silent &
writer=$!
awaits() { # SIGNAL INPUT COMMAND…: it waits, then ends at once
    signal=$1 input=$2
    shift 2
    "$@" <"$input" >waits.out 2>waits.err &
    pid=$!
    sleep 0.5
    [ "$length" = whole ] || sleep 2 # until a slow build has begun to wait
    expect "$* waits for its input" kill -0 $pid
    kill -s "$signal" $pid
    i=0
    while [ $i -lt 40 ] && kill -0 $pid 2>/dev/null; do sleep 0.05 && i=$((i + 1)); done
    expect "$*: SIG$signal ends it" [ $i -lt 40 ]
    [ $i -lt 40 ] || kill -9 $pid
    wait $pid
    code=$? text=$(cat waits.err)
    said 130 interrupted "$*: SIG$signal"
}
awaits INT silent "$tapir" chat whole
awaits TERM silent "$tapir" prepare - --out x.h5
awaits TERM /dev/null "$tapir" prepare silent --out x.h5
awaits INT /dev/null "$tapir" prepare absent --out x.h5
kill $writer
wait $writer 2>/dev/null
expect "a pipe that is waited for" sh -c "(sleep 0.5; cat text.txt) | '$tapir' prepare - --out x.h5 --tokenizer bytes"
cp out first
(sleep 0.3 && cat text.txt >absent) &
expect "a writer that comes late" "$tapir" prepare absent --out y.h5 --tokenizer bytes
cat out >>first
expect "both are read to their end" [ "$(grep -c " $(wc -c <text.txt) bytes" first)" = 2 ]
rm -f x.h5 y.h5
expect "chat samples as generate does" sh -c "echo hello | '$tapir' chat whole --top-k 5 --min-p 0.1 --repetition-penalty 1.2 -n 5"
expect "lines that come in pieces" sh -c "(printf '/re'; sleep 0.2; printf 'set\\r\\n\\n/exit\\nno more') | '$tapir' chat whole"
expect "are lines" [ ! -s out ]

# ---- next to no text ----------------------------------------------------------------------------
printf 'a' >one.txt
printf '\n' >line.txt
printf 'a b' >few.txt
: >empty.txt
printf '{"text":""}\n{"text":""}\n' >empty.jsonl
for file in empty.txt empty.jsonl; do
    says 1 'no text' "$tapir" prepare $file --out x.h5 --tokenizer bytes
    says 1 'too few to hold out' "$tapir" prepare $file --out x.h5 --val y.h5 --tokenizer bytes
done
says 1 'too few to hold out' "$tapir" prepare one.txt --out x.h5 --val y.h5
expect "no text, no corpus" none x.h5 x.h5.tmp y.h5 y.h5.tmp
for file in one line few; do
    expect "a corpus of $file.txt" "$tapir" prepare $file.txt --out $file.h5 --tokenizer bytes
    for packing in stream documents; do
        rm -rf small
        expect "train on $file.h5, $packing" apart train small data.train=$file.h5 data.val=$file.h5 data.packing=$packing
        expect "eval on $file.h5" "$tapir" eval small
        expect "eval --json on $file.h5" "$tapir" eval small --json
        expect "its JSON has no NaN" sh -c '! grep -i "nan\|inf" out small/metrics.jsonl'
        expect "generate after $file.h5" "$tapir" generate small "a" --max-new-tokens 3
    done
done

# a validation without text has no bits per byte; one without anything to predict is told at once
apart train small run.steps=7 data.train=few.h5 data.val=one.h5 data.packing=$packing --resume >out 2>log </dev/null
expect "no bits per byte without text" grep -q 'validation: loss [0-9.]*  no text, so no bits per byte' log
# without an end of text one byte is one token, and that there is nothing to predict is told at once
sed '/"id": 256/d; /"<|endoftext|>": 256/d; s/: 255,$/: 255/' small/tokenizer.json >ends.json
expect "a corpus of text without ends" "$tapir" prepare text.txt --out ends.h5 --tokenizer ends.json
expect "a corpus of one token" "$tapir" prepare one.txt --out token.h5 --tokenizer ends.json
rm -rf broken
says 1 'token.h5: loader: the corpus has 1 token' apart train broken data.train=ends.h5 data.val=token.h5
expect "no training before that" none broken
expect "eval without text" sh -c '"$1" eval small one.h5 | grep "no text, so no bits per byte"' - "$tapir"

# ---- a run that ends in NaN ---------------------------------------------------------------------
nan() { # PATTERN KEYS…
    pattern=$1
    shift
    rm -rf broken
    says 1 "$pattern" apart train broken train.warmup_steps=0 log.every=1 "$@"
}
nan 'the run ends with 5 skipped steps, as gradients were not finite: its weights are those of step 1' \
    run.steps=6 train.max_bad_steps=0 train.learning_rate=1e30
expect "its checkpoint is there" "$tapir" hash broken
expect "nobody says that it is done" sh -c '[ -z "$("$@" 2>/dev/null)" ]' - "$tapir" train broken/config.yaml --resume
says 1 'the run ends with 5 skipped steps' apart train broken train.warmup_steps=0 log.every=1 run.steps=6 train.max_bad_steps=0 \
    train.learning_rate=1e30 --resume
nan 'step 2: the gradient of [^ ]* is not finite, and train.max_bad_steps: 1 ends the run' train.max_bad_steps=1 train.learning_rate=1e30
nan 'step 4: the gradient of [^ ]* is not finite, after 2 skipped steps in a row, and train.max_bad_steps: 3 ends' \
    train.max_bad_steps=3 train.learning_rate=1e30
nan 'the run ends with weights that are not finite' run.steps=3 train.weight_decay=1e20 train.learning_rate=0.001 checkpoint.best=true
expect "it is told when it occurs" sh -c 'echo "$1" | grep "^warning: step 3/3: the validation loss is not finite"' - "$text"
expect "NaN is never the best" none broken/checkpoints/best.h5
expect "its checkpoint is there" "$tapir" hash broken
says 1 'the loss of broken on val.h5 is not finite, got nan' "$tapir" eval broken
says 1 'the loss of broken on val.h5 is not finite' "$tapir" eval broken val.h5 --json
nan 'the run ends with weights that are not finite' run.steps=3 train.weight_decay=1e20 train.learning_rate=0.001 data.val= eval.every=0

# ---- files that change under a run --------------------------------------------------------------
yes 'A long text, so that a corpus does not fit into the cache of what was read: 0123456789.' | head -c 20000000 >long.txt
expect "a long corpus" "$tapir" prepare long.txt --out long.h5 --tokenizer bytes
cp long.h5 now.h5
keys="data.train=now.h5 data.val=few.h5 checkpoint.every=100"
for change in ': >now.h5' 'head -c 500000 long.h5 >now.h5' 'cat val.h5 >now.h5'; do
    begin train $keys
    eval "$change"
    ended
    said 1 'now.h5: .*damaged' "$change"
    cp long.h5 now.h5
done
at=$("$tapir" hash broken 2>err | cut -d' ' -f4)
goes_on() { # with another corpus
    rm -rf whole
    expect "$2: undisturbed to step $(($3 + 4))" apart $1 whole $keys run.steps=$(($3 + 4))
    expect "$2: resumed" apart $1 broken $keys run.steps=$(($3 + 4)) --resume
    expect "$2: the same bits" same whole broken
}
goes_on train "after another corpus was there" "${at:-0}"
# what is opened stays what it was, and what is written is written anew
for change in 'rm now.h5' 'cp val.h5 x.h5; mv x.h5 now.h5' 'echo "no: config" >broken/config.yaml' 'rm -r broken/checkpoints' \
    'for f in broken/checkpoints/*; do : >"$f"; done'; do
    begin train $keys
    eval "$change"
    sleep 0.1
    kill -s INT $pid
    ended
    interrupted "$change"
    cp long.h5 now.h5
    goes_on train "$change" "$at"
done
begin train $keys
rm -rf broken
ended
says 1 'broken' sh -c "cat err >&2; exit $code" # whichever file it had to write first

# ---- nesting without end ------------------------------------------------------------------------
run_of() { head -c ${deep}000000 /dev/zero | tr '\0' "$1"; }
# small PATTERN COMMAND…: a sentence, with less memory than cells of a tree would take, and soon
small() {
    pattern=$1
    shift
    says 1 "$pattern" soon "$@"
}
soon() { # a tree takes 64 bytes a bracket; sanitizers reserve more than all memory
    [ "$length" != whole ] || ulimit -v $((2000000 + deep * 4000))
    exec timeout $((10 + deep / 20)) "$@"
}
run_of '[' >deep.jsonl
small 'deep.jsonl:1' "$tapir" prepare deep.jsonl --out x.h5
small 'deep.jsonl' "$tapir" train deep.jsonl
small 'deep.jsonl' "$tapir" prepare text.txt --out x.h5 --tokenizer deep.jsonl
small 'deep.jsonl' "$tapir" train "$src/configs/tests/sft.yaml" run.dir=x data.train=deep.jsonl
small 'deep.jsonl' "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir=x rl.task="$dir/deep.jsonl" model.family=gpt2
{
    printf '{"text":["",'
    cat deep.jsonl
} >in.jsonl
small 'in.jsonl:1' "$tapir" prepare in.jsonl --out x.h5 --json-key other
{
    printf '{"model":'
    cat deep.jsonl
} >in.jsonl
small 'in.jsonl' "$tapir" prepare text.txt --out x.h5 --tokenizer in.jsonl
head -c 1000000 deep.jsonl >in.yaml # as long as a config may be
small 'in.yaml' "$tapir" train in.yaml
{ printf 'model: ' && head -c 1000000 deep.jsonl; } >in.yaml
small 'in.yaml' "$tapir" train in.yaml
rm -rf whole
expect "a run to replay" apart grpo whole run.steps=2
cp deep.jsonl whole/rollouts/step-00000002.jsonl
small 'step-00000002.jsonl' "$tapir" replay whole 2
cp deep.jsonl whole/metrics.jsonl
small 'metrics.jsonl: holds no metrics' "$tapir" grpo "$src/configs/tests/grpo.yaml" run.dir=whole threads=1 model.family=gpt2 \
    model.layers=1 model.heads=1 model.channels=16 model.context=48 rl.entropy_coef=0.01 eval.every=1000000 run.steps=4 --resume
small 'no run has logged' "$tapir" plot whole --out x.svg
expect "nothing was made of all this" none x.h5 x.h5.tmp x.svg
rm -f deep.jsonl in.jsonl

# ---- a clock that leaps -------------------------------------------------------------------------
leaping() (
    export LD_PRELOAD="$preload" ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0"
    "$@"
)
for program in train grpo; do
    keys="run.steps=40 log.every=1 checkpoint.every=20 log.tensorboard=true"
    rm -rf whole broken
    expect "$program, undisturbed" apart $program whole $keys
    expect "$program under a clock that leaps" leaping $program broken $keys
    expect "$program: the lines tell no time below nothing" sh -c '! grep -- "-[0-9:.]* \(s\|left\|tok/s\)\|nan\|inf" err'
    expect "$program: the same bits" same whole broken
    expect "$program: the same metrics" same_metrics whole/metrics.jsonl broken/metrics.jsonl
    expect "$program: no rate or time is negative or no number" sh -c \
        '! grep -o "\"\(tokens_per_s\|mfu\|step_time\|timing_s[^\"]*\)\":\(-\|null\|[^0-9]\)" broken/metrics.jsonl'
done
echo "$checks checks, $failed failed"
[ $failed = 0 ]
