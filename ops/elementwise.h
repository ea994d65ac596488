/* What elementwise ops share: their shape rules and their CPU loops. An op gives the formula. */
#ifndef TP_ELEMENTWISE_H
#define TP_ELEMENTWISE_H
#include "ops/broadcast.h"

tp_status tp_infer_unary(tp_call *k);  /* one float input: out like it */
tp_status tp_infer_binary(tp_call *k); /* two float inputs of one shape and dtype */
double tp_flops_1(const tp_call *k);   /* one operation per element of out[0] */
double tp_flops_4(const tp_call *k);   /* four: the usual short formula */
double tp_flops_20(const tp_call *k);  /* twenty: a formula around one e^x */

enum { TP_ELEMENT_GRAIN = 1 << 14 }; /* 64 KB of floats: two operands stay in L2 */

/* f32 kernels for any strides and broadcasts. `setup` declares what expr needs from r_->attr. */
#define TP_ELEMENTWISE_KERNEL_(id)                                                                 \
    static tp_status id##_all(const tp_call *k) {                                                  \
        tp_elementwise(k, k->nout, k->out, id##_run);                                              \
        return TP_OK;                                                                              \
    }                                                                                              \
    TP_CPU_KERNEL(id, .decline = tp_decline_unless_f32, .run = id##_all)

/* out[i] = expr of x. */
#define TP_UNARY_ATTR_CPU(id, setup, expr)                                                         \
    static void id##_run(const tp_run *r_) {                                                       \
        setup;                                                                                     \
        const float *restrict x_ = r_->in[0];                                                      \
        float *restrict o_ = r_->out[0];                                                           \
        for (int64_t i_ = 0, n_ = r_->n; i_ < n_; i_++) {                                          \
            float x = x_[i_];                                                                      \
            o_[i_] = (expr);                                                                       \
        }                                                                                          \
    }                                                                                              \
    TP_ELEMENTWISE_KERNEL_(id);
#define TP_UNARY_CPU(id, expr) TP_UNARY_ATTR_CPU(id, (void)0, expr)

/* out[i] = expr of x and y. */
#define TP_BINARY_ATTR_CPU(id, setup, expr)                                                        \
    static void id##_run(const tp_run *r_) {                                                       \
        setup;                                                                                     \
        const float *restrict x_ = r_->in[0], *restrict y_ = r_->in[1];                            \
        float *restrict o_ = r_->out[0];                                                           \
        for (int64_t i_ = 0, n_ = r_->n; i_ < n_; i_++) {                                          \
            float x = x_[i_], y = y_[i_];                                                          \
            o_[i_] = (expr);                                                                       \
        }                                                                                          \
    }                                                                                              \
    TP_ELEMENTWISE_KERNEL_(id);
#define TP_BINARY_CPU(id, expr) TP_BINARY_ATTR_CPU(id, (void)0, expr)
#endif
