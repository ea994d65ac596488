/* rope on the CPU: the sines and cosines of a position are made once and used by all heads (and,
 * where positions are those of t, by all sequences), which costs less than reading a table of them.
 */
#include "core/team.h"
#include "ops/rope/rope_math.h"
#include "ops/rope/rope_problem.h"
#include <string.h>

typedef struct rope_job {
    const tp_call *call;
    int64_t h, pad; /* planes; padded to whole vectors */
    double *frequency;
    float *turns; /* per thread: pad cosines, pad sines */
} rope_job;

static void turn_row(const float *restrict x, float *restrict y, const float *restrict c,
                     const float *restrict s, int64_t h) {
    for (int64_t i = 0; i < h; i++) {
        float x0 = x[i], x1 = x[i + h];
        y[i] = rope_first(x0, x1, c[i], s[i]);
        y[i + h] = rope_second(x0, x1, c[i], s[i]);
    }
}

static void turn_heads(const rope_job *j, int64_t b, int64_t t, const float *c, const float *s) {
    const tp_tensor *x = j->call->in[ROPE_X];
    int64_t T = x->shape[1], H = x->shape[2], D = x->shape[3], rest = D - 2 * j->h;
    for (int64_t head = 0; head < H; head++) {
        const float *from = tp_f32(x) + b * x->stride[0] + t * x->stride[1] + head * x->stride[2];
        float *to = tp_f32(j->call->out[0]) + ((b * T + t) * H + head) * D;
        turn_row(from, to, c, s, j->h);
        memcpy(to + 2 * j->h, from + 2 * j->h, (size_t)rest * sizeof *to);
    }
}

static void rope_range(void *arg, int64_t begin, int64_t end) {
    const rope_job *j = arg;
    const tp_tensor *x = j->call->in[ROPE_X];
    bool inverse = ((const rope_attr *)j->call->attr)->inverse;
    float *c = j->turns + 2 * j->pad * tp_slot(), *s = c + j->pad;
    int64_t B = x->shape[0], T = x->shape[1];
    bool own = j->call->in[ROPE_POSITIONS] != NULL; /* each sequence has its own positions */
    for (int64_t row = begin; row < end; row++) {
        int64_t t = row % T, first = own ? row / T : 0, last = own ? first + 1 : B;
        double at = (double)rope_position(j->call, first, t);
        for (int64_t i = 0; i < j->h; i++) rope_turn(at * j->frequency[i], &c[i], &s[i]);
        for (int64_t i = 0; i < j->h && inverse; i++) s[i] = -s[i];
        for (int64_t b = first; b < last; b++) turn_heads(j, b, t, c, s);
    }
}

static int64_t padded_half(const tp_call *k) { return (rope_half(k) + 15) / 16 * 16; }

static size_t rope_workspace(const tp_call *k) {
    size_t h = (size_t)padded_half(k);
    return h * sizeof(double) + 2 * h * sizeof(float) * (size_t)tp_threads(k->ctx);
}

static tp_status rope_run(const tp_call *k) {
    const tp_tensor *x = k->in[ROPE_X];
    tp_status st = rope_check_positions(k);
    if (st || !tp_numel(x)) return st;
    rope_job j = {.call = k, .h = rope_half(k), .pad = padded_half(k)};
    j.frequency = k->workspace;
    j.turns = (float *)(j.frequency + j.pad);
    rope_frequencies(rope_theta(k), &((const rope_attr *)k->attr)->scaling, j.h, j.frequency);
    int64_t rows = k->in[ROPE_POSITIONS] ? x->shape[0] * x->shape[1] : x->shape[1];
    tp_parallel_for(k->ctx, rows, 8, rope_range, &j);
    return TP_OK;
}

static const char *rope_decline(const tp_call *k) {
    const tp_tensor *x = k->in[ROPE_X];
    if (x->shape[3] > 1 && x->stride[3] != 1) return "x's last dimension is strided";
    return tp_decline_unless_f32(k);
}

TP_CPU_KERNEL(rope_cpu, .decline = rope_decline, .run = rope_run, .workspace = rope_workspace);
