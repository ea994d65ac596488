#!/bin/sh
# Newcomers' mistakes and damaged files: one sentence on stderr, the right exit code, nothing lost.
# $1: the tapir binary, $2: the source folder.
set -u
tapir=$1
src=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
failed=0
checks=0

# says CODE PATTERN COMMAND…: exit code, one line on stderr that matches, no crash
says() {
    code=$1 pattern=$2
    shift 2
    "$@" >out 2>err </dev/null
    got=$?
    checks=$((checks + 1))
    lines=$(grep -vc '^Try `\|^warning: ' err)
    if [ "$got" != "$code" ] || [ "$lines" != 1 ] || ! grep -q -- "$pattern" err; then
        failed=$((failed + 1))
        echo "FAILED: $*"
        echo "  wanted exit $code and one line with \"$pattern\"; got exit $got:"
        sed 's/^/  /' err
    fi
}
works() {
    checks=$((checks + 1))
    if ! "$@" >out 2>err </dev/null; then
        failed=$((failed + 1))
        echo "FAILED: $*"
        sed 's/^/  /' err
    fi
}
same() { # a file must not have changed
    checks=$((checks + 1))
    [ "$(sha256sum <"$1")" = "$2" ] || { failed=$((failed + 1)); echo "FAILED: $1 changed"; }
}

i=0
while [ $i -lt 400 ]; do echo "line $i of a text that is long enough, with word$((i % 17))"; i=$((i + 1)); done >text.txt
train="$tapir train $src/configs/tests/tiny.yaml run.dir=run data.train=train.h5 data.val=val.h5"

# commands and flags
says 2 'no command "trian"; did you mean "train"' $tapir trian
says 2 'unrecognized option' $tapir train --resme x.yaml
says 2 'which config' $tapir train
says 2 'which text' $tapir prepare --out x.h5
says 2 '--out FILE is needed' $tapir prepare text.txt
says 2 '--vocab must be' $tapir prepare text.txt --out x.h5 --vocab twelve
says 2 '--vocab must be' $tapir prepare text.txt --out x.h5 --vocab 10
says 2 '--val-fraction must be' $tapir prepare text.txt --out x.h5 --val y.h5 --val-fraction 2
says 2 'must differ' $tapir prepare text.txt --out x.h5 --val x.h5
says 2 'must differ' $tapir prepare text.txt --out x.h5 --val ./x.h5 --force
says 2 'must differ' $tapir prepare text.txt --out x.h5 --val "$dir/x.h5"
says 1 'a file of its own' $tapir prepare text.txt --out x.h5 --val x.h5.tmp
says 2 '--vocab is for a tokenizer that is trained' $tapir prepare text.txt --out x.h5 --tokenizer bytes --vocab 500
says 2 '--pattern is for a tokenizer that is trained' $tapir prepare text.txt --out x.h5 --tokenizer bytes --pattern cl100k
says 2 '--json-key is for JSON lines' $tapir prepare text.txt --out x.h5 --format plain --json-key q
says 1 '--json-key is for JSON lines' $tapir prepare text.txt --out x.h5 --json-key q
says 2 '--split-documents is for plain text' $tapir prepare text.txt --out x.h5 --format jsonl --split-documents q
printf '{"text":"good"}\n' >good.jsonl
says 1 '--split-documents is for plain text' $tapir prepare good.jsonl --out x.h5 --split-documents q
works $tapir prepare good.jsonl text.txt --out mixed.h5 --split-documents q --json-key text --tokenizer bytes
says 2 '--format is' $tapir prepare text.txt --out x.h5 --format word
says 2 'no operation "geluu"' $tapir ops geluu
says 2 'what to measure' $tapir bench stp
says 2 '--temperature must be' $tapir generate run --temperature hot
says 2 '--top-p must be' $tapir generate run --top-p 1.5
says 2 'which run' $tapir hash

