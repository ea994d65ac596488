/* What the rows of layernorm and rmsnorm share besides their kernels: checks and the call of the
 * backward op. */
#ifndef TP_NORM_OP_H
#define TP_NORM_OP_H
#include "ops/reduce.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_norm_attr {
    double eps;
} tp_norm_attr;
typedef struct tp_norm_backward_attr {
    bool dw, db; /* which of these outputs there are, behind dx */
} tp_norm_backward_attr;
extern const tp_attr tp_norm_attrs[], tp_norm_backward_attrs[];

/* in[i] is a row vector (C) like x = in[x]'s last dimension and of its dtype, or absent. */
tp_status tp_norm_need_row(const tp_call *k, int x, int i, const char *arg);
/* x = in[i] is a float tensor (…,C), C >= 1. */
tp_status tp_norm_need_x(const tp_call *k, int i, const char *arg);
/* The tp_norm_attr has eps > 0. */
tp_status tp_norm_need_eps(const tp_call *k);
/* Appends an output of shape (…) for x (…,C): f32, or f64 where x is. */
tp_status tp_norm_out_stat(tp_call *k, const tp_tensor *x);
/* in[i], where present, is a float tensor (…) for x = in[x] (…,C). */
tp_status tp_norm_need_stat(const tp_call *k, int x, int i, const char *arg);
/* Appends dx like x and, as attr says, dw and db (C). */
tp_status tp_norm_out_gradients(tp_call *k, const tp_tensor *x, const tp_tensor *w);
#ifdef __cplusplus
}
#endif
#endif
