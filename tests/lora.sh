#!/bin/sh
# LoRA from end to end: what is said of it, the same bits for any threads, micro-batches and ranks,
# after a stop and in a run of its own; what it begins with and what it refuses. Gradients and merged
# weights: lora_test, export_test; sampling: grpo.sh. $1: tapir, $2: the source folder, $3: "short".
set -u
tapir=$1 src=$2 length=${3:-whole}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. "$src/tests/lib/runs.sh"
make_corpus "$tapir" "$dir" 200
cd "$dir"
bad=0 checks=0
expect() { # WHAT COMMAND…
    what=$1
    shift
    checks=$((checks + 1))
    "$@" >out 2>err || { echo "FAILED: $what"; cat err; bad=$((bad + 1)); }
}
refuses() { # TEXT COMMAND…
    text=$1
    shift
    checks=$((checks + 1))
    if "$@" >out 2>err || ! grep -q -- "$text" err; then
        echo "FAILED: $* said:"
        cat err
        bad=$((bad + 1))
    fi
}
train() { # NAME KEYS…
    name=$1
    shift
    "$tapir" train "$src/configs/tests/tiny.yaml" run.dir="$name" data.train=train.h5 data.val=val.h5 \
        model.layers=2 train.lr_scheduler_type=constant train.learning_rate=0.02 "$@"
}
hash_of() { "$tapir" hash "$1" | cut -d' ' -f1; }
same() { [ "$(hash_of "$1")" = "$(hash_of "$2")" ]; }
other() { ! same "$1" "$2"; }
number() { sed -n "s/.*\"$1\":\([-+0-9.e]*\).*/\1/p" "$2" | tail -1; }

# ---- the same bits ------------------------------------------------------------------------------
kinds="llama gpt2 routed"
splits="threads=1 train.micro_batches=4 model.activation_checkpointing=true"
[ "$length" = whole ] || kinds=llama splits=train.micro_batches=4
keys_of() {
    case $1 in
    llama) echo model.kv_heads=1 model.tie_embeddings=false ;;
    gpt2) echo model.family=gpt2 ;;
    routed) echo mod.capacity=0.5 mod.causal=aux_loss mod.every=1 ;;
    esac
}
for kind in $kinds; do
    keys=$(keys_of $kind)
    expect "$kind: base" train base-$kind $keys
    lora="$keys model.init_from=base-$kind lora.r=3"
    expect "$kind" train $kind $lora
    expect "$kind: has other weights than its base" other $kind base-$kind
    for split in $splits; do
        rm -rf x
        expect "$kind with $split" train x $lora $split
        expect "$kind has the same bits with $split" same $kind x
    done
    rm -rf x
    expect "$kind: half of it" train x $lora run.steps=3
    expect "$kind: the other half" train x $lora --resume
    expect "$kind, stopped and resumed: the same bits" same $kind x
    expect "$kind: the loss is lower" awk "BEGIN {exit !($(number val_loss $kind/metrics.jsonl) < \
        $(number val_loss base-$kind/metrics.jsonl))}"
    expect "$kind: generate" "$tapir" generate $kind "Line" -n 8
    expect "$kind: eval" sh -c "'$tapir' eval $kind val.h5 >said"
    expect "$kind: the loss of eval" grep -q "loss $(awk "BEGIN {printf \"%.4f\", \
        $(number val_loss $kind/metrics.jsonl)}")" said
    expect "$kind: a run from there" train next-$kind model.init_from=$kind $keys
    expect "$kind: a run from there that stays" train stays-$kind model.init_from=$kind $keys run.steps=1 \
        train.learning_rate=1e-9
    expect "$kind: it begins with the adapters learnt" awk "BEGIN {d = $(number val_loss $kind/metrics.jsonl) - \
        $(number val_loss stays-$kind/metrics.jsonl); exit !(d * d < 1e-10)}"
    expect "$kind: which has its adapters" grep -q '^  r: 3' next-$kind/config.yaml
