/* rope. Values i and i+h of a head are a vector in a plane, turned by an angle proportional to its
 * position p:
 *
 *   y_i = x_i cos a - x_{i+h} sin a,   y_{i+h} = x_{i+h} cos a + x_i sin a,   a = p theta^(-i/h)
 *
 * (or slower, where frequencies are scaled) so that a query and a key, both turned, have a product
 * that depends on the difference of their positions only. A rotation's transpose is its inverse: dx
 * = rope(dy) with the angles' signs changed, which is the same op, so gradients of any order exist.
 */
#include "ops/rope/rope.h"
#include "ops/rope/rope_math.h"
#include "ops/rope/rope_problem.h"
#include <math.h>

extern const tp_op op_rope;
TP_CPU_DECLARE(rope_cpu);
TP_CUDA_DECLARE(rope_cuda);

/* The h-th root of 1/theta by Newton's method from 1, which lies above it, so that the steps go
 * down without a swing; then powers of it. Only + - * /, so every machine gets the same numbers. */
static void powers(double theta, int64_t h, double *frequency) {
    double root = 1;
    for (int step = 0; step < 10000; step++) {
        double power = 1;
        for (int64_t i = 1; i < h; i++) power *= root;
        double next = root - (root * power - 1 / theta) / ((double)h * power);
        if (!(next < root)) break;
        root = next;
    }
    for (int64_t i = 0; i < h; i++) frequency[i] = i ? frequency[i - 1] * root : 1;
}

/* With n = f original / (2 pi), the turns that f makes in the original context, and
 *   kept = (n - low) / (high - low), held within 0..1,
 * f becomes kept f + (1 - kept) f/factor: _compute_llama3_parameters in transformers'
 * modeling_rope_utils.py, which compares wavelengths 2 pi / f with original/low and original/high
 * instead. */
static double llama3_frequency(double f, const tp_rope_scaling *s) {
    double turns = f * (double)s->original_max_position_embeddings / 6.283185307179586;
    double kept = (turns - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    kept = kept < 0 ? 0 : kept > 1 ? 1 : kept;
    return kept * f + (1 - kept) * f / s->factor;
}

void rope_frequencies(double theta, const tp_rope_scaling *s, int64_t h, double *frequency) {
    powers(theta, h, frequency);
    for (int64_t i = 0; i < h; i++) {
        if (s->type == TP_ROPE_LINEAR) frequency[i] /= s->factor;
        if (s->type == TP_ROPE_LLAMA3) frequency[i] = llama3_frequency(frequency[i], s);
    }
}

static tp_status check_scaling(const tp_call *k) {
    const tp_rope_scaling *s = &((const rope_attr *)k->attr)->scaling;
    double low = s->low_freq_factor, high = s->high_freq_factor;
    if (s->type == TP_ROPE_DEFAULT) return TP_OK;
    if (s->type != TP_ROPE_LINEAR && s->type != TP_ROPE_LLAMA3)
        return tp_refuse(k, TP_EARG, "there is no rope_type %d", (int)s->type);
    if (!(s->factor >= 1 && s->factor <= 1e12))
        return tp_refuse(k, TP_EARG, "factor must lie in 1..1e12, got %g", s->factor);
    if (s->type == TP_ROPE_LINEAR) return TP_OK;
    if (!(low > 0 && low < high && high <= 1e12))
        return tp_refuse(k, TP_EARG,
                         "low_freq_factor must be above 0 and high_freq_factor above it and at "
                         "most 1e12, got %g and %g",
                         low, high);
    if (s->original_max_position_embeddings < 1)
        return tp_refuse(k, TP_EARG, "original_max_position_embeddings must be above 0, got %lld",
                         (long long)s->original_max_position_embeddings);
    return TP_OK;
}

static tp_status rope_infer(tp_call *k) {
    const rope_attr *a = k->attr;
    const tp_tensor *x = k->in[ROPE_X], *p = k->in[ROPE_POSITIONS];
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_ndim(k, 0, "x", 4, 4))) return st;
    int64_t n = a->n_rot ? a->n_rot : x->shape[3];
    if (n < 0 || n > x->shape[3] || n % 2)
        return tp_refuse(k, TP_ESHAPE, "n_rot must be even and at most D = %lld, got %lld",
                         (long long)x->shape[3], (long long)n);
    if (!(a->theta == 0 || (a->theta >= 1 && a->theta <= 1e12)))
        return tp_refuse(k, TP_EARG, "theta must lie in 1..1e12, got %g", a->theta);
    if ((st = check_scaling(k))) return st;
    if (p) {
        if ((st = tp_need_int(k, ROPE_POSITIONS, "positions"))) return st;
        if (p->ndim != 2 || p->shape[0] != x->shape[0] || p->shape[1] != x->shape[1])
            return tp_refuse(k, TP_ESHAPE, "positions must be (B,T) of x %s, got %s",
                             tp_shape_str(k->ctx, x), tp_shape_str(k->ctx, p));
    } else if (a->offset < 0 || a->offset > TP_ROPE_POSITIONS ||
               x->shape[1] > TP_ROPE_POSITIONS - a->offset)
        return tp_refuse(k, TP_EARG, "positions %lld to %lld are not all in 0..%d",
                         (long long)a->offset, (long long)a->offset + (long long)x->shape[1] - 1,
                         TP_ROPE_POSITIONS - 1);
    return tp_out_like(k, x);
}

