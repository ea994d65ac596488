/* The shape rules that softmax and log_softmax share. */
#ifndef TP_SOFTMAX_OP_H
#define TP_SOFTMAX_OP_H
#include "ops/op.h"
/* nin float tensors of one shape (…,C) and dtype; one output like them. */
static inline tp_status tp_infer_softmax(tp_call *k) {
    tp_status st;
    if ((st = tp_need_float(k, 0, "the input")) ||
        (st = tp_need_ndim(k, 0, "the input", 1, TP_MAXDIM)))
        return st;
    for (int i = 1; i < k->nin && !st; i++) st = tp_need_same(k, 0, i, "all inputs");
    return st ? st : tp_out_like(k, k->in[0]);
}
#endif