# text and tokenizers
says 1 'nothing.txt' $tapir prepare nothing.txt --out x.h5
: >empty.txt
says 1 'no text' $tapir prepare empty.txt --out x.h5
mkdir folder
says 1 'folder' $tapir prepare folder --out x.h5
head -c 3000 /dev/urandom | tr -d '\n' >binary.bin
says 1 'binary.bin' $tapir prepare binary.bin --out x.h5
gzip -c text.txt >text.gz 2>/dev/null && says 1 'text.gz' $tapir prepare text.gz --out x.h5
printf '{"text":"good"}\n{"text":\n' >bad.jsonl
says 1 'bad.jsonl:2' $tapir prepare bad.jsonl --out x.h5
printf '{"text":"good"}\n{"words":"no"}\n' >key.jsonl
says 1 'key.jsonl:2' $tapir prepare key.jsonl --out x.h5
says 1 'tok.json' $tapir prepare text.txt --out x.h5 --tokenizer tok.json
echo '{"model":{"type":"Unigram"}}' >tok.json
says 1 'tok.json' $tapir prepare text.txt --out x.h5 --tokenizer tok.json
echo '{{{{' >tok.json
says 1 'tok.json' $tapir prepare text.txt --out x.h5 --tokenizer tok.json
says 1 'no/such/folder' $tapir prepare text.txt --out no/such/folder/x.h5
[ ! -e x.h5 ] || { echo "FAILED: a refused prepare left x.h5"; failed=$((failed + 1)); }

works $tapir prepare text.txt --out train.h5 --val val.h5 --vocab 300
sum=$(sha256sum <train.h5)
says 1 'already there' $tapir prepare text.txt --out train.h5
same train.h5 "$sum"
works $tapir prepare text.txt --out other.h5 --vocab 290
works $tapir prepare text.txt --out bytes.h5 --tokenizer bytes
# what is no file stays what it is
mkfifo pipe
ln -s text.txt link
ln -s nowhere dangling
for name in pipe link dangling folder; do
    for force in "" --force; do
        says 1 "$name cannot be written, as it is a" timeout -s KILL 60 $tapir prepare text.txt --out $name --tokenizer bytes $force
        says 1 "$name cannot be written, as it is a" timeout -s KILL 60 $tapir prepare text.txt --out x.h5 --val $name --tokenizer bytes $force
    done
done
works test -p pipe -a -L link -a -L dangling -a -d folder
same text.txt "$(cat link | sha256sum)"
if mknod node c 1 3 2>/dev/null; then # for those who may
    ln -s node node.link
    says 1 'node cannot be written, as it is a device' $tapir prepare text.txt --out node --tokenizer bytes --force
    says 1 'node.link cannot be written, as it is a symbolic link' $tapir prepare text.txt --out node.link --tokenizer bytes --force
    works test -c node -a -L node.link
fi
mkfifo x.h5.tmp
says 1 'x.h5.tmp cannot be written' timeout -s KILL 60 $tapir prepare text.txt --out x.h5 --tokenizer bytes
rm x.h5.tmp

# configs
says 1 'none.yaml' $tapir train none.yaml
says 1 'unknown key; did you mean model.layers' $train model.layrs=3
says 1 'model.layers' $train model.layers=-1
says 1 'model.layers' $train model.layers=many
says 1 'model.layers' $train model.layers=999999999999999999999
says 1 'train.optimizer' $train train.optimizer=adam
says 1 'heads' $train model.heads=5
says 1 'train.micro_batches: 3 does not divide the' $train train.micro_batches=3
says 1 'train.micro_batches: 64 does not divide the' "$tapir" tape "$src/configs/tests/tiny.yaml" model.vocab=300 train.micro_batches=64
"$tapir" version | grep -q '^cuda *not built in' && says 1 'without CUDA' $train device=cuda
says 1 'train.cuda_graph: needs device: cuda' $train train.cuda_graph=true
says 1 'gemm: chooses among products on a GPU' $train gemm=own
says 1 'gemm' $train gemm=best
says 1 'mod.capacity must be a number >= 0 and <= 1' $train mod.capacity=1.5
says 1 'mod.every: 2, so none of the 1 blocks' $train mod.capacity=0.5
says 1 'mod.capacity: does not go with model.sliding_window' $train mod.capacity=0.5 model.sliding_window=4
says 1 'rope_scaling.factor must be a number >= 1' $train rope_scaling.rope_type=linear rope_scaling.factor=0.5
says 1 'rope_type: default, so rope_scaling.factor would do nothing' $train rope_scaling.factor=8
says 1 'rope_scaling.rope_type: needs model.family: llama' $train model.family=gpt2 rope_scaling.rope_type=linear
says 1 'must be above rope_scaling.low_freq_factor' $train rope_scaling.rope_type=llama3 rope_scaling.high_freq_factor=0.5
says 1 'numerics' $train numerics=quick
says 1 'float32_matmul_precision: medium is for device: cpu; on a GPU it is dtype: bf16' $train float32_matmul_precision=medium device=cuda
# what a key allows is what the operations do: its limits work, and beyond them the key is named
for limit in model.attn_softcap=1e30 model.logit_softcap=1e30 model.attn_softcap=1e-30 model.logit_softcap=1e-30 model.rope_theta=1 model.rope_theta=1e12 \
    "rope_scaling.rope_type=linear rope_scaling.factor=1e12" "rope_scaling.rope_type=llama3 rope_scaling.high_freq_factor=1e12" \
    "model.context=1048576 train.batch=1" "model.context=16777216 train.batch=1 model.family=gpt2"; do
    works $tapir plan $src/configs/tests/tiny.yaml model.vocab=300 $limit
