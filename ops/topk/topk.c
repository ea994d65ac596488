/* topk. y_j = x_{i_j}, and away from ties the i_j do not change with x; so dx is gather_backward(i,
 * dy). Indices are integers and carry no gradient.
 *
 * The kernel turns (value, index) into one 64-bit key whose unsigned order is the order asked for,
 * keeps the n largest keys of a row in a heap with the smallest on top, and sorts them. */
#include "ops/topk/topk.h"
#include "ops/gather/gather.h"
#include "ops/topk/topk_heap.h"
#include <string.h>

extern const tp_op op_topk;
TP_CUDA_DECLARE(topk_cuda);

typedef struct topk_attr {
    int64_t n;
} topk_attr;

static tp_status topk_infer(tp_call *k) {
    const tp_tensor *x = k->in[0];
    int64_t n = ((const topk_attr *)k->attr)->n, shape[TP_MAXDIM];
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_ndim(k, 0, "x", 1, TP_MAXDIM))) return st;
    int64_t channels = x->shape[x->ndim - 1];
    if (channels > INT32_MAX)
        return tp_refuse(k, TP_ESHAPE, "a row of %lld values is too long for i32 indices",
                         (long long)channels);
    if (n < 0 || n > channels)
        return tp_refuse(k, TP_EARG, "n must be 0 to %lld for x %s, got %lld", (long long)channels,
                         tp_shape_str(k->ctx, x), (long long)n);
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = n;
    if ((st = tp_out(k, x->dtype, x->ndim, shape))) return st;
    return tp_out(k, TP_I32, x->ndim, shape);
}

/* ---- in double: n times the next in order --------------------------------------------------- */
static bool before(const double *x, int64_t i, int64_t j) {
    bool nan_i = x[i] != x[i], nan_j = x[j] != x[j];
    if (nan_i != nan_j) return nan_i;
    return x[i] > x[j] || (!(x[i] < x[j]) && i < j);
}

static tp_status topk_oracle(const tp_call *k) {
    int64_t n = ((const topk_attr *)k->attr)->n, channels = tp_dim(k->in[0], -1);
    for (int64_t at = 0, row = 0, all = n ? tp_numel(k->in[0]) : 0; at < all;
         at += channels, row++) {
        const double *x = tp_f64(k->in[0]) + at;
        int64_t last = -1;
        for (int64_t j = 0; j < n; j++) {
            int64_t best = -1;
            for (int64_t i = 0; i < channels; i++)
                if ((last < 0 || before(x, last, i)) && (best < 0 || before(x, i, best))) best = i;
            tp_f64(k->out[0])[row * n + j] = x[best];
            tp_i32(k->out[1])[row * n + j] = (int32_t)best;
            last = best;
        }
    }
    return TP_OK;
}

/* ---- the kernel ----------------------------------------------------------------------------- */
static void topk_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t n = ((const topk_attr *)k->attr)->n, channels = tp_dim(k->in[0], -1);
    for (int64_t row = begin; row < end; row++) {
        const float *x = tp_f32(k->in[0]) + row * channels;
        uint64_t *heap = (uint64_t *)k->workspace + row * n;
        topk_heap_of(heap, n, x, channels);
        for (int64_t left = n; left-- > 0;) { /* the smallest that is left goes to the back */
            int32_t i = topk_index(heap[0]);
            tp_f32(k->out[0])[row * n + left] = x[i];
            tp_i32(k->out[1])[row * n + left] = i;
            topk_sift(heap, left, 0, heap[left]);
        }
    }
}

static tp_status topk_run(const tp_call *k) {
    int64_t n = ((const topk_attr *)k->attr)->n, channels = tp_dim(k->in[0], -1);
    if (n) tp_parallel_for(k->ctx, tp_numel(k->in[0]) / channels, 1, topk_rows, (void *)k);
    return TP_OK;
}

static size_t topk_workspace(const tp_call *k) {
    return (size_t)tp_numel(k->out[0]) * sizeof(uint64_t);
}

tp_tensor *tp_topk(tp_ctx *c, tp_tensor *x, int64_t n, tp_tensor **indices) {
    tp_tensor *out[TP_MAXOUT] = {0};
    tp_op_run(c, &op_topk, &((topk_attr){n}), 1, &x, out);
    *indices = out[1];
    return out[0];
}

static void topk_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_gather_backward(k->ctx, k->out[1], dout[0], tp_dim(k->in[0], -1));
}

#define TOP(n)                                                                                     \
    &(const topk_attr) { n }
#define DISTINCT(...)                                                                              \
    { TP_GEN_DISTINCT, __VA_ARGS__, .lo = -2, .hi = 2 }
static const int32_t ties[] = {1, 2, 2, 0, 2, 1, 1, 0, 0, 2};
static const tp_sample topk_samples[] = {
    {"three of each row", {DISTINCT(2, {5, 33})}, TOP(3)},
    {"half", {DISTINCT(3, {2, 3, 20})}, TOP(10)},
    {"all", {DISTINCT(1, {17})}, TOP(17)},
    {"one", {DISTINCT(1, {130})}, TOP(1)},
    {"none", {DISTINCT(2, {3, 4})}, TOP(0)},
    {"empty", {DISTINCT(2, {0, 4})}, TOP(2)},
    {"ties", {{TP_GEN_UNIFORM, 2, {2, 5}, 1, 1}}, TOP(3), .no_grad = true},
    {"too many", {DISTINCT(2, {3, 4})}, TOP(5), .refuse = "n must be 0 to 4"},
    {"negative", {DISTINCT(2, {3, 4})}, TOP(-1), .refuse = "n must be 0 to 4"},
    {"integers", {{TP_GEN_DATA, 1, {10}, .data = ties}}, TOP(2), .refuse = "x must be a float"},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, TOP(0), .refuse = "1 to 6 dimensions"},
    {0},
};
static const tp_kernel topk_heap = {.name = "topk_heap",
                                    .decline = tp_decline_unless_f32_dense,
                                    .run = topk_run,
                                    .workspace = topk_workspace};
static const tp_attr topk_attrs[] = {{"n", TP_ATTR_I64, offsetof(topk_attr, n)}, {0}};

const tp_op op_topk = {
    .name = "topk",
    .synopsis = "y, i = the n largest",
    .doc =
        "The n largest values of each row, largest first, and their places as i32. Of equal values "
        "the first comes first; NaN counts as largest.",
    .infer = topk_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&topk_heap, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&topk_cuda)},
    .oracle = topk_oracle,
    .vjp = topk_vjp,
    .saves_out = 1 << 1,
    .attrs = topk_attrs,
    .attr_bytes = sizeof(topk_attr),
    .samples = topk_samples,
};