tp_status rope_check_positions(const tp_call *k) {
    const tp_tensor *p = k->in[ROPE_POSITIONS];
    if (!p) return TP_OK;
    for (int64_t b = 0; b < p->shape[0]; b++)
        for (int64_t t = 0; t < p->shape[1]; t++) {
            int64_t at = rope_position(k, b, t);
            if (at < 0 || at >= TP_ROPE_POSITIONS)
                return tp_refuse(k, TP_EARG, "position %lld at [%lld,%lld] is outside 0..%d",
                                 (long long)at, (long long)b, (long long)t, TP_ROPE_POSITIONS - 1);
        }
    return TP_OK;
}

/* f_i by wavelengths, as transformers does it. */
static double oracle_frequency(const tp_call *k, int64_t i) {
    const tp_rope_scaling *s = &((const rope_attr *)k->attr)->scaling;
    double f = pow(rope_theta(k), -(double)i / (double)rope_half(k));
    double wavelength = 2 * acos(-1) / f, original = (double)s->original_max_position_embeddings;
    if (s->type == TP_ROPE_LINEAR) return f / s->factor;
    if (s->type != TP_ROPE_LLAMA3 || wavelength < original / s->high_freq_factor) return f;
    if (wavelength > original / s->low_freq_factor) return f / s->factor;
    double smooth =
        (original / wavelength - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (1 - smooth) * f / s->factor + smooth * f;
}

static tp_status rope_oracle(const tp_call *k) {
    const tp_tensor *x = k->in[ROPE_X];
    int64_t T = x->shape[1], H = x->shape[2], D = x->shape[3], h = rope_half(k);
    tp_status st = rope_check_positions(k);
    for (int64_t row = 0, n = x->shape[0] * T * H; row < n && !st; row++) {
        const double *from = tp_f64(x) + row * D;
        double *to = tp_f64(k->out[0]) + row * D;
        double at = (double)rope_position(k, row / H / T, row / H % T);
        for (int64_t i = 2 * h; i < D; i++) to[i] = from[i];
        for (int64_t i = 0; i < h; i++) {
            double angle = at * oracle_frequency(k, i);
            double c = cos(angle), s = sin(angle);
            if (((const rope_attr *)k->attr)->inverse) s = -s;
            to[i] = from[i] * c - from[i + h] * s;
            to[i + h] = from[i + h] * c + from[i] * s;
        }
    }
    return st;
}

/* What s->type reads, so that a call says nothing else. */
static tp_rope_scaling only_read(const tp_rope_scaling *s) {
    if (s->type == TP_ROPE_DEFAULT) return (tp_rope_scaling){0};
    if (s->type == TP_ROPE_LINEAR) return (tp_rope_scaling){.type = s->type, .factor = s->factor};
    return *s;
}

tp_tensor *tp_rope(tp_ctx *c, tp_tensor *x, const tp_rope_opts *opts) {
    tp_rope_opts o = opts ? *opts : (tp_rope_opts){0};
    rope_attr a = {o.theta, o.n_rot, o.offset, o.inverse, only_read(&o.scaling)};
    return tp_op1(c, &op_rope, &a, x, o.positions);
}

static void rope_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const rope_attr *a = k->attr;
    din[0] = tp_rope(k->ctx, dout[0],
                     &(tp_rope_opts){a->theta, a->n_rot, a->offset, !a->inverse, a->scaling,
                                     k->in[ROPE_POSITIONS]});
}