done
works $train run.dir=limit run.steps=1 train.z_loss=1e30 model.attn_softcap=1e30 model.logit_softcap=1e30
says 1 'model.attn_softcap must be a number >= 0 and <= 1e30' $train model.attn_softcap=1e300
says 1 'model.logit_softcap must be a number >= 0 and <= 1e30' $train model.logit_softcap=1e38
says 1 'model.logit_softcap must be 0 (off) or at least 1e-30' $train model.logit_softcap=1e-44
says 1 'sample.temperature must be 0 or at least 1e-30' $train sample.temperature=1e-31
says 1 'train.z_loss must be a number >= 0 and <= 1e30' $train train.z_loss=1e38
says 1 'train.weight_decay must be' $train train.weight_decay=1e300
says 1 'model.rope_theta must be a number >= 1 and <= 1' $train model.rope_theta=0.5
says 1 'model.context: rotary positions (llama) go up to 1048576' $train model.context=1048577
says 1 'run.dir: empty' $train run.dir=
says 1 'model.init_from: /dev/null is neither' $train model.init_from=/dev/null
says 1 'eval.every: 2 asks for evaluations, but data.val names nothing' $train data.val= eval.every=2
says 1 'model.vocab is needed' $tapir bench step $src/configs/tests/tiny.yaml
says 1 'model.vocab is needed' $tapir plan $src/configs/tests/tiny.yaml
says 1 'only AdamW.s state' $train train.optimizer=sgd train.optimizer_state_dtype=bf16
works $train numerics=fast run.dir=fast run.steps=2
says 1 'another config' $train numerics=exact run.dir=fast --resume
says 1 'another config' $train numerics=fast float32_matmul_precision=medium run.dir=fast --resume
works $tapir bench step $src/configs/tests/tiny.yaml model.vocab=300 -n 2 -w 1 --against numerics=fast --against threads=1 --json
grep -q '"ratio":' out || { failed=$((failed + 1)); echo 'FAILED: bench --against prints no ratio'; }
says 1 'numerics' $tapir bench step $src/configs/tests/tiny.yaml model.vocab=300 --against numerics=quick
says 1 'data.train' $tapir train $src/configs/tests/tiny.yaml run.dir=run
printf 'model:\n  layers: [1\n' >broken.yaml
says 1 'broken.yaml' $tapir train broken.yaml
printf 'model:\n\tlayers: 1\n' >tab.yaml
says 1 'tab.yaml' $tapir train tab.yaml
printf 'seed: 1\nseed: 2\n' >twice.yaml
says 1 'twice.yaml:2' $tapir train twice.yaml
: >nothing.yaml
says 1 '' $tapir train nothing.yaml
says 1 'memory\|does not fit\|at most\|INT32\|tokens' $train model.channels=1048576 model.heads=1 model.layers=1000

# corpora
says 1 'nope.h5' $train data.train=nope.h5
: >empty.h5
says 1 'empty.h5' $train data.train=empty.h5
says 1 'text.txt is not an HDF5 file, which .tapir prepare. makes' $train data.train=text.txt
head -c 3000 train.h5 >cut.h5
says 1 'cut.h5' $train data.train=cut.h5
says 1 'another tokenizer' $train data.val=other.h5
says 1 'model.vocab' $train model.vocab=100

