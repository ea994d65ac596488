/* cast on the CPU: loops for the pairs that training uses, one value at a time for the others. */
#include "ops/cast/cast_math.h"
#include "ops/convert.h"
#include "ops/elementwise.h"

typedef struct cast_pair {
    tp_dtype from, to;
} cast_pair;

static void f32_to_bf16(const tp_run *r) {
    const float *restrict x = r->in[0];
    uint16_t *restrict y = r->out[0];
    for (int64_t i = 0, n = r->n; i < n; i++) y[i] = tp_f32_to_bf16(x[i]);
}

static void bf16_to_f32(const tp_run *r) {
    const uint16_t *restrict x = r->in[0];
    float *restrict y = r->out[0];
    for (int64_t i = 0, n = r->n; i < n; i++) y[i] = tp_bf16_to_f32(x[i]);
}

static int64_t get_integer(const tp_tensor *t, int64_t i) {
    if (t->dtype == TP_I64) return ((const int64_t *)t->data)[i];
    return t->dtype == TP_I32 ? ((const int32_t *)t->data)[i] : ((const uint8_t *)t->data)[i];
}

static void any_to_any(const tp_run *r) {
    const cast_pair *p = r->attr;
    tp_tensor x = {.data = (void *)r->in[0], .dtype = p->from};
    tp_tensor y = {.data = r->out[0], .dtype = p->to};
    for (int64_t i = 0; i < r->n; i++) {
        if (p->to == TP_I64) {
            ((int64_t *)y.data)[i] =
                tp_is_float(p->from) ? cast_to_integer(tp_get(&x, i), p->to) : get_integer(&x, i);
        } else {
            double v = tp_get(&x, i);
            tp_set(&y, i, tp_is_float(p->to) ? v : (double)cast_to_integer(v, p->to));
        }
    }
}

static tp_status cast_run(const tp_call *k) {
    cast_pair p = {k->in[0]->dtype, k->out[0]->dtype};
    tp_call with_pair = *k;
    with_pair.attr = &p;
    tp_run_fn fn = any_to_any;
    if (p.from == TP_F32 && p.to == TP_BF16) fn = f32_to_bf16;
    if (p.from == TP_BF16 && p.to == TP_F32) fn = bf16_to_f32;
    tp_elementwise(&with_pair, 1, k->out, fn);
    return TP_OK;
}
TP_CPU_KERNEL(cast_cpu, .run = cast_run);
