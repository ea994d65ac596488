/* noise: Philox at the place of a token, as in dropout. */
#include "ops/noise/noise.h"
#include "core/ctx.h"
#include "ops/noise/noise_math.h"

extern const tp_op op_noise;
TP_CUDA_DECLARE(noise_cuda);

tp_tensor *tp_noise(tp_ctx *c, tp_tensor *like, tp_tensor *positions, uint32_t stream,
                    bool everywhere) {
    noise_attr a = {c->seed, c->step, c->sample, stream, everywhere};
    return tp_op1(c, &op_noise, &a, like, positions);
}

static tp_status noise_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_need_int(k, 0, "like")) || (st = tp_need_ndim(k, 0, "like", 2, 2)) ||
        (st = tp_need_int(k, 1, "positions")) || (st = tp_need_same(k, 0, 1, "like and positions")))
        return st;
    return tp_out(k, TP_F32, 2, k->in[0]->shape);
}

/* Integers become floats exactly here, so one formula serves the oracle, too: the reference kernel
 * hands it f64, a kernel's own call f32. */
static void noise_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    noise_key n = noise_key_of(k->attr);
    int64_t T = k->out[0]->shape[1];
    for (int64_t i = begin; i < end; i++) {
        int32_t place = k->in[1] ? tp_i32(k->in[1])[i] : (int32_t)(i % T);
        float v = noise_f(&n, i / T, place);
        if (k->out[0]->dtype == TP_F64)
            tp_f64(k->out[0])[i] = v;
        else
            tp_f32(k->out[0])[i] = v;
    }
}

static tp_status noise_oracle(const tp_call *k) {
    noise_rows((void *)(uintptr_t)k, 0, tp_numel(k->out[0]));
    return TP_OK;
}

static tp_status noise_run(const tp_call *k) {
    tp_parallel_for(k->ctx, tp_numel(k->out[0]), 1024, noise_rows, (void *)(uintptr_t)k);
    return TP_OK;
}

static double noise_flops(const tp_call *k) { return 2.0 * (double)tp_numel(k->out[0]); }

#define IDS(...)                                                                                   \
    { TP_GEN_INT, 2, {__VA_ARGS__}, 0, 50 }
#define AT(...)                                                                                    \
    &(const noise_attr) { __VA_ARGS__ }
static const tp_sample noise_samples[] = {
    {"rows", {IDS(3, 33), {TP_GEN_ABSENT}}, AT(7, 3, 100, 2)},
    {"positions", {IDS(3, 33), IDS(3, 33)}, AT(7, 3, 100, 2)},
    {"everywhere", {IDS(3, 33), IDS(3, 33)}, AT(7, 3, 100, 2, true)},
    {"empty", {IDS(0, 33), {TP_GEN_ABSENT}}, AT(7, 3, 100, 2)},
    {"shapes", {IDS(3, 4), IDS(3, 5)}, AT(7, 3, 100, 2), .refuse = "like and positions"},
    {"floats", {{TP_GEN_NORMAL, 2, {3, 4}}, {TP_GEN_ABSENT}}, AT(7), .refuse = "like must be i32"},
    {0},
};
static const tp_kernel noise_cpu = {
    .name = "noise_rows", .decline = tp_decline_unless_f32_dense, .run = noise_run};
static const tp_attr noise_attrs[] = {{"step", TP_ATTR_I64, offsetof(noise_attr, step)},
                                      {"sample", TP_ATTR_I64, offsetof(noise_attr, sample)},
                                      {"stream", TP_ATTR_INT, offsetof(noise_attr, stream)},
                                      {0}};

const tp_op op_noise = {
    .name = "noise",
    .synopsis = "y = U(0,1) of a token's place",
    .doc = "Random numbers for a router that chooses blindly: a function of seed, step, sample and "
           "position, so they are the same for any split of a batch.",
    .infer = noise_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&noise_cpu, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&noise_cuda)},
    .oracle = noise_oracle,
    .no_vjp = "a random number depends on no tensor",
    .optional = 1 << 1,
    .flops = noise_flops,
    .attrs = noise_attrs,
    .attr_bytes = sizeof(noise_attr),
    .samples = noise_samples,
};