# a run, and what can happen to it
works $train
works $tapir hash run
says 1 'holds a run already' $train
mv run/metrics.jsonl metrics.jsonl # killed before its first line, but with a checkpoint
says 1 'holds a run already' $train
mv metrics.jsonl run/
works $train --resume
says 1 'another config' $train --resume train.learning_rate=0.5
works $train --resume rl.task=parity
says 1 'another config' $train --resume model.layers=2
works $tapir prepare text.txt --out half.h5 --val-fraction 0.5 --val rest.h5 --tokenizer run/tokenizer.json
works $train run.dir=decay train.lr_scheduler_type=wsd
works $train run.dir=decay train.lr_scheduler_type=wsd run.steps=10 train.loss_chunk_size=128 --resume # a fifth of the steps is another number now
says 1 'another config: "decay_steps: 2" there' $train run.dir=decay train.lr_scheduler_type=wsd run.steps=12 train.decay_steps=3 --resume
says 1 'is not the corpus' $train --resume data.train=half.h5 data.val=rest.h5
says 1 'another' $train --resume data.train=other.h5 data.val=other.h5
says 1 'run was trained with another' $train --resume data.train=other.h5
works $tapir generate run "line 1" --max-new-tokens 5
works $tapir generate run --max-new-tokens 5
$tapir generate run "line 1" --max-new-tokens 5 >asked
echo "line 1" | $tapir generate run - --max-new-tokens 5 >piped
works cmp asked piped
printf 'a\0b' >zero
says 1 'has a byte 0' sh -c "$tapir generate run - <zero"
mkfifo slow # more than fits into it: once that is written, somebody reads
(yes word | head -c 200000; : >reading; exec sleep 12) >slow &
$tapir generate run - <slow >out 2>err &
pid=$!
while [ ! -e reading ] && kill -0 $pid 2>/dev/null; do sleep 0.05; done
from=$(date +%s)
kill -s INT $pid
wait $pid
code=$? took=$(($(date +%s) - from))
checks=$((checks + 1))
[ $code = 130 ] && [ $took -lt 8 ] || {
    failed=$((failed + 1))
    echo "FAILED: a signal while generate waits for its prompt: exit $code after $took s"
}
$tapir train --help >asked
$tapir help train >piped
works cmp asked piped
works $tapir eval run
works sh -c "$train run.dir=epochs 2>&1 | grep -q '^epochs .*rows of data.train'"
says 1 '.tapir prepare. makes a corpus of text' $train run.dir=nothing data.train=none.h5
works $tapir eval run val.h5 --json
works $tapir plot run --metrics train_loss,val_loss --out curve.svg
works xmllint --noout curve.svg
works grep -q '<path class="s l0"' curve.svg
# runs of one name are told apart, and losses far from zero fill their panel
mkdir -p twin/run many
cp run/metrics.jsonl twin/run
works $tapir plot run twin/run --metrics train_loss --out curve.svg
works grep -q '>twin/run</text>' curve.svg
awk 'BEGIN { for (i = 1; i <= 100; i++) printf "{\"step\":%d,\"train_loss\":%.3f}\n", i, 6 - i / 100 }' >many/metrics.jsonl
works $tapir plot many --metrics train_loss --out curve.svg
works grep -q '>5.2</text>' curve.svg
works sh -c '! grep -q "<circle" curve.svg'
says 1 'no run has a metric losss' $tapir plot run --metrics losss
mkdir nulls
echo '{"step":1,"train_loss":1.5,"val_loss":null}' >nulls/metrics.jsonl
says 1 'nulls: metrics.jsonl has val_loss, but never as a finite number' $tapir plot nulls --metrics val_loss
says 1 'cannot write' $tapir plot run --out nowhere/curve.svg
says 2 'at most 3 metrics' $tapir plot run --metrics a,b,c,d
says 2 'which run' $tapir plot
says 1 'another tokenizer' $tapir eval run other.h5
says 1 'it is no run of `tapir grpo`' $tapir replay run 1
# a window takes any prompt and any number of tokens, whatever the context
long=$(head -5 text.txt)
works $tapir generate run "$long" --window 8 --max-new-tokens 5
works $tapir generate run "$long" --window 1000 --sinks 0 --max-new-tokens 300 --ignore-eos -c 2
says 1 'rotary positions go up to 1048576' $tapir generate run "$long" --window 8 --max-new-tokens 1048576
works $tapir generate run "$long" --window 3 --sinks 2000 --max-new-tokens 300 --ignore-eos
works $train run.dir=alone data.val= run.steps=1
says 1 'the config of alone names no data.val: tapir eval RUN CORPUS' $tapir eval alone
says 2 'CORPUS is given as a path' $tapir eval alone data.val=val.h5
# a zero byte ends no line, and nothing stands behind an object
printf '{"prompt":"a","answer":"b","response":"b"}\n{"prompt":"a","response":"b"}\0\n' >zero.jsonl
printf '{"prompt":"a","answer":"b","response":"b"}\n{"prompt":"a","response":"b"} c\n' >more.jsonl
for command in "train $src/configs/tests/sft.yaml run.dir=x eval.every=0 data.train=" "task "; do
    says 1 'zero.jsonl, line 2: a zero byte is no text' $tapir ${command}zero.jsonl
    says 1 'more.jsonl, line 2: there is more after the object' $tapir ${command}more.jsonl
