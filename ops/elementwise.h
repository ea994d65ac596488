/* What elementwise ops share: their shape rules and their CPU loops. An op gives the formula. */
#ifndef TP_ELEMENTWISE_H
#define TP_ELEMENTWISE_H
#include "ops/op.h"

tp_status tp_infer_unary(tp_call *k);  /* one float input: out like it */
tp_status tp_infer_binary(tp_call *k); /* two float inputs of one shape and dtype */

enum { TP_ELEMENT_GRAIN = 1 << 14 };   /* 64 KB of floats: two operands stay in L2 */

/* y[i] = expr of x, for dense f32. */
#define TP_UNARY_CPU(id, expr)                                                                     \
    static void id##_range(void *arg, int64_t begin, int64_t end)                                  \
    {                                                                                              \
        const tp_call *k_ = arg;                                                                   \
        const float *restrict x_ = tp_f32(k_->in[0]);                                              \
        float *restrict o_ = tp_f32(k_->out[0]);                                                   \
        for (int64_t i_ = begin; i_ < end; i_++) {                                                 \
            float x = x_[i_];                                                                      \
            o_[i_] = (expr);                                                                       \
        }                                                                                          \
    }                                                                                              \
    static tp_status id##_run(const tp_call *k)                                                    \
    {                                                                                              \
        tp_parallel_for(k->ctx, tp_numel(k->out[0]), TP_ELEMENT_GRAIN, id##_range, (void *)k);     \
        return TP_OK;                                                                              \
    }                                                                                              \
    TP_CPU_KERNEL(id, .decline = tp_decline_unless_f32_dense, .run = id##_run);

/* out[i] = expr of x and y, for dense f32 of one shape. */
#define TP_BINARY_CPU(id, expr)                                                                    \
    static void id##_range(void *arg, int64_t begin, int64_t end)                                  \
    {                                                                                              \
        const tp_call *k_ = arg;                                                                   \
        const float *restrict x_ = tp_f32(k_->in[0]), *restrict y_ = tp_f32(k_->in[1]);            \
        float *restrict o_ = tp_f32(k_->out[0]);                                                   \
        for (int64_t i_ = begin; i_ < end; i_++) {                                                 \
            float x = x_[i_], y = y_[i_];                                                          \
            o_[i_] = (expr);                                                                       \
        }                                                                                          \
    }                                                                                              \
    static tp_status id##_run(const tp_call *k)                                                    \
    {                                                                                              \
        tp_parallel_for(k->ctx, tp_numel(k->out[0]), TP_ELEMENT_GRAIN, id##_range, (void *)k);     \
        return TP_OK;                                                                              \
    }                                                                                              \
    TP_CPU_KERNEL(id, .decline = tp_decline_unless_f32_dense, .run = id##_run);
#endif
