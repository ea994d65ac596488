#!/bin/sh
# ptx.sh BUILD SOURCE [all]: compiles every kernel with nvcc as far as PTX, and runs that on the CPU
# (tests/cuda_on_cpu/ptx.h): the ops' tests pass, and training has the bits that g++'s kernels give.
# What a GPU runs is one step further, ptxas. Changed instructions must be noticed.
# For sm_90a, where the emulator is a Hopper; all: for sm_80 as well, and whatever tests kernels.
# Exits with 77 (skipped) where there is no nvcc, or the kernels in BUILD are not the emulator's.
set -u
build=$(cd "$1" && pwd)
src=$(cd "$2" && pwd)
all=${3:-}
command -v nvcc >/dev/null || { echo "skipped: there is no nvcc"; exit 77; }
[ -x "$build/tapir_emulated" ] || { echo "skipped: the kernels in $build are a GPU's"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. "$src/tests/lib/runs.sh"
. "$src/tests/cuda/expect.sh"
jobs=$(nproc)

compile() { # compile ARCH FOLDER
    mkdir "$dir/$2"
    (cd "$src" && ls core/*.cu ops/*/*.cu tests/cuda/hopper_test.cc) >"$dir/sources"
    xargs -P "$jobs" -n 1 sh -c 'exec nvcc -x cu -std=c++20 --fmad=false -I"$0" -I"$0/tests/lib" -arch="$1" -DTAPIR_SM90A -ptx \
        "$0/$3" -o "$2/$(basename "${3%.*}").ptx" -diag-suppress=177' "$src" "$1" "$dir/$2" <"$dir/sources" >"$dir/err" 2>&1
}
# Runs each command of the list on standard input; what a failing one said is shown.
all_pass() { # all_pass FOLDER SM
    export TAPIR_EMU_PTX="$dir/$1" TAPIR_EMU_SM="$2"
    xargs -P "$jobs" -I '{}' sh -c 'said=$({} 2>&1) || { echo "{}:"; echo "$said" | tail -n 3; exit 1; }' >"$dir/err" 2>&1
    passed=$?
    unset TAPIR_EMU_PTX TAPIR_EMU_SM
    return $passed
}
# A change of some of a kernel's instructions: what the command says of it stands in $dir/said.
changed() { # changed FILE SED-PROGRAM COMMAND…
    rm -rf "$dir/changed" "$dir/err"
    mkdir "$dir/changed"
    ln -s "$dir"/sm90/*.ptx "$dir/changed/"
    rm "$dir/changed/$1.ptx"
    sed "$2" "$dir/sm90/$1.ptx" >"$dir/changed/$1.ptx"
    if cmp -s "$dir/sm90/$1.ptx" "$dir/changed/$1.ptx"; then echo "nothing to change"; return 1; fi
    shift 2
    if TAPIR_EMU_PTX="$dir/changed" TAPIR_EMU_SM=90 timeout 300 "$@" >"$dir/said" 2>&1; then return 1; fi
}
noticed() { # by a test, not by the reader of PTX
    changed "$@" && grep -q -e FAILED -e error "$dir/said" && ! grep 'PTX: ' "$dir/said"
}
refused() { # refused PATTERN FILE SED-PROGRAM COMMAND…
    pattern=$1
    shift
    changed "$@" && grep -q "PTX: $1.ptx, line [0-9]*: $pattern" "$dir/said"
}
hash_of_training() { # hash_of_training FOLDER SM WORD…; no folder: g++'s kernels
    [ -z "$1" ] || export TAPIR_EMU_PTX="$dir/$1"
    export TAPIR_EMU_SM="$2"
    shift 2
    rm -rf "$dir/run"
    "$build/tapir_emulated" train "$src/configs/tests/cuda.yaml" device=cuda run.steps=2 run.dir="$dir/run" \
        data.train="$dir/train.h5" data.val="$dir/val.h5" "$@" >"$dir/err" 2>&1
    unset TAPIR_EMU_PTX TAPIR_EMU_SM
    "$build/tapir" hash "$dir/run" 2>>"$dir/err" | cut -d' ' -f1
}
same_training() { # same_training FOLDER SM WORD…
    sm=$2
    nvcc=$(hash_of_training "$@")
    shift 2
    gcc=$(hash_of_training "" "$sm" "$@")
    echo "sm_$sm $*: $nvcc"
    [ -n "$nvcc" ] && [ "$nvcc" = "$gcc" ]
}

ops=$(sed -n 's/^    &op_\(.*\),/\1/p' "$build/op_table.c")
programs="hopper hopper_attention attention_large layouts mlp"
make_corpus "$build/tapir" "$dir" 200
expect "nvcc compiles every kernel for sm_90a" compile sm_90a sm90
for op in $ops; do echo "$build/cuda_op_test $op"; done >"$dir/list"
[ -z "$all" ] || programs="$programs gemm lce decode packed same_bits attention_tiles"
for program in $programs; do echo "$build/cuda_${program}_test"; done >>"$dir/list"
[ -n "$all" ] || sed -i 's/attention_large_test$/& D/' "$dir/list" # random problems take long
echo "sh $src/tests/cuda/grpo.sh $build/tapir_emulated $src" >>"$dir/list" # decoding has training's bits
[ -z "$all" ] || echo "sh $src/tests/cuda/wide.sh $build/tapir_emulated $src short" >>"$dir/list"
expect "all of sm_90a" all_pass sm90 90 <"$dir/list"
if [ -n "$all" ]; then
    expect "nvcc compiles every kernel for sm_80" compile sm_80 sm80
    grep -e op_test -e layouts -e same_bits -e attention_tiles "$dir/list" >"$dir/list80" # others pretend to be a Hopper
    expect "all of sm_80" all_pass sm80 80 <"$dir/list80"
    for f in "model.family=gpt2 dtype=bf16" "model.family=llama dtype=f32"; do
        expect "sm_80: training has g++'s bits: $f" same_training sm80 80 $f
    done
fi
for f in "model.family=gpt2 dtype=bf16 model.dropout=0.1" "model.family=llama dtype=bf16" \
    "model.family=llama mod.capacity=0.25 data.packing=documents mod.segments=document train.optimizer=muon"; do
    expect "training has g++'s bits: $f" same_training sm90 90 $f
done

# Of each instruction that is written in assembly, and of what the compiler wrote, a change that must be noticed.
while IFS='|' read -r what file test change; do
    set -- "$build/cuda_op_test" "$test"
    [ "$test" != hopper ] || set -- "$build/cuda_hopper_test"
    expect "$what" noticed "$file" "$change" "$@"
done <<'CHANGES'
an addition|gelu|gelu|s/add\.rn\.f32/sub.rn.f32/
an index|embedding|embedding|s/\(mul\.wide\.u32.*\), 8;/\1, 4;/
a barrier|layernorm|layernorm|/bar\.sync/d
halves of a pair|attention_sm90|attention|s/\(cvt\.rn\.bf16x2\.f32 %r[0-9]*\), \(%f[0-9]*\), \(%f[0-9]*\)/\1, \3, \2/
ldmatrix does not transpose|gemm_mma|matmul|s/x4\.trans/x4/
mma's a|gemm_mma|matmul|s/\(mma[^{]*{[^}]*}, *{\)\(%r[0-9]*\), *\(%r[0-9]*\)/\1\3, \2/
mma's b|gemm_mma|matmul|s/\(mma[^{]*{[^}]*}, *{[^}]*}, *{\)\(%r[0-9]*\), *\(%r[0-9]*\)/\1\3, \2/
copies are not waited for|gemm_mma|matmul|s/cp\.async\.wait_group 2/cp.async.wait_group 3/
wgmma's a is transposed|hopper_test|hopper|s/p, 1, 1, 0, 0;/p, 1, 1, 1, 0;/
its b is not|hopper_test|hopper|s/p, 1, 1, 1, 1;/p, 1, 1, 1, 0;/
its b is not, with a in registers|hopper_test|hopper|s/p, 1, 1, 1;/p, 1, 1, 0;/
its sign|hopper_test|hopper|s/p, 1, 1, 0, 0;/p, -1, 1, 0, 0;/
it adds to nothing|hopper_test|hopper|s/setp\.ne\.b32 p, %r[0-9]*, 0;/setp.ne.b32 p, 1, 1;/
its a's registers|hopper_test|hopper|s/\(mma_async[^{]*{[^}]*}, {%r[0-9]*\), \(%r[0-9]*\), \(%r[0-9]*\)/\1, \3, \2/
its d's registers|hopper_test|hopper|s/\(mma_async[^{]*{\)\(%f[0-9]*\), \(%f[0-9]*\)/\1\3, \2/
it is not waited for|hopper_test|hopper|s/wgmma\.wait_group\.sync\.aligned 0/wgmma.wait_group.sync.aligned 7/
no wgmma.fence|hopper_test|hopper|/wgmma\.fence/d
TMA's coordinates|hopper_test|hopper|s/\(bytes \[%r[0-9]*\], \[%rd[0-9]*, {\)\(%r[0-9]*\), \(%r[0-9]*\)/\1\3, \2/
its bytes are not announced|hopper_test|hopper|s/mbarrier\.arrive\.expect_tx/mbarrier.arrive/; s/\(mbarrier\.arrive\.shared..cta\.b64 _, \[%r[0-9]*\]\), %r[0-9]*/\1/
no fence of stores|hopper_test|hopper|/fence\.proxy\.async\.shared/d
waiting does not go on|hopper_test|hopper|s/bra again;/bra done;/
no fence of mbarriers|hopper_test|hopper|/fence\.mbarrier_init/d
no fence behind a flag|hopper_test|hopper|/fence\.proxy\.async\.global/d
only the reading is waited for|hopper_test|hopper|s/cp\.async\.bulk\.wait_group 0/cp.async.bulk.wait_group.read 0/
stored, not added|hopper_test|hopper|s/cp\.reduce\.async\.bulk\.global\.shared..cta\.bulk_group\.add\.f32/cp.async.bulk.global.shared::cta.bulk_group/
CHANGES
# What is not done as a GPU would do it is refused.
while IFS='|' read -r what change; do
    expect "$what" refused "$what" gelu "$change" "$build/cuda_op_test" gelu
done <<'CHANGES'
an unknown instruction|s/add\.rn\.f32/addc.rn.f32/
an unknown modifier|s/add\.rn\.f32/add.rn.ftz.f32/
a type that is not known here|s/fma\.rn\.f32/fma.rn.bf16/
an unknown register|s/%tid\.x/%laneid/
another number of operands|s/\(fma\.rn\.f32.*\), %f[0-9]*;/\1;/
a number not understood|s/0f[0-9A-F]*;/1.0;/
an offset|s/\(mov\.u32.*, [^ ]*\);/\1+4;/
CHANGES
echo "$checks checks, $failed failed"
[ $failed = 0 ]