done
head -n 1 more.jsonl >items.jsonl
works $tapir task items.jsonl -n 1
for option in --min --max --scratchpad --seed; do
    says 2 "$option is for tasks whose items are made" $tapir task items.jsonl $option 1
done
# routed blocks are part of the checkpoint, and of what begins with it
works $train run.dir=routed mod.capacity=0.5 mod.every=1 mod.gate=sigmoid sample.every=1 sample.tokens=4
works test -s routed/samples.txt
has() { checks=$((checks + 1)); grep -q -- "$1" "$2" || { failed=$((failed + 1)); echo "FAILED: $2 lacks $1"; }; }
for m in mod/routed_fraction mod/router_entropy mod/predictor_accuracy mod/aux_loss val_loss val_loss_causal; do
    has "\"$m\":[0-9]" routed/metrics.jsonl
done
works $tapir eval routed --json
has '"loss_causal":' out
works $tapir generate routed "line 1"
works $train run.dir=tuned model.init_from=routed run.steps=1
has 'capacity: 0.5' tuned/config.yaml
has 'gate: sigmoid' tuned/config.yaml
says 1 'the model of routed has another value' $train run.dir=tuned2 model.init_from=routed mod.capacity=0.25 mod.every=1
works $train run.dir=learned model.family=gpt2 run.steps=1
says 1 'model.context: the model of learned has another value' $train run.dir=tuned3 model.family=gpt2 model.init_from=learned model.context=20
works test ! -e tuned3
works $train run.dir=tuned4 model.init_from=run model.context=20 run.steps=1
# so are scaled rotary frequencies, which the tape shows, and only where they are asked for
llama3="rope_scaling.rope_type=llama3 rope_scaling.factor=8 rope_scaling.original_max_position_embeddings=16"
works $train run.dir=scaled run.steps=1 $llama3
works $train run.dir=tuned5 model.init_from=scaled run.steps=1
has 'rope_type: llama3' tuned5/config.yaml
has 'factor: 8$' tuned5/config.yaml
has 'original_max_position_embeddings: 16' tuned5/config.yaml
says 1 'the model of scaled has another value' $train run.dir=tuned6 model.init_from=scaled rope_scaling.rope_type=linear
says 1 'another config: "factor: 8" there' $train run.dir=scaled run.steps=2 $llama3 rope_scaling.factor=4 --resume
works $train run.dir=scaled run.steps=2 $llama3 --resume
works $tapir tape $src/configs/tests/tiny.yaml model.vocab=300 $llama3
has 'rope(.*theta=10000, rope_type=2, factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=16)' out
has 'rope(.*theta=10000, inverse, rope_type=2, factor=8,' out
works $tapir tape $src/configs/tests/tiny.yaml model.vocab=300 rope_scaling.rope_type=linear rope_scaling.factor=2
has 'rope(.*theta=10000, rope_type=1, factor=2)' out
# samples.txt holds each sample once, whether the run was killed after one or stopped before it
sampled="$train run.dir=sampled sample.every=1 sample.tokens=4 checkpoint.every=2 checkpoint.keep=0"
works $sampled
for upto in 6 4; do
    rm -f sampled/checkpoints/step-00000006.h5
    cp sampled/samples.txt all.txt
    sed "/^=== step $upto\$/,\$d" all.txt >sampled/samples.txt
    works $sampled --resume
    works cmp all.txt sampled/samples.txt
