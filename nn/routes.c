/* Owns looking on while routed blocks choose. No formula of theirs is here: what they took is the
 * list of rows that they read. */
#include "nn/routes.h"
#include "core/ctx.h"
#include "ops/cast/cast.h"
#include <math.h>
#include <string.h>

enum { IGNORED = -100 }; /* a target */

typedef struct looker {
    tp_routes *r;
    tp_mod_mode mode;
    int64_t block; /* that comes next */
} looker;

static void look(void *arg, tp_ctx *c, int layer, const tp_mod_view *v) {
    looker *k = arg;
    tp_routes *r = k->r;
    int64_t at = k->block++ * r->tokens, n = tp_numel(v->rows);
    unsigned char *taken = (k->mode == TP_MOD_CAUSAL ? r->decided : r->chosen) + at;
    int32_t *rows = tp_arena_alloc(c, (size_t)(n + 1) * sizeof *rows);
    if (!rows || (n && tp_download(c, v->rows, rows))) return;
    for (int64_t i = 0; i < n; i++)
        if (rows[i] >= 0) taken[rows[i]] = 1;
    r->layer[k->block - 1] = layer;
    if (k->mode == TP_MOD_CAUSAL) return;
    tp_tensor *f32 = tp_cast(c, v->logit, TP_F32);
    if (f32) tp_download(c, f32, r->logit + at);
}

/* *loss: of each token after the first, in the mean. */
static tp_status pass(tp_routes *r, tp_ctx *c, tp_model *m, const int32_t *ids, tp_mod_mode mode,
                      double *loss) {
    int64_t T = r->tokens;
    looker k = {r, mode, 0};
    int32_t *next = tp_arena_alloc(c, (size_t)T * sizeof *next);
    if (!next) return tp_error_status(c);
    memcpy(next, ids + 1, (size_t)(T - 1) * sizeof *next);
    next[T - 1] = IGNORED;
    tp_model_in in = {.ids = tp_tensor_from(c, TP_I32, TP_SHAPE(1, T), ids),
                      .mode = mode,
                      .watch = look,
                      .watch_arg = &k};
    tp_tensor *targets = tp_tensor_from(c, TP_I32, TP_SHAPE(1, T), next);
    tp_model_out y = {0};
    if (in.ids && targets) y = tp_model_loss(c, m, &in, targets, &(tp_model_loss_opts){.scale = 1});
    tp_tensor *sum = y.loss ? tp_cast(c, y.loss, TP_F32) : NULL;
    float nats = 0;
    if (sum) tp_download(c, sum, &nats);
    *loss = T > 1 ? (double)nats / (double)(T - 1) : NAN;
    tp_step_end(c);
    return tp_error_status(c);
}

tp_status tp_routes_find(tp_routes *out, tp_ctx *c, tp_model *m, const int32_t *ids,
                         int64_t tokens) {
    *out = (tp_routes){.blocks = tp_mod_blocks(tp_model_config(m)), .tokens = tokens};
    if (!out->blocks)
        return tp_fail(c, TP_EARG,
                       "this model has no routed block (mod.capacity is 0): every "
                       "block works on every token");
    if (tokens < 1) return tp_fail(c, TP_EARG, "the text has no tokens");
    size_t cells = (size_t)(out->blocks * tokens);
    out->layer = tp_calloc(c, (size_t)out->blocks, sizeof *out->layer);
    out->logit = tp_calloc(c, cells, sizeof *out->logit);
    out->chosen = tp_calloc(c, cells, 1);
    out->decided = tp_calloc(c, cells, 1);
    if (!out->layer || !out->logit || !out->chosen || !out->decided) return tp_error_status(c);
    tp_status st = pass(out, c, m, ids, TP_MOD_TOP_K, &out->loss);
    return st ? st : pass(out, c, m, ids, TP_MOD_CAUSAL, &out->loss_causal);
}

void tp_routes_clear(tp_routes *r) {
    tp_free(r->layer);
    tp_free(r->logit);
    tp_free(r->chosen);
    tp_free(r->decided);
    *r = (tp_routes){0};
}

tp_route_summary tp_routes_summary(const tp_routes *r, int64_t block) {
    const float *logit = r->logit + block * r->tokens;
    const unsigned char *chosen = r->chosen + block * r->tokens;
    const unsigned char *decided = r->decided + block * r->tokens;
    tp_route_summary s = {0};
    double n = (double)r->tokens, finite = 0;
    for (int64_t t = 0; t < r->tokens; t++) {
        s.chosen += chosen[t] / n;
        s.decided += decided[t] / n;
        s.agree += (chosen[t] == decided[t]) / n;
        if (!isfinite(logit[t])) continue;
        s.mean += (double)logit[t];
        finite++;
    }
    s.mean /= finite; /* 0/0 is NaN */
    for (int64_t t = 0; t < r->tokens; t++) {
        double d = (double)logit[t] - s.mean;
        if (isfinite(logit[t])) s.deviation += d * d / finite;
    }
    s.deviation = finite > 0 ? sqrt(s.deviation) : NAN;
    return s;
}
