#!/bin/sh
# Everything that needs a GPU, in one command: builds, runs the op and training tests on the device,
# compute-sanitizer on the kernels, then the benchmarks beside PyTorch, and prints one table. What is
# built already is not built again.
#
#     bench/gpu_check.sh [--no-build] [PART…]
#     bench/gpu_check.sh --pack FILE.tar.xz
#
# PART: ops, programs, training (tests: these three), sanitize, attention, loss, step, gemm, curve; without
# one, all of them, in this order. Each takes under ten minutes.
# --no-build: take build-cuda/ as it is. --pack: only builds, on any machine with nvcc, and packs the
# programs, the libraries they need, and the text of `curve`. Unpacked in a checkout on a machine that
# has a GPU and CUDA's runtime but none of the packages, --no-build works there.
# Logs go to build-cuda/gpu-check. Where OUT names a folder, it has the table so far (table.txt) and all
# logs (gpu-check.tar.gz) after each part. Exits with 1 if anything failed; a check that hangs is ended.
set -u
cd "$(dirname "$0")/.."
build=build-cuda
out=$build/gpu-check
usage() { sed -n '2,15p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
make=yes pack= parts=
while [ $# -gt 0 ]; do
    case $1 in
    --no-build) make=no ;;
    --pack) [ $# = 2 ] || { echo "gpu_check: --pack wants one file" >&2; usage; }; pack=$2; shift ;;
    tests) parts="$parts ops programs training" ;;
    ops | programs | training | sanitize | attention | loss | step | gemm | curve) parts="$parts $1" ;;
    *) echo "gpu_check: $1 is no part and no option" >&2; usage ;;
    esac
    shift
done
mkdir -p "$out"
table="$out/table.txt"
: >"$table"
failed=0
row() { printf '%-34s %-8s %s\n' "$1" "$2" "$3" | tee -a "$table"; }
# told CODE: sets verdict, and failed.
told() {
    case $1 in
    0) verdict=ok ;;
    77) verdict=skipped ;;
    124 | 137) verdict=HANGS failed=1 ;;
    *) verdict=FAILED failed=1 ;;
    esac
}
# check NAME SECONDS COMMAND…: one row; the output goes to a file.
check() {
    name=$1 limit=$2
    shift 2
    log="$out/$(echo "$name" | tr ' /' '__').log"
    start=$(date +%s)
    timeout -k 5 "$limit" "$@" >"$log" 2>&1
    told $?
    case $verdict in ok | skipped) ;; *) tail -n 15 "$log" ;; esac
    row "$name" $verdict "$(($(date +%s) - start)) s   $(tail -n 1 "$log" | cut -c1-90)"
}
# each NAME JOBS SECONDS TOTAL COMMAND: COMMAND with every line of the input behind it, JOBS at a time; one
# row. What TOTAL seconds do not reach is left, and told.
each() {
    name=$1 log="$out/$(echo "$1" | tr ' ' '_').log" start=$(date +%s)
    export each_limit=$3 each_end=$((start + $4)) each_command="$5"
    xargs -P "$2" -I@ sh -c '
        left=$((each_end - $(date +%s)))
        [ $left -ge 5 ] || { echo "LEFT $1"; exit; }
        limit=$each_limit
        [ $left -ge $limit ] || limit=$left
        o=$(eval "timeout -k 5 $limit $each_command $1" 2>&1)
        rc=$?
        case $rc in
        0) echo "$o" ;;
        124 | 137) [ $limit -lt $each_limit ] && printf "%s\nLEFT %s\n" "$o" "$1" || printf "%s\nFAILED %s (hangs)\n" "$o" "$1" ;;
        *) printf "%s\nFAILED %s (%s)\n" "$o" "$1" $rc ;;
        esac' sh @ >"$log"
    bad=$(grep -c '^FAILED .* ([0-9a-z]*)$' "$log") left=$(grep -c '^LEFT ' "$log")
    verdict=ok
    [ "$left" = 0 ] || verdict=PARTLY
    [ "$bad" = 0 ] || { verdict=${failing:-FAILED}; grep -B 12 '^FAILED .* ([0-9a-z]*)$' "$log" | head -n 60; }
    row "$name" $verdict "$(($(date +%s) - start)) s   $bad failed, $left left $(sed -n 's/^FAILED \([^ ]*\) (.*/\1/p; s/^\(LEFT [^ ]*\)$/\1/p' "$log" |
        sort -k 2 | tr '\n' ' ' | cut -c1-80)"
}
# figures NAME SECONDS COMMAND…: a benchmark; its lines go into the table.
figures() {
    name=$1 log="$out/$1.txt" limit=$2
    shift 2
    timeout -k 5 "$limit" "$@" >"$log" 2>&1
    told $?
    [ $verdict = ok ] || row "$name" $verdict "within $limit s"
    sed 's/^/    /' "$log" | tee -a "$table"
}