done
# a vocabulary that is wider than the tokenizer's: what the tokenizer lacks may be drawn, and is shown as U+FFFD
works $train run.dir=padded model.vocab=2000 sample.every=1 sample.tokens=40
has "$(printf '\357\277\275')" padded/samples.txt
works $tapir generate padded "line 1" -c 2 -n 20
has "$(printf '\357\277\275')" out
works $tapir generate padded "line 1" -n 20
has "$(printf '\357\277\275')" out
# what routed layers take, as a table, a picture and JSON lines that say the same
routes="$tapir routes routed"
count() { checks=$((checks + 1)); n=$(grep -c -- "$2" "$3"); [ "$n" = "$1" ] || { failed=$((failed + 1)); echo "FAILED: $n times $2 in $3, not $1"; }; }
picture() { # well-formed, and nothing in it that a terminal or a browser would obey
    works xmllint --noout "$1"
    checks=$((checks + 1))
    [ -z "$(LC_ALL=C tr -d '\n\040-\176\200-\377' <"$1")" ] || { failed=$((failed + 1)); echo "FAILED: $1 has control bytes"; }
}
works $routes --out routes.svg
has '^ *0   50.0 %' out
has 'with causal decisions' out
picture routes.svg
works $routes --json
cp out routes.json
count 16 '^{"token":[0-9]*,"id":[0-9]*,"text":".*","layer":0,"logit":-\{0,1\}[0-9.e-]*,"chosen":[a-z]*,"causal":[a-z]*}$' routes.json
count 8 '"chosen":true' routes.json
marked() { # marked CLASS PATTERN: as often in the picture as in the data, and twice in the legend
    count $(($(grep -c -- "$2" routes.json) + 2)) "class=\"$1\"" routes.svg
}
marked k '"chosen":true'
marked c '"causal":true'
checks=$((checks + 1)) # where one of the two alone takes a token it is framed
differ=$(sed 's/"chosen":\([a-z]*\),"causal":\1}/the same/' routes.json | grep -vc 'the same$')
[ "$(grep -c 'class="x"' routes.svg)" = $((differ + 2)) ] || { failed=$((failed + 1)); echo "FAILED: frames"; }
# the same weights, the same picture; others, other colours
colours() { grep -o 'class="q[0-7]" x="[0-9]*" y="[0-9]*"' "$1"; }
works $routes --out again.svg -j 1
cmp -s routes.svg again.svg || { echo 'FAILED: routes draws something else the second time'; failed=$((failed + 1)); }
works $tapir routes routed/checkpoints/step-00000002.h5 --out earlier.svg
[ "$(colours routes.svg)" != "$(colours earlier.svg)" ] || { echo 'FAILED: other weights, the same colours'; failed=$((failed + 1)); }
for text in 'a<b>&"c"' "$(printf 'x\001\033[31my\177')" "$(printf 'a\377\342\202 \303\251')" "$(printf '\n\t ')" '<|endoftext|>' ']]>'; do
    works $routes "$text" -n 16 --out hostile.svg
    picture hostile.svg
    works $routes "$text" -n 16 --json
    iconv -f utf-8 -t utf-8 out >/dev/null || { echo "FAILED: JSON that is no UTF-8"; failed=$((failed + 1)); }
