/* copy.
 *
 *   y = x   so   dx = dy. */
#include "ops/copy/copy.h"
#include <string.h>

extern const tp_op op_copy;
TP_CPU_DECLARE(copy_cpu);
TP_CUDA_DECLARE(copy_cuda);

tp_tensor *tp_copy(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_copy, NULL, x); }
tp_tensor *tp_contiguous_of(tp_ctx *c, tp_tensor *x) {
    return x && tp_contiguous(x) ? x : tp_copy(c, x);
}

static tp_status copy_infer(tp_call *k) { return tp_out_like(k, k->in[0]); }

static tp_status copy_oracle(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    size_t bytes = (size_t)tp_numel(x) * tp_dtype_size(x->dtype);
    if (bytes) memcpy(k->out[0]->data, x->data, bytes);
    return TP_OK;
}

static void copy_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    (void)k;
    din[0] = dout[0];
}

static const tp_sample copy_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {33, 65}}}},
    {"cube", {{TP_GEN_NORMAL, 3, {5, 17, 19}}}},
    {"integers", {{TP_GEN_INT, 2, {7, 9}, -5, 100}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {3, 0}}}},
    {"nothing", {{TP_GEN_ABSENT}}, .refuse = "input 0 is missing"},
    {0},
};

const tp_op op_copy = {
    .name = "copy",
    .synopsis = "y = x",
    .doc = "The same values in fresh, dense memory; any dtype, any strides.",
    .infer = copy_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(copy_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&copy_cuda)},
    .oracle = copy_oracle,
    .vjp = copy_vjp,
    .samples = copy_samples,
};
