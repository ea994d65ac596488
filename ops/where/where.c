/* where.
 *
 *   y = cond ? a : b   so   da = cond ? dy : 0,  db = cond ? 0 : dy,
 * each summed over the dimensions along which it was repeated. */
#include "ops/where/where.h"
#include "ops/elementwise.h"
#include "ops/fill/fill.h"
#include "ops/sum/sum.h"

extern const tp_op op_where;
TP_CPU_DECLARE(where_cpu);
TP_CUDA_DECLARE(where_cuda);

tp_tensor *tp_where(tp_ctx *c, tp_tensor *cond, tp_tensor *a, tp_tensor *b) {
    return tp_op1(c, &op_where, NULL, cond, a, b);
}

static tp_status where_infer(tp_call *k) {
    tp_status st;
    int ndim;
    int64_t shape[TP_MAXDIM];
    if (k->in[0]->dtype != TP_U8)
        return tp_refuse(k, TP_EDTYPE, "cond must be u8, got %s", tp_dtype_name(k->in[0]->dtype));
    if ((st = tp_need_float(k, 1, "a")) || (st = tp_need_float(k, 2, "b"))) return st;
    if (k->in[1]->dtype != k->in[2]->dtype)
        return tp_refuse(k, TP_EDTYPE, "a and b must have the same dtype, got %s and %s",
                         tp_shape_str(k->ctx, k->in[1]), tp_shape_str(k->ctx, k->in[2]));
    if ((st = tp_broadcast_shape(k, 3, k->in, &ndim, shape))) return st;
    return tp_out(k, k->in[1]->dtype, ndim, shape);
}

static tp_status where_oracle(const tp_call *k) {
    const tp_tensor *cond = k->in[0], *o = k->out[0];
    for (int64_t i = 0, n = tp_numel(o); i < n; i++) {
        bool yes = ((const uint8_t *)cond->data)[tp_broadcast_at(cond, o, i)];
        const tp_tensor *from = yes ? k->in[1] : k->in[2];
        tp_f64(o)[i] = tp_f64(from)[tp_broadcast_at(from, o, i)];
    }
    return TP_OK;
}

static void where_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *cond = k->in[0], *dy = dout[0], *zero = tp_zeros(c, dy->dtype, 0, NULL);
    if (tp_wants(k, 1)) din[1] = tp_sum_like(c, tp_where(c, cond, dy, zero), k->in[1]);
    if (tp_wants(k, 2)) din[2] = tp_sum_like(c, tp_where(c, cond, zero, dy), k->in[2]);
}

/* clang-format off */
#define COND(n, ...) {TP_GEN_INT, n, {__VA_ARGS__}, 0, 2, .dtype = TP_U8}
static const tp_sample where_samples[] = {
    {"same shape", {COND(2, 17, 33), {TP_GEN_NORMAL, 2, {17, 33}}, {TP_GEN_NORMAL, 2, {17, 33}}}},
    {"mask of rows", {COND(2, 5, 1), {TP_GEN_NORMAL, 2, {5, 70}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"mask of columns", {COND(1, 7), {TP_GEN_NORMAL, 1, {1}}, {TP_GEN_NORMAL, 3, {2, 3, 7}}}},
    {"one choice", {COND(0, 0), {TP_GEN_NORMAL, 1, {5}}, {TP_GEN_NORMAL, 2, {4, 1}}}},
    {"long rows", {COND(2, 2, 1), {TP_GEN_NORMAL, 2, {2, 1100}}, {TP_GEN_NORMAL, 1, {1100}}}},
    {"empty", {COND(1, 1), {TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}},
    {"condition", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {3}}}, .refuse = "cond must be u8, got f32"},
    {"unrelated", {COND(1, 2), {TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {3}}}, .refuse = "does not broadcast"},
    {0},
};
/* clang-format on */

const tp_op op_where = {
    .name = "where",
    .synopsis = "y = cond ? a : b",
    .doc = "Chooses between a and b, elementwise with broadcasting.",
    .infer = where_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(where_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&where_cuda)},
    .oracle = where_oracle,
    .vjp = where_vjp,
    .saves_in = 1,
    .flops = tp_flops_1,
    .samples = where_samples,
};