done
printf 'one\ntwo\n' >two.txt
works $routes -n 1
lacks() { checks=$((checks + 1)); ! grep -q -- "$1" "$2" || { failed=$((failed + 1)); echo "FAILED: $2 has $1"; }; }
lacks nan out
works $routes --file two.txt --json
count 8 '"layer":0' out
works sh -c "$routes --file - --json -n 1 <two.txt"
count 1 '"layer":0' out
# tokens of characters that show nothing or turn the line around are spelt out
i=0
while [ $i -lt 40 ]; do printf 'e\314\201 \342\200\256turned\342\200\254 word%s\n' $i; i=$((i + 1)); done >turned.txt
works $tapir prepare turned.txt --out turned.h5 --vocab 300
works $tapir train $src/configs/tests/tiny.yaml run.dir=turned data.train=turned.h5 data.val=turned.h5 run.steps=1 mod.capacity=0.5 mod.every=1
works $tapir routes turned --out turned.svg
picture turned.svg
has 'U+202E' turned.svg
count 0 "$(printf '\342\200\256')" turned.svg
# mistakes
says 1 'more tokens than the context of this model, 16: --tokens 16' $routes "one two three four five six seven eight"
says 1 'more tokens than the context' $routes --file text.txt
says 1 '--tokens 17: the context of this model is 16' $routes --tokens 17
says 2 '--tokens must be a whole number from 1 to 1024' $routes --tokens 0
says 2 '--tokens must be' $routes --tokens many
says 2 'not both' $routes "a text" --file two.txt
says 2 'put quotes around it' $routes two words
says 2 'which run' $tapir routes
says 1 'no tokens' $routes ""
says 1 'nothing.txt' $routes --file nothing.txt
says 1 'binary.bin' $routes --file binary.bin
says 1 'run has no routed layers' $tapir routes run
says 1 'no such run' $tapir routes nowhere
says 1 'is no run' $tapir routes folder
says 1 'cannot write nowhere/routes.svg' $routes --out nowhere/routes.svg
says 1 '/dev/full' $routes --out /dev/full
mv val.h5 away.h5
says 1 'val.h5' $routes
works $routes "a text"
mv away.h5 val.h5
# every metric that a run writes is explained
metrics() { grep -o '"[a-z_/]*":' "$1" | tr -d '":' | sort -u | while read -r m; do grep -q "^|.*\`$m\`.*|" $src/docs/architecture.md || echo "$m"; done; }
checks=$((checks + 2))
[ -z "$(metrics routed/metrics.jsonl)" ] || { failed=$((failed + 1)); echo "FAILED: docs/architecture.md explains no $(metrics routed/metrics.jsonl)"; }
echo '{"made_up":1}' >made.jsonl
[ "$(metrics made.jsonl)" = made_up ] || { failed=$((failed + 1)); echo "FAILED: a metric that is explained nowhere passes"; }
says 1 'no such run' $tapir generate nowhere
says 1 'is no run' $tapir generate folder
says 1 'text.txt' $tapir hash text.txt
last=$(ls run/checkpoints/step-*.h5 | tail -1)
cp "$last" good.h5
works $tapir hash good.h5
h=$($tapir hash good.h5)
# one bit flipped in the middle: told, and the checkpoint before it is used
size=$(wc -c <good.h5)
{ head -c $((size / 2)) good.h5; printf '\377'; tail -c +$((size / 2 + 2)) good.h5; } >flipped.h5
cmp -s flipped.h5 good.h5 && { head -c $((size / 2)) good.h5; printf '\000'; tail -c +$((size / 2 + 2)) good.h5; } >flipped.h5
says 1 'flipped.h5' $tapir hash flipped.h5
head -c $((size / 3)) good.h5 >short.h5
says 1 'short.h5' $tapir generate short.h5
says 1 'train.h5' $tapir hash train.h5
cp flipped.h5 "$last"
works $tapir hash run
grep -q 'warning' err || { echo "FAILED: a damaged newest checkpoint was passed over in silence"; failed=$((failed + 1)); }
[ "$($tapir hash run 2>/dev/null)" != "$h" ] || { echo "FAILED: the damaged one was used"; failed=$((failed + 1)); }
# the lost step is done again and ends in the same weights
works $train --resume
[ "$($tapir hash run)" = "$h" ] || { echo "FAILED: after a damaged checkpoint the run ends elsewhere"; failed=$((failed + 1)); }
# a full disk while checkpointing: the good one stays
( ulimit -f 40; $train run.dir=full >out 2>err ) && { echo "FAILED: a full disk was not noticed"; failed=$((failed + 1)); }
grep -q 'tapir train: ' err || { echo "FAILED: a full disk, no sentence:"; cat err; failed=$((failed + 1)); }
# one process at a time trains in a folder; the lock goes with the process, however it goes
$train run.dir=busy run.steps=100000000 checkpoint.every=0 log.every=100000000 >/dev/null 2>&1 &
busy=$!
for i in 1 2 3 4 5 6 7 8 9 10; do [ -s busy/.lock ] && break; sleep 0.3; done
says 1 "busy is in use: process $busy trains there" $train run.dir=busy --resume
kill -9 $busy
wait $busy 2>/dev/null
works $train run.dir=busy run.steps=2 --resume
# a full disk behind the standard output
if [ -c /dev/full ]; then
    for c in 'version' 'ops' "hash run" "plan $src/configs/tests/tiny.yaml model.vocab=300" '--help'; do
        checks=$((checks + 1))
        $tapir $c >/dev/full 2>err </dev/null && { failed=$((failed + 1)); echo "FAILED: $c wrote to a full disk"; }
        has 'cannot write to standard output: No space left' err
    done