done
for kind in $kinds; do
    [ $kind = routed ] && continue
    expect "$kind: merged" "$tapir" export $kind to-$kind
    expect "$kind: and back" "$tapir" import to-$kind back-$kind
    expect "$kind: it has no adapters" grep -q '^  r: 0' back-$kind/config.yaml
    for run in $kind back-$kind base-$kind; do
        expect "$kind: eval of $run" sh -c "'$tapir' eval $run val.h5 --json >loss-$run"
    done
    apart() { awk "BEGIN {d = $(number loss loss-$1) - $(number loss loss-$2); print d < 0 ? -d : d}"; }
    expect "$kind: merged, the same loss" awk "BEGIN {exit !($(apart $kind back-$kind) < 2e-6)}"
    expect "$kind: which is not the base's" awk "BEGIN {exit !($(apart $kind base-$kind) > 1e-3)}"
    expect "$kind: other adapters beside the merged ones" train other-$kind $(keys_of $kind) \
        model.init_from=back-$kind lora.r=2
done
expect "another scale" train scale $(keys_of llama) model.init_from=base-llama lora.r=3 lora.lora_alpha=9
expect "another scale, other bits" other llama scale
expect "another scale by the rank's root" train root $(keys_of llama) model.init_from=base-llama lora.r=3 \
    lora.use_rslora=true
expect "other bits as well" other llama root
if command -v mpirun >/dev/null && "$tapir" version | grep -q '^ranks .*MPI'; then
    for stage in 0 1 2; do
        rm -rf x
        expect "2 ranks, ZeRO $stage" mpirun -np 2 "$tapir" train "$src/configs/tests/tiny.yaml" run.dir=x \
            data.train=train.h5 data.val=val.h5 model.layers=2 train.lr_scheduler_type=constant \
            train.learning_rate=0.02 $(keys_of llama) model.init_from=base-llama lora.r=3 dist.zero_stage=$stage \
            train.micro_batches=2
        expect "2 ranks, ZeRO $stage: the same bits" same llama x
    done
fi
printf '%s\n' '{"prompt":"1+1=","response":"2"}' '{"prompt":"2+2=","response":"4"}' >chat.jsonl
expect "conversations" train chat $(keys_of llama) model.init_from=base-llama lora.r=3 data.train=chat.jsonl \
    data.val=chat.jsonl lora.target_modules=q_proj,v_proj
expect "chat" sh -c "echo 1+1= | '$tapir' chat chat"

# ---- what is said of it --------------------------------------------------------------------------
plan() {
    "$tapir" plan "$src/configs/tests/tiny.yaml" model.layers=2 model.init_from=base-llama $(keys_of llama) "$@" >said
}
expect "plan" plan lora.r=3
expect "plan: what is trained" grep -qx 'trained          2.11k of 1[0-9.]*k parameters   (LoRA, r 3)' said
expect "plan without" plan
expect "plan without: all are" sh -c '! grep -q trained said'
expect "plan for machines" plan --json
mv said full.json
expect "plan for machines, LoRA" plan --json lora.r=3
mv said lora.json
expect "plan: a third of the products goes" awk "BEGIN {exit !($(number step_flops lora.json) < \
    0.95 * $(number step_flops full.json))}"
expect "plan: gradients of adapters only" [ "$(number gradient_mb lora.json)" = \
    "$(awk "BEGIN {printf \"%.3f\", $(number trained lora.json) * 4e-6}")" ]
expect "plan: the peak is the run's" awk "BEGIN {d = $(number peak_mb lora.json) - \
    $(number memory_mb llama/metrics.jsonl); exit !(d * d < 1e-6)}"

expect "a run without" train second $(keys_of llama) model.init_from=base-llama
# ---- what it refuses ----------------------------------------------------------------------------
refuses 'set model.init_from' train x1 lora.r=3
refuses '"foo" is no matrix of a block of family llama' train x2 $(keys_of llama) model.init_from=base-llama \
    lora.r=3 lora.target_modules=foo
refuses 'tapir export, then tapir import' train x3 $(keys_of llama) model.init_from=llama lora.r=2
refuses 'lora.r: the adapters that there are have another value' train x4 $(keys_of llama) model.init_from=llama lora.r=0
refuses 'lora.r: the adapters that there are have another value' train llama $(keys_of llama) \
    model.init_from=base-llama lora.r=4 run.steps=8 --resume
refuses 'was trained with another config: "r: 0" there, "r: 3" now' train second $(keys_of llama) \
    model.init_from=base-llama lora.r=3 --resume

echo "$checks checks, $bad failed"
[ $bad = 0 ]
