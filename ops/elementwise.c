/* Owns the shape rules of elementwise ops. */
#include "ops/elementwise.h"

tp_status tp_infer_unary(tp_call *k)
{
    tp_status st = tp_need_float(k, 0, "x");
    return st ? st : tp_out_like(k, k->in[0]);
}

tp_status tp_infer_binary(tp_call *k)
{
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_same(k, 0, 1, "the two inputs"))) return st;
    return tp_out_like(k, k->in[0]);
}
