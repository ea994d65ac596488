/* Owns the shape rules of layernorm and rmsnorm. */
#include "ops/layernorm/norm_op.h"

const tp_attr tp_norm_attrs[] = {{"eps", TP_ATTR_FLOAT, offsetof(tp_norm_attr, eps)}, {0}};
const tp_attr tp_norm_backward_attrs[] = {
    {"dw", TP_ATTR_BOOL, offsetof(tp_norm_backward_attr, dw)},
    {"db", TP_ATTR_BOOL, offsetof(tp_norm_backward_attr, db)},
    {0},
};

tp_status tp_norm_need_row(const tp_call *k, int x, int i, const char *arg) {
    const tp_tensor *row = k->in[i], *t = k->in[x];
    if (!row) return TP_OK;
    if (row->dtype != t->dtype)
        return tp_refuse(k, TP_EDTYPE, "%s must have the dtype of x, got %s beside %s", arg,
                         tp_dtype_name(row->dtype), tp_dtype_name(t->dtype));
    if (row->ndim != 1 || row->shape[0] != t->shape[t->ndim - 1])
        return tp_refuse(k, TP_ESHAPE, "%s must have shape [%lld] for x %s, got %s", arg,
                         (long long)t->shape[t->ndim - 1], tp_shape_str(k->ctx, t),
                         tp_shape_str(k->ctx, row));
    return TP_OK;
}

tp_status tp_norm_need_x(const tp_call *k, int i, const char *arg) {
    tp_status st;
    if ((st = tp_need_float(k, i, arg)) || (st = tp_need_ndim(k, i, arg, 1, TP_MAXDIM))) return st;
    if (k->in[i]->shape[k->in[i]->ndim - 1] < 1)
        return tp_refuse(k, TP_ESHAPE, "the last dimension of %s must not be empty, got %s", arg,
                         tp_shape_str(k->ctx, k->in[i]));
    return TP_OK;
}

tp_status tp_norm_need_eps(const tp_call *k) {
    double eps = ((const tp_norm_attr *)k->attr)->eps;
    return eps > 0 ? TP_OK : tp_refuse(k, TP_EARG, "eps must be above 0, got %g", eps);
}

tp_status tp_norm_out_stat(tp_call *k, const tp_tensor *x) {
    return tp_out(k, tp_sum_dtype(x->dtype), x->ndim - 1, x->shape);
}

tp_status tp_norm_need_stat(const tp_call *k, int x, int i, const char *arg) {
    const tp_tensor *s = k->in[i], *t = k->in[x];
    if (!s) return TP_OK;
    tp_status st = tp_need_float(k, i, arg);
    bool fits = s->ndim == t->ndim - 1;
    for (int d = 0; fits && d < s->ndim; d++) fits = s->shape[d] == t->shape[d];
    if (!st && !fits)
        st = tp_refuse(k, TP_ESHAPE,
                       "%s must have the shape of x but its last dimension, got %s "
                       "for x %s",
                       arg, tp_shape_str(k->ctx, s), tp_shape_str(k->ctx, t));
    return st;
}

tp_status tp_norm_out_gradients(tp_call *k, const tp_tensor *x, const tp_tensor *w) {
    const tp_norm_backward_attr *a = k->attr;
    int64_t channels = x->shape[x->ndim - 1];
    if (a->dw && !w) return tp_refuse(k, TP_EARG, "dw is asked for but w is absent");
    tp_status st = tp_out_like(k, x);
    if (!st && a->dw) st = tp_out(k, tp_sum_dtype(x->dtype), 1, &channels);
    if (!st && a->db) st = tp_out(k, tp_sum_dtype(x->dtype), 1, &channels);
    return st;
}
