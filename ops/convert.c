/* Owns reading and writing any tensor as doubles: for oracles, casts, printing and tests. */
#include "ops/convert.h"

double tp_get(const tp_tensor *t, int64_t i) {
    switch (t->dtype) {
    case TP_F32:
        return ((const float *)t->data)[i];
    case TP_F64:
        return ((const double *)t->data)[i];
    case TP_BF16:
        return tp_bf16_to_f32(((const uint16_t *)t->data)[i]);
    case TP_I32:
        return ((const int32_t *)t->data)[i];
    case TP_I64:
        return (double)((const int64_t *)t->data)[i];
    case TP_U8:
        return ((const uint8_t *)t->data)[i];
    default:
        return 0;
    }
}

void tp_set(const tp_tensor *t, int64_t i, double v) {
    switch (t->dtype) {
    case TP_F32:
        ((float *)t->data)[i] = (float)v;
        break;
    case TP_F64:
        ((double *)t->data)[i] = v;
        break;
    case TP_BF16:
        ((uint16_t *)t->data)[i] = tp_f32_to_bf16((float)v);
        break;
    case TP_I32:
        ((int32_t *)t->data)[i] = (int32_t)v;
        break;
    case TP_I64:
        ((int64_t *)t->data)[i] = (int64_t)v;
        break;
    case TP_U8:
        ((uint8_t *)t->data)[i] = (uint8_t)v;
        break;
    default:
        break;
    }
}

int64_t tp_offset(const tp_tensor *t, int64_t i) {
    int64_t at = 0;
    for (int d = t->ndim - 1; d >= 0; d--) {
        at += i % t->shape[d] * t->stride[d];
        i /= t->shape[d];
    }
    return at;
}

void tp_read_f64(const tp_tensor *t, double *dst) {
    int64_t n = tp_numel(t);
    bool dense = tp_contiguous(t);
    for (int64_t i = 0; i < n; i++) dst[i] = tp_get(t, dense ? i : tp_offset(t, i));
}

void tp_write_f64(const tp_tensor *t, const double *src) {
    int64_t n = tp_numel(t);
    bool dense = tp_contiguous(t);
    for (int64_t i = 0; i < n; i++) tp_set(t, dense ? i : tp_offset(t, i), src[i]);
}
