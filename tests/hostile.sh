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
echo "$checks checks, $failed failed"
[ $failed = 0 ]
