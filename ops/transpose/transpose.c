/* transpose. y[i0,i1,…] = x with the indices reordered by perm, so dx is dy reordered by the
 * inverse permutation: q[perm[i]] = i. */
#include "ops/transpose/transpose.h"

extern const tp_op op_transpose;

typedef struct transpose_attr {
    int perm[TP_MAXDIM];
} transpose_attr;

static tp_status transpose_infer(tp_call *k) {
    const int *perm = ((const transpose_attr *)k->attr)->perm;
    const tp_tensor *x = k->in[0];
    unsigned seen = 0;
    for (int i = 0; i < x->ndim; i++) {
        if (perm[i] < 0 || perm[i] >= x->ndim || ((seen >> perm[i]) & 1))
            return tp_refuse(k, TP_ESHAPE,
                             "the order must be a permutation of 0 to %d, got %d at place %d",
                             x->ndim - 1, perm[i], i);
        seen |= 1u << perm[i];
    }
    tp_status st = tp_out_view(k, k->in[0]);
    if (st) return st;
    for (int i = 0; i < x->ndim; i++) {
        k->out[0]->shape[i] = x->shape[perm[i]];
        k->out[0]->stride[i] = x->stride[perm[i]];
    }
    return TP_OK;
}

tp_tensor *tp_permute(tp_ctx *c, tp_tensor *x, const int *perm) {
    transpose_attr a = {{0}};
    for (int i = 0; x && i < x->ndim; i++) a.perm[i] = perm[i];
    return tp_op1(c, &op_transpose, &a, x);
}

tp_tensor *tp_transpose(tp_ctx *c, tp_tensor *x, int i, int j) {
    if (!x) return NULL;
    int a = i < 0 ? i + x->ndim : i, b = j < 0 ? j + x->ndim : j, perm[TP_MAXDIM];
    if (a < 0 || a >= x->ndim || b < 0 || b >= x->ndim) {
        tp_fail(c, TP_ESHAPE, "transpose: cannot swap dimensions %d and %d of %s", i, j,
                tp_shape_str(c, x));
        return NULL;
    }
    for (int d = 0; d < x->ndim; d++) perm[d] = d == a ? b : d == b ? a : d;
    return tp_permute(c, x, perm);
}

static void transpose_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const int *perm = ((const transpose_attr *)k->attr)->perm;
    int inverse[TP_MAXDIM];
    for (int i = 0; i < k->in[0]->ndim; i++) inverse[perm[i]] = i;
    din[0] = tp_permute(k->ctx, dout[0], inverse);
}

#define PERM(...)                                                                                  \
    &(const transpose_attr) {                                                                      \
        { __VA_ARGS__ }                                                                            \
    }
static const tp_sample transpose_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {5, 7}}}, PERM(1, 0)},
    {"heads", {{TP_GEN_NORMAL, 4, {2, 3, 4, 5}}}, PERM(0, 2, 1, 3)},
    {"cycle", {{TP_GEN_NORMAL, 3, {2, 3, 4}}}, PERM(1, 2, 0)},
    {"identity", {{TP_GEN_NORMAL, 1, {6}}}, PERM(0)},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, PERM(0)},
    {"size 1", {{TP_GEN_NORMAL, 3, {1, 4, 1}}}, PERM(2, 1, 0)},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 3}}}, PERM(1, 0)},
    {"repeated", {{TP_GEN_NORMAL, 2, {5, 7}}}, PERM(0, 0), .refuse = "got 0 at place 1"},
    {"outside", {{TP_GEN_NORMAL, 2, {5, 7}}}, PERM(0, 2), .refuse = "permutation of 0 to 1"},
    {0},
};
#define AT(i) offsetof(transpose_attr, perm) + (i) * sizeof(int)
static const tp_attr transpose_attrs[] = {
    {"d0", TP_ATTR_INT, AT(0)},
    {"d1", TP_ATTR_INT, AT(1)},
    {"d2", TP_ATTR_INT, AT(2)},
    {"d3", TP_ATTR_INT, AT(3)},
    {"d4", TP_ATTR_INT, AT(4)},
    {"d5", TP_ATTR_INT, AT(5)},
    {0},
};

const tp_op op_transpose = {
    .name = "transpose",
    .synopsis = "y = x, dimensions permuted",
    .doc = "Dimensions in another order, as a view: strides are permuted, no value moves.",
    .infer = transpose_infer,
    .vjp = transpose_vjp,
    .view = true,
    .attrs = transpose_attrs,
    .attr_bytes = sizeof(transpose_attr),
    .samples = transpose_samples,
};
