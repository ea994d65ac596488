# Stops in thread 4 of the attention kernel and looks at what it holds (lesson 10):
#   gdb -q -batch -x docs/lessons/code/cuda/flash.gdb build/lesson_cuda_flash
set filename-display basename
set print frame-arguments none
set print address off

# lesson: fragment
tbreak tp_mma_bf16_16x8x16 if threadIdx.x == 4
run >/dev/null
printf "\n== thread %d is about to multiply\n", threadIdx.x
printf "a, of Q:    %08x %08x %08x %08x\n", a[0], a[1], a[2], a[3]
printf "b, of K^T:  %08x %08x\n", b[0], b[1]
printf "== the way here\n"
backtrace 3
# end
# lesson: weights
tbreak forward_values if threadIdx.x == 4
continue
up
printf "\n== weights of queries 1 and 9: keys 0 and 1, then 8 and 9\n"
output s[0][0]
printf "\n"
output s[0][1]
printf "\n== running maximum, times log2 e; this thread's part of the sum\n"
printf "query 1: %.4f %.4f\n", row.m[0], row.l[0]
printf "query 9: %.4f %.4f\n", row.m[1], row.l[1]
# end
kill