# The Bible's text, for `curve`: quickstart.sh's corpora.
curve_text() {
    at=runs/quickstart
    [ -e $at/train.h5 ] && [ -e $at/val.h5 ] && return
    command -v bible >/dev/null || return
    mkdir -p $at
    bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' >$at/text.txt
    "$1" prepare $at/text.txt --out $at/train.h5 --val $at/val.h5 --val-fraction 0.1 --vocab 4096
}

# Programs without what a debugger wants, each behind a script that finds the libraries.
pack_into() {
    dir=$(mktemp -d) bin=$(mktemp -d)
    trap 'rm -rf "$dir" "$bin"' EXIT
    mkdir -p "$dir/$build/bin" "$dir/$build/lib" "$dir/runs"
    for p in $build/tapir $build/cuda_*_test $build/bench_cuda_*; do
        name=$(basename "$p")
        strip -o "$dir/$build/bin/$name" "$p"
        cat >"$dir/$build/$name" <<'END'
#!/bin/sh
# Debian's libraries are for this program only: what else runs here has its own.
here=$(cd "$(dirname "$0")" && pwd)
libs=$here/lib
for l in /usr/local/cuda/lib64 /usr/local/cuda/lib /usr/local/cuda/targets/*/lib $TAPIR_CUDA_LIBS; do
    [ -e "$l/libcublasLt.so.13" ] && libs=$libs:$l
done
LD_LIBRARY_PATH=$libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$here/bin/$(basename "$0")" "$@"
END
        chmod +x "$dir/$build/$name"
        ldd "$p"
    done | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u | grep -v -E '/(libc|libm|libdl|librt|libpthread|libresolv|libutil|libnsl|libanl|libcublas[A-Za-z]*|libcuda)\.so' |
        while read -r lib; do cp -L "$lib" "$dir/$build/lib/"; done
    curve_text $build/tapir
    [ -e runs/quickstart/train.h5 ] && mkdir -p "$dir/runs/quickstart" &&
        cp runs/quickstart/train.h5 runs/quickstart/val.h5 "$dir/runs/quickstart/"
    XZ_OPT='--lzma2=preset=6,dict=256MiB' tar -cJf "$1" -C "$dir" $build runs || exit 1
    ls -l "$1"
    exit 0
}

# ---- build
if [ -n "$pack" ] || [ $make = yes ]; then
    check "build" 1800 sh -c "cmake --preset cuda && cmake --build $build -j \$(nproc)"
    [ $failed = 0 ] || exit 1
fi
[ -n "$pack" ] && pack_into "$pack"

command -v nvidia-smi >/dev/null || { echo "gpu_check: there is no nvidia-smi, so no GPU" >&2; exit 1; }
[ -x $build/tapir ] || { echo "gpu_check: there is no $build/tapir" >&2; exit 1; }
card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)
echo "$card, $(date +%F)"
# Where pip puts CUDA's libraries, if there is no toolkit (programs that were packed look there).
TAPIR_CUDA_LIBS="${TAPIR_CUDA_LIBS:-} $(python3 -c 'import glob, nvidia
for p in nvidia.__path__: print(*glob.glob(p + "/*/lib"))' 2>/dev/null)"
export TAPIR_CUDA_LIBS
$build/tapir version 2>&1 | grep -q '^cuda.*compute capability' ||
    { echo "gpu_check: $build/tapir sees no GPU: $($build/tapir version 2>&1 | grep -i 'cu[db]')" >&2; exit 1; }
torch=no
python3 -c 'import torch' 2>/dev/null && torch=yes
cores=$(nproc)
[ "$cores" -gt 8 ] && cores=8

part_ops() {
    $build/tapir ops | awk '{print $1}' | each "ops on the device" "$cores" 120 500 $build/cuda_op_test
}
part_programs() {
    for t in $build/cuda_*_test; do
        [ "$t" = $build/cuda_op_test ] || check "$(basename "$t" _test | tr _ ' ')" 120 "$t"
    done
}
part_training() {
    check "training" 320 sh tests/cuda/train.sh $build/tapir .
    check "reinforcement learning" 130 sh tests/cuda/grpo.sh $build/tapir .
    check "real widths" 130 sh tests/cuda/wide.sh $build/tapir .
}
# sanitizer NAME TOOL WORDS: the ops of the input. Errors of calls are told by the program itself. What is slow
# under a tool does not hang: only the total bounds it.
sanitizer() {
    each "$1" 4 999 130 "compute-sanitizer --target-processes all --report-api-errors no --tool $2 ${3:-} --error-exitcode 1 $build/cuda_op_test"
}
# racecheck knows neither what orders the kernels inside cuBLASLt (here by name), nor that an mbarrier orders a bulk
# copy without a tensor map, by which attention_backward reads its rows' statistics on Hopper: what it says
# there is to be read, and fails nothing. (Dao-AILab/flash-attention, AI/RACECHECK_TMA_HAZARD.md)
part_sanitize() {
    command -v compute-sanitizer >/dev/null || { row "compute-sanitizer" absent ""; return; }
    compute-sanitizer --report-api-errors no --error-exitcode 1 $build/tapir version >"$out/sanitizer.log" 2>&1 ||
        { row "compute-sanitizer" absent "cannot look at this device: $out/sanitizer.log"; return; }
    ops="attention linear_cross_entropy_train matmul matmul_wgrad embedding_backward topk paged_attention
        layernorm_backward softmax gelu adamw_ newton_schulz rope"
    printf '%s\n' attention_backward $ops | sanitizer memcheck memcheck
    printf '%s\n' $ops | sanitizer racecheck racecheck "--kernel-name-exclude 'regex=nvjet|cutlass|xmma|magma|gemmSN|gemv|cublas'"
    echo attention_backward | failing=READ sanitizer "racecheck, bulk copies" racecheck
    printf '%s\n' attention_backward $ops | sanitizer synccheck synccheck
}
part_attention() {
    figures attention_bits 180 $build/bench_cuda_attention --runs 200 128 4096 0 # each result comes to the host
    figures attention_bits_64 60 $build/bench_cuda_attention --runs 50 64 1024 1
    if [ $torch = yes ]; then
        figures attention 300 python3 bench/peers/pytorch_gpu.py attention --build $build --rounds 2
    else
        figures attention 300 $build/bench_cuda_attention
    fi
}
part_loss() {
    if [ $torch = yes ]; then
        figures loss 300 python3 bench/peers/pytorch_gpu.py loss --build $build --rounds 2
    else
        figures loss 300 $build/bench_cuda_loss
    fi
}
part_step() {
    if [ $torch = yes ]; then
        figures step 540 python3 bench/peers/pytorch_gpu.py step --build $build --rounds 2
    else
        for c in gpt2-124m llama-1.3b; do
            figures $c 200 $build/tapir bench step configs/bench/$c-cuda.yaml --steps 8 --warmup 3
        done
    fi
}
part_gemm() { figures gemm 200 $build/bench_cuda_gemm; }
part_curve() {
    curve_text $build/tapir
    if [ -e runs/quickstart/train.h5 ]; then
        figures curve 400 sh bench/gpu_curve.sh $build/tapir "$out"
    else
        row "curve" absent "neither runs/quickstart/train.h5 nor the program bible is here"
    fi
}
[ $torch = no ] && row "PyTorch" absent "the figures stand alone"
# While a program holds the device the driver does not close it between two others, which takes seconds.
[ -r /dev/nvidia0 ] && exec 9</dev/nvidia0
for part in ${parts:-ops programs training sanitize attention loss step gemm curve}; do
    part_$part
    [ -z "${OUT:-}" ] && continue
    cp "$table" "$OUT/table.txt"
    tar -czf "$OUT/gpu-check.tar.gz" -C $build gpu-check
done

echo "== $card"
cat "$table"
grep -qE '^.{34} (FAILED|HANGS|PARTLY)' "$table" && failed=1 # those at a pipe's end as well
exit $failed
