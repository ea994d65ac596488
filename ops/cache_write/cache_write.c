/* cache_write_: a copy, no formula. */
#include "ops/cache_write/cache_write.h"
#include "ops/cache_write/cache_write_check.h"

extern const tp_op op_cache_write_;
TP_CPU_DECLARE(cache_write_cpu);
TP_CUDA_DECLARE(cache_write_cuda);

tp_status tp_cache_write_(tp_ctx *c, tp_tensor *pool, tp_tensor *rows, tp_tensor *slots) {
    tp_tensor *none[TP_MAXOUT];
    return tp_op_run(c, &op_cache_write_, NULL, 3, (tp_tensor *[]){pool, rows, slots}, none);
}

static tp_status cache_write_infer(tp_call *k) {
    const tp_tensor *pool = k->in[0], *rows = k->in[1], *slots = k->in[2];
    tp_status st;
    if ((st = tp_need_float(k, 0, "pool")) || (st = tp_need_ndim(k, 0, "pool", 4, 4)) ||
        (st = tp_need_float(k, 1, "rows")) || (st = tp_need_ndim(k, 1, "rows", 4, 4)) ||
        (st = tp_need_int(k, 2, "slots")) || (st = tp_need_ndim(k, 2, "slots", 2, 2)))
        return st;
    if (pool->dtype != rows->dtype)
        return tp_refuse(k, TP_EDTYPE, "pool and rows must have one dtype, got %s and %s",
                         tp_dtype_name(pool->dtype), tp_dtype_name(rows->dtype));
    if (pool->shape[2] != rows->shape[2] || pool->shape[3] != rows->shape[3])
        return tp_refuse(k, TP_ESHAPE, "pool (P,page,H,D) and rows (B,T,H,D) differ: %s and %s",
                         tp_shape_str(k->ctx, pool), tp_shape_str(k->ctx, rows));
    if (slots->shape[0] != rows->shape[0] || slots->shape[1] != rows->shape[1])
        return tp_refuse(k, TP_ESHAPE, "slots must be (B,T) of rows %s, got %s",
                         tp_shape_str(k->ctx, rows), tp_shape_str(k->ctx, slots));
    return TP_OK;
}

static tp_status cache_write_oracle(const tp_call *k) {
    const tp_tensor *rows = k->in[1];
    int64_t width = rows->shape[2] * rows->shape[3];
    tp_status st = cache_write_check(k);
    for (int64_t i = 0, n = tp_numel(k->in[2]); i < n && !st; i++) {
        int64_t slot = cache_write_slot(k, i);
        for (int64_t d = 0; d < width && slot >= 0; d++)
            tp_f64(k->in[0])[slot * width + d] = tp_f64(rows)[i * width + d];
    }
    return st;
}

/* clang-format off */
static const int32_t slots[] = {4, -1, 0, 7, 2, 11}, far[] = {0, 12};
static const tp_sample cache_write_samples[] = {
    {"pages", {{TP_GEN_NORMAL, 4, {3, 4, 2, 5}}, {TP_GEN_NORMAL, 4, {2, 3, 2, 5}},
               {TP_GEN_DATA, 2, {2, 3}, .data = slots}}},
    {"wide", {{TP_GEN_NORMAL, 4, {3, 4, 1, 70}}, {TP_GEN_NORMAL, 4, {1, 6, 1, 70}},
              {TP_GEN_DATA, 2, {1, 6}, .data = slots}}},
    {"no rows", {{TP_GEN_NORMAL, 4, {3, 4, 2, 5}}, {TP_GEN_NORMAL, 4, {2, 0, 2, 5}},
                 {TP_GEN_INT, 2, {2, 0}, 0, 3}}},
    {"other heads", {{TP_GEN_NORMAL, 4, {3, 4, 2, 5}}, {TP_GEN_NORMAL, 4, {1, 1, 1, 5}},
                     {TP_GEN_INT, 2, {1, 1}, 0, 3}}, .refuse = "(B,T,H,D) differ"},
    {"other slots", {{TP_GEN_NORMAL, 4, {3, 4, 2, 5}}, {TP_GEN_NORMAL, 4, {1, 2, 2, 5}},
                     {TP_GEN_INT, 2, {1, 1}, 0, 3}}, .refuse = "slots must be (B,T)"},
    {"beyond", {{TP_GEN_NORMAL, 4, {3, 4, 1, 1}}, {TP_GEN_NORMAL, 4, {1, 2, 1, 1}},
                {TP_GEN_DATA, 2, {1, 2}, .data = far}}, .refuse = "slot 12 at position 1"},
    {0},
};
/* clang-format on */

const tp_op op_cache_write_ = {
    .name = "cache_write_",
    .synopsis = "pool[slot] = row",
    .doc = "Puts rows of keys or values into the pages of a cache, each into the slot that its "
           "token was given; a slot of -1 leaves the row out.",
    .infer = cache_write_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(cache_write_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&cache_write_cuda)},
    .oracle = cache_write_oracle,
    .no_vjp = "changes its input in place; a cache is for inference",
    .inplace = 1,
    .samples = cache_write_samples,
};