static double rope_flops(const tp_call *k) {
    const tp_tensor *x = k->in[ROPE_X];
    return 6.0 * (double)(x->shape[0] * x->shape[1] * x->shape[2]) * (double)rope_half(k);
}

#define ATTR(...) (&(const rope_attr){__VA_ARGS__})
#define SCALED(...) ATTR(.scaling = {__VA_ARGS__})
static const int32_t places[] = {0, 7, 3, 1048575, 12, 12};
static const int32_t beyond[] = {0, 1048576};
static const int32_t negative[] = {0, -1};
static const tp_attr rope_attrs[] = {
    {"theta", TP_ATTR_FLOAT, offsetof(rope_attr, theta)},
    {"n_rot", TP_ATTR_I64, offsetof(rope_attr, n_rot)},
    {"offset", TP_ATTR_I64, offsetof(rope_attr, offset)},
    {"inverse", TP_ATTR_BOOL, offsetof(rope_attr, inverse)},
    {"rope_type", TP_ATTR_INT, offsetof(rope_attr, scaling.type)},
    {"factor", TP_ATTR_FLOAT, offsetof(rope_attr, scaling.factor)},
    {"low_freq_factor", TP_ATTR_FLOAT, offsetof(rope_attr, scaling.low_freq_factor)},
    {"high_freq_factor", TP_ATTR_FLOAT, offsetof(rope_attr, scaling.high_freq_factor)},
    {"original_max_position_embeddings", TP_ATTR_I64,
     offsetof(rope_attr, scaling.original_max_position_embeddings)},
    {0},
};
static const tp_sample rope_samples[] = {
    {"plain", {{TP_GEN_NORMAL, 4, {2, 5, 3, 8}}}},
    {"many positions", {{TP_GEN_NORMAL, 4, {3, 130, 2, 34}}}},
    {"inverse, another base", {{TP_GEN_NORMAL, 4, {1, 9, 1, 6}}}, ATTR(500000, .inverse = true)},
    {"part of the head", {{TP_GEN_NORMAL, 4, {1, 4, 2, 7}}}, ATTR(.n_rot = 4)},
    {"offset", {{TP_GEN_NORMAL, 4, {1, 3, 2, 4}}}, ATTR(.offset = 1000)},
    {"the last positions", {{TP_GEN_NORMAL, 4, {1, 3, 1, 4}}}, ATTR(.offset = 1048573)},
    {"positions", {{TP_GEN_NORMAL, 4, {2, 3, 2, 4}}, {TP_GEN_DATA, 2, {2, 3}, .data = places}}},
    {"linear", {{TP_GEN_NORMAL, 4, {2, 9, 2, 8}}}, SCALED(TP_ROPE_LINEAR, 2.5)},
    /* turns in 60 tokens: 9.5, 4.7, 2.3, 1.1, 0.6, …: two stay, two lie between */
    {"llama3", {{TP_GEN_NORMAL, 4, {1, 40, 2, 26}}}, SCALED(TP_ROPE_LLAMA3, 8, 1, 4, 60)},
    {"llama3, inverse, positions",
     {{TP_GEN_NORMAL, 4, {2, 3, 2, 9}}, {TP_GEN_DATA, 2, {2, 3}, .data = places}},
     ATTR(500000, .n_rot = 8, .inverse = true, .scaling = {TP_ROPE_LLAMA3, 32, 1.5, 3, 300})},
    {"one plane", {{TP_GEN_NORMAL, 4, {1, 2, 1, 2}}}},
    {"empty", {{TP_GEN_NORMAL, 4, {2, 0, 3, 8}}}},
    {"no width", {{TP_GEN_NORMAL, 4, {1, 2, 3, 0}}}},
    {"odd width", {{TP_GEN_NORMAL, 4, {1, 2, 1, 5}}}, .refuse = "n_rot must be even"},
    {"too many dimensions turn",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     ATTR(.n_rot = 6),
     .refuse = "at most D = 4, got 6"},
    {"theta below 1",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     ATTR(.theta = 0.5),
     .refuse = "theta must lie in"},
    {"theta is no number",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     ATTR(.theta = NAN),
     .refuse = "theta must lie in"},
    {"no such type",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     SCALED((tp_rope_type)3, 2),
     .refuse = "there is no rope_type 3"},
    {"factor below 1",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     SCALED(TP_ROPE_LINEAR, 0.5),
     .refuse = "factor must lie in"},
    {"factor is no number",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     SCALED(TP_ROPE_LLAMA3, NAN, 1, 4, 60),
     .refuse = "factor must lie in"},
    {"nothing between low and high",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     SCALED(TP_ROPE_LLAMA3, 2, 4, 4, 60),
     .refuse = "high_freq_factor above it and at most 1e12, got 4 and 4"},
    {"low is 0",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     SCALED(TP_ROPE_LLAMA3, 2, 0, 4, 60),
     .refuse = "low_freq_factor must be above 0"},
    {"no original context",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     SCALED(TP_ROPE_LLAMA3, 2, 1, 4, 0),
     .refuse = "original_max_position_embeddings must be above 0"},
    {"negative offset",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     ATTR(.offset = -1),
     .refuse = "are not all in 0..1048575"},
    {"offset too far",
     {{TP_GEN_NORMAL, 4, {1, 4, 1, 4}}},
     ATTR(.offset = 1048573),
     .refuse = "are not all in"},
    {"position too far",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}, {TP_GEN_DATA, 2, {1, 2}, .data = beyond}},
     .refuse = "position 1048576 at [0,1] is outside 0..1048575"},
    {"position below 0",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}, {TP_GEN_DATA, 2, {1, 2}, .data = negative}},
     .refuse = "position -1 at [0,1]"},
    {"positions of another shape",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}}, {TP_GEN_INT, 2, {1, 3}, 0, 2}},
     .refuse = "positions must be (B,T)"},
    {"integers", {{TP_GEN_INT, 4, {1, 2, 1, 4}, 0, 3}}, .refuse = "x must be a float tensor"},
    {"three dimensions", {{TP_GEN_NORMAL, 3, {1, 2, 4}}}, .refuse = "x must have 4 dimensions"},
    {0},
};

const tp_op op_rope = {
    .name = "rope",
    .synopsis = "y = x turned by its position",
    .doc = "Rotary position embedding, Hugging Face's layout: values i and i+h of a head turn by "
           "position * theta^(-i/h), or slower where rope_scaling (linear, llama3) says so. Its "
           "gradient is the rotation back, the same op.",
    .infer = rope_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(rope_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&rope_cuda)},
    .oracle = rope_oracle,
    .vjp = rope_vjp,
    .saves_in = 1 << ROPE_POSITIONS,
    .optional = 1 << ROPE_POSITIONS,
    .flops = rope_flops,
    .attrs = rope_attrs,
    .attr_bytes = sizeof(rope_attr),
    .samples = rope_samples,
};
