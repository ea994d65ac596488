/* cast.
 *
 *   y = x in another type   so   dx = dy in x's type. */
#include "ops/cast/cast.h"
#include "ops/convert.h"
#include "ops/elementwise.h"
#include <math.h>

extern const tp_op op_cast;
TP_CPU_DECLARE(cast_cpu);
TP_CUDA_DECLARE(cast_cuda);

typedef struct cast_attr {
    int32_t dtype;
} cast_attr;

tp_tensor *tp_cast(tp_ctx *c, tp_tensor *x, tp_dtype t) {
    if (x && x->dtype == t) return x;
    return tp_op1(c, &op_cast, &(cast_attr){(int32_t)t}, x);
}

static tp_status cast_infer(tp_call *k) {
    const cast_attr *a = k->attr;
    if (a->dtype < 0 || a->dtype >= TP_NDTYPE)
        return tp_refuse(k, TP_EDTYPE, "there is no dtype number %d", a->dtype);
    return tp_out(k, (tp_dtype)a->dtype, k->in[0]->ndim, k->in[0]->shape);
}

static tp_status cast_oracle(const tp_call *k) {
    static const double top[TP_NDTYPE] = {
        [TP_I32] = INT32_MAX, [TP_I64] = (double)INT64_MAX, [TP_U8] = 255};
    const tp_tensor *x = k->in[0], *y = k->out[0];
    bool whole = !tp_is_float(y->dtype), i64 = x->dtype == TP_I64 && y->dtype == TP_I64;
    for (int64_t i = 0, n = tp_numel(y); i < n; i++) {
        double v = tp_get(x, i), hi = top[y->dtype], lo = y->dtype == TP_U8 ? 0 : -hi - 1;
        if (i64)
            ((int64_t *)y->data)[i] = ((const int64_t *)x->data)[i];
        else if (whole && y->dtype == TP_I64 && !(fabs(v) < hi)) /* 2^63 is no int64_t */
            ((int64_t *)y->data)[i] = isnan(v) ? 0 : v > 0 ? INT64_MAX : INT64_MIN;
        else
            tp_set(y, i, !whole ? v : isnan(v) ? 0 : fmin(fmax(trunc(v), lo), hi));
    }
    return TP_OK;
}

static void cast_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_cast(k->ctx, dout[0], k->in[0]->dtype);
}

/* clang-format off */
#define TO(t) &(const cast_attr){t}
static const tp_sample cast_samples[] = {
    {"to f64", {{TP_GEN_NORMAL, 2, {17, 33}}}, TO(TP_F64)},
    {"to f32", {{TP_GEN_NORMAL, 2, {17, 33}}}, TO(TP_F32), .no_grad = true},
    {"to bf16", {{TP_GEN_NORMAL, 2, {17, 33}}}, TO(TP_BF16), .no_grad = true},
    {"to i32", {{TP_GEN_NORMAL, 1, {70}, 0, 50}}, TO(TP_I32)},
    {"to i64, saturating", {{TP_GEN_NORMAL, 1, {70}, 0, 1e19}}, TO(TP_I64)},
    {"to u8, saturating", {{TP_GEN_NORMAL, 1, {70}, 0, 300}}, TO(TP_U8)},
    {"from i32", {{TP_GEN_INT, 2, {7, 9}, -9, 9}}, TO(TP_F32)},
    {"from i64", {{TP_GEN_INT, 2, {7, 9}, -9, 9, .dtype = TP_I64}}, TO(TP_U8)},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, TO(TP_F64)},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 3}}}, TO(TP_F64)},
    {"dtype", {{TP_GEN_NORMAL, 1, {3}}}, TO(99), .refuse = "no dtype number 99"},
    {0},
};
static const tp_attr cast_attrs[] = {{"dtype", TP_ATTR_INT, offsetof(cast_attr, dtype)}, {0}};
/* clang-format on */

const tp_op op_cast = {
    .name = "cast",
    .synopsis = "y = x in another dtype",
    .doc = "Changes the element type. Casts are never implicit.",
    .infer = cast_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(cast_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&cast_cuda)},
    .oracle = cast_oracle,
    .vjp = cast_vjp,
    .attrs = cast_attrs,
    .attr_bytes = sizeof(cast_attr),
    .samples = cast_samples,
};