fi
# output that nobody reads is no crash
$tapir ops | head -1 >/dev/null
$tapir generate run --max-new-tokens 50 2>/dev/null | head -c 3 >/dev/null
# help
for c in prepare train grpo replay generate chat eval tape plan ops bench plot routes task export hash version; do works $tapir $c --help; done
works $tapir --help
works $tapir tape $src/configs/tests/tiny.yaml model.vocab=300
grep -q '(backward)' out || { echo "FAILED: the tape has no backward pass"; failed=$((failed + 1)); }
tape="$tapir tape $src/configs/tests/tiny.yaml data.train=train.h5"
works $tape --svg tape.svg --dot tape.dot --html tape.html
works xmllint --noout tape.svg
# a box for each operation of the forward pass that the text has
works $tape
boxes=$(grep -c 'class="box f"' tape.svg)
lines=$(grep -v '(backward)' out | grep -cE ' = [a-z_]+\(')
[ "$boxes" = "$lines" ] || { failed=$((failed + 1)); echo "FAILED: $boxes boxes for $lines operations"; }
has '^digraph tape' tape.dot
has 'text: train.h5' tape.html
works $tape model.layers=30 model.channels=512 model.context=512 --html shapes.html
has '"whyNot":"Shapes only' shapes.html
says 2 '--svg and --html are one file' $tape --svg same.svg --html ./same.svg
says 2 '--svg and --dot are one file' $tape --svg same.svg --dot "$dir/same.svg"
cp $src/configs/tests/tiny.yaml mine.yaml
says 2 'the config and --svg are one file' $tapir tape mine.yaml model.vocab=300 --svg mine.yaml
works cmp mine.yaml $src/configs/tests/tiny.yaml
says 1 'cannot write nowhere/tape.svg' $tape --svg nowhere/tape.svg
says 1 'cannot write nowhere/tape.html' $tape --html nowhere/tape.html
[ ! -w /dev/full ] || says 1 'cannot write /dev/full' $tape --html /dev/full
says 1 'gone.h5' $tapir tape $src/configs/tests/tiny.yaml model.vocab=300 data.train=gone.h5 --html tape.html
says 1 'none.yaml' $tapir tape none.yaml --html tape.html
says 1 'model.layrs' $tape model.layrs=3 --svg tape.svg
says 2 'requires an argument' $tape --html
works $tapir plan $src/configs/tests/tiny.yaml model.vocab=300 --json
works sh -c "$tapir plan $src/configs/tests/tiny.yaml model.vocab=300 model.channels=65536 model.layers=64 | grep -q '; this machine has'"
works $tapir train --keys
# the plan is the truth, and steady steps ask the system for nothing
works $tapir bench step $src/configs/tests/tiny.yaml model.vocab=300 --json -n 3
figures=$(sed -E 's/.*"planned_mb":([0-9.]+),"pool_peak_mb":([0-9.]+),"system_allocs":([0-9]+).*/\1 \2 \3/' out)
set -- $figures
[ "$1" = "$2" ] && [ "$3" = 0 ] || { echo "FAILED: planned, measured, allocations: $*"; failed=$((failed + 1)); }
for key in tokens_per_s gflops peak_fraction peak_rss_mb; do
    grep -q "\"$key\":" out || { echo "FAILED: bench --json has no $key"; failed=$((failed + 1)); }
done
says 2 'against is for bench step' $tapir bench decode $src/configs/tests/tiny.yaml model.vocab=300 --against numerics=fast
works $tapir bench decode $src/configs/tests/tiny.yaml model.vocab=300 model.context=24 model.layers=2 mod.capacity=0.25 --json
for key in tokens_per_s_1 kv_bytes_per_token flops_per_token dense_kv_bytes_per_token dense_flops_per_token; do
    grep -q "\"$key\":" out || { echo "FAILED: bench decode --json has no $key"; failed=$((failed + 1)); }
done
echo "$checks checks, $failed failed"
[ $failed = 0 ]
