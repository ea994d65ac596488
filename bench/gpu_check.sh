#!/bin/sh
# Everything that needs a GPU, in one command: builds, runs the op and training tests on the device,
# compute-sanitizer on the kernels, then the benchmarks beside PyTorch, and prints one table. What is
# built already is not built again.
#
#     bench/gpu_check.sh [--no-build] [--quick]
#
# --no-build: take build-cuda/ as it is (built elsewhere). --quick: no benchmarks. Exits with 1 if a
# test failed.
set -u
cd "$(dirname "$0")/.."
build=build-cuda
out=${OUT:-$build/gpu-check}
mkdir -p "$out"
make=yes bench=yes
for a in "$@"; do
    case $a in
    --no-build) make=no ;;
    --quick) bench=no ;;
    *) sed -n '2,10p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
    esac
done
table="$out/table.txt"
: >"$table"
failed=0
row() { printf '%-34s %-8s %s\n' "$1" "$2" "$3" >>"$table"; }
# check NAME COMMAND…: one row; the output goes to a file.
check() {
    name=$1
    shift
    log="$out/$(echo "$name" | tr ' /' '__').log"
    start=$(date +%s)
    if "$@" >"$log" 2>&1; then
        verdict=ok
    else
        verdict=FAILED
        failed=1
        tail -n 15 "$log"
    fi
    row "$name" $verdict "$(($(date +%s) - start)) s   $(tail -n 1 "$log" | cut -c1-90)"
    echo "$verdict  $name"
}

command -v nvidia-smi >/dev/null || { echo "gpu_check: there is no nvidia-smi, so no GPU" >&2; exit 1; }
card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)
echo "$card, $(date +%F)"

# ---- build
if [ $make = yes ]; then
    check "build" sh -c "cmake --preset cuda && cmake --build $build -j \$(nproc)"
    [ $failed = 0 ] || exit 1
fi

# ---- the ops, on the device
ops=$("$build/tapir" ops | awk '{print $1}')
each_op() {
    bad=0
    for op in $ops; do
        "$build/cuda_op_test" "$op" || { bad=1; echo "FAILED $op"; }
    done
    return $bad
}
check "ops on the device" each_op
for t in "$build"/cuda_*_test; do
    [ "$t" = "$build/cuda_op_test" ] || check "$(basename "$t" _test | tr _ ' ')" "$t"
done
[ -e tests/cuda/train.sh ] && check "training" sh tests/cuda/train.sh "$build/tapir" .

check "registers and spills" sh tests/cuda/registers.sh .

# ---- compute-sanitizer
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        for op in gelu layernorm_backward softmax matmul attention attention_backward \
            embedding_backward linear_cross_entropy_train adamw_; do
            check "$tool $op" compute-sanitizer --tool $tool --error-exitcode 1 "$build/cuda_op_test" $op
        done
    done
else
    row "compute-sanitizer" "absent" ""
fi

# ---- benchmarks, beside PyTorch where it is there
figures() {
    name=$1
    shift
    log="$out/$name.txt"
    "$@" >"$log" 2>&1 || { failed=1; row "$name" FAILED "$(tail -n 1 "$log" | cut -c1-90)"; }
    cat "$log"
    sed 's/^/    /' "$log" >>"$table"
}
if [ $bench = yes ]; then
    figures attention_bits "$build/bench_cuda_attention" --runs 200 128 4096 0
    if python3 -c 'import torch' 2>/dev/null; then
        for what in attention loss step; do
            figures $what python3 bench/peers/pytorch_gpu.py $what --build $build --rounds 2
        done
    else
        row "PyTorch" "absent" "the figures below stand alone"
        figures attention "$build/bench_cuda_attention"
        figures loss "$build/bench_cuda_loss"
        for c in gpt2-124m llama-1.3b; do
            figures $c "$build/tapir" bench step configs/bench/$c-cuda.yaml --steps 8 --warmup 3
        done
    fi
    [ -x "$build/bench_cuda_gemm" ] && figures gemm "$build/bench_cuda_gemm"
fi

echo "== $card"
cat "$table"
exit $failed
