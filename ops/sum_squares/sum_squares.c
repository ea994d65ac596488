/* sum_squares: y = sum x^2 in double, chunk by chunk. */
#include "ops/sum_squares/sum_squares.h"

extern const tp_op op_sum_squares;
TP_CPU_DECLARE(sum_squares_cpu);
TP_CUDA_DECLARE(sum_squares_cuda);

static tp_status sum_squares_infer(tp_call *k) {
    tp_status st = tp_need_float(k, 0, "x");
    int64_t chunks = st ? 0 : (tp_numel(k->in[0]) + TP_SQUARES_CHUNK - 1) / TP_SQUARES_CHUNK;
    return st ? st : tp_out(k, TP_F64, 1, &chunks);
}

static tp_status sum_squares_oracle(const tp_call *k) {
    const double *x = tp_f64(k->in[0]);
    double *sum = tp_f64(k->out[0]);
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++) {
        if (i % TP_SQUARES_CHUNK == 0) sum[i / TP_SQUARES_CHUNK] = 0;
        sum[i / TP_SQUARES_CHUNK] += x[i] * x[i];
    }
    return TP_OK;
}

tp_tensor *tp_sum_squares(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_sum_squares, NULL, x); }

static double sum_squares_flops(const tp_call *k) { return 2.0 * (double)tp_numel(k->in[0]); }

static const tp_sample sum_squares_samples[] = {
    {"vector", {{TP_GEN_NORMAL, 1, {37}}}},
    {"several chunks", {{TP_GEN_NORMAL, 2, {5, 40000}}}},
    {"one chunk", {{TP_GEN_NORMAL, 1, {4096}}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}},
    {"huge", {{TP_GEN_NORMAL, 1, {9}, 0, 1e37}}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "x must be a float tensor, got i32"},
    {0},
};

const tp_op op_sum_squares = {
    .name = "sum_squares",
    .synopsis = "y = sum x^2",
    .doc = "The squared Euclidean length in double of every 4096 values in a row, so that clipping "
           "gives the same bits when a gradient is cut into shards. A chunk's is finite exactly if "
           "each of its f32 values is.",
    .infer = sum_squares_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(sum_squares_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&sum_squares_cuda)},
    .oracle = sum_squares_oracle,
    .no_vjp = "measures gradients; sum(mul(x,x)) is differentiable",
    .flops = sum_squares_flops,
    .samples = sum_squares_samples,
};
