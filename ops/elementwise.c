/* Owns the shape rules of elementwise ops. */
#include "ops/elementwise.h"

tp_status tp_infer_unary(tp_call *k) {
    tp_status st = tp_need_float(k, 0, "x");
    return st ? st : tp_out_like(k, k->in[0]);
}

tp_status tp_infer_binary(tp_call *k) {
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_same(k, 0, 1, "the two inputs")))
        return st;
    return tp_out_like(k, k->in[0]);
}

double tp_flops_1(const tp_call *k) { return (double)tp_numel(k->out[0]); }
double tp_flops_4(const tp_call *k) { return 4.0 * (double)tp_numel(k->out[0]); }
double tp_flops_20(const tp_call *k) { return 20.0 * (double)tp_numel(k->out[0]); }
