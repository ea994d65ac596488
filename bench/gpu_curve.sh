#!/bin/sh
# The loss of 200 steps on the King James Bible, quickstart.sh's model and text: on the GPU in bf16 and in
# f32 beside the CPU in f32, step by step. A second run, and one that was ended with kill -9 and resumed,
# must have the first one's bits.
#
#     bench/gpu_curve.sh TAPIR FOLDER [KEY=VALUE…]
#
# FOLDER receives curve.svg. Exits with 1 if bits differ, or the loss: in f32 by more than 0.01 nat at any step, in
# bf16 by more than 0.01 in the mean. Activations rounded to bf16 alone, on a CPU, part it by 0.006 in the mean and
# by 0.022 at one step; sums in another order, in f32, by 0.00002.
set -u
tapir=$1
out=$2
shift 2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$out"
. tests/lib/runs.sh
words="run.steps=200 log.every=1 eval.every=50 sample.every=1000 checkpoint.every=50 log.tensorboard=false"
run() { # run NAME WORD…
    name=$1
    shift
    "$tapir" train configs/quickstart.yaml run.dir="$dir/$name" $words "$@" >"$dir/$name.out" 2>&1 ||
        { tail -n 3 "$dir/$name.out"; exit 1; }
}
losses() { sed -n 's/.*"train_loss":\([0-9.e+-]*\),.*/\1/p' "$dir/$1/metrics.jsonl"; }
hash_of() { "$tapir" hash "$dir/$1" | cut -d' ' -f1; }
failed=0

run cpu device=cpu "$@" &
cpu=$!
run bf16 device=cuda dtype=bf16 "$@"
run again device=cuda dtype=bf16 "$@"
run f32 device=cuda dtype=f32 "$@"
killed_at "$dir/killed/checkpoints/*100.h5" "$tapir" train configs/quickstart.yaml run.dir="$dir/killed" $words \
    device=cuda dtype=bf16 "$@"
run killed --resume device=cuda dtype=bf16 "$@"
[ "$(hash_of again)" = "$(hash_of bf16)" ] && echo "run to run: the same bits" || { echo "run to run: OTHER BITS"; failed=1; }
[ "$(hash_of killed)" = "$(hash_of bf16)" ] && echo "kill -9 and resume: the same bits" ||
    { echo "kill -9 and resume: OTHER BITS"; failed=1; }
wait $cpu || { echo "the run on the CPU failed"; exit 1; }
for how in bf16 f32; do
    losses cpu >"$dir/a"
    losses $how >"$dir/b"
    paste "$dir/a" "$dir/b" | awk -v how=$how 'NF != 2 { missing = 1 }
        { d = $1 - $2; if (d < 0) d = -d; if (!(d <= worst)) { worst = d; at = NR } sum += d; last = $0 }
        END { printf "%s beside the CPU: %d steps, mean difference %.5f nat, largest %.5f (step %d); last losses %s\n",
                  how, NR, sum / NR, worst, at, last
              exit !(NR >= 1 && !missing && (how == "f32" ? worst <= 0.01 : sum / NR <= 0.01)) }' || failed=1
done
"$tapir" plot "$dir/cpu" "$dir/bf16" --metrics train_loss,val_loss --out "$out/curve.svg" >/dev/null || failed=1
exit $failed
