/* Owns the routed block of Mixture-of-Depths (Raposo et al. 2024, arXiv 2404.02258):
 *
 *   s = x w                      a logit for each token of x (B,T,C)
 *   take the tokens n            with the k highest s of a row (expert choice), or those decided
 * for y_n = x_n + r(s_n) f(x)_n    f: attention and MLP of an ordinary block, among the tokens
 * taken y_n = x_n                    for the others, to the bit
 *
 * f does not include x_n, so a small r turns the block off and not the token. r is on the path of
 * the gradient; the choice itself has none.
 *
 * The k highest of a row are not known before its end, so a decision for each token from that token
 * alone is trained beside it: a predictor, the router's own logit, or a threshold. Its losses are
 * returned apart, and the predictor and the threshold learn from detached inputs. */
#include "autograd/autograd.h"
#include "nn/model.h"
#include "ops/add/add.h"
#include "ops/binary_cross_entropy/binary_cross_entropy.h"
#include "ops/cast/cast.h"
#include "ops/expand/expand.h"
#include "ops/fill/fill.h"
#include "ops/gelu/gelu.h"
#include "ops/matmul/matmul.h"
#include "ops/mul/mul.h"
#include "ops/noise/noise.h"
#include "ops/put_tokens/put_tokens.h"
#include "ops/relu/relu.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/route/route.h"
#include "ops/row_dot/row_dot.h"
#include "ops/scale/scale.h"
#include "ops/sigmoid/sigmoid.h"
#include "ops/sub/sub.h"
#include "ops/sum/sum.h"
#include "ops/take_tokens/take_tokens.h"
#include <math.h>
#include <string.h>

bool tp_mod_routed(const tp_model_cfg *f, int64_t layer) {
    return f->mod.capacity > 0 && (layer + 1) % f->mod.every == 0;
}

int64_t tp_mod_blocks(const tp_model_cfg *f) {
    return f->mod.capacity > 0 ? f->layers / f->mod.every : 0;
}

int64_t tp_mod_tokens(const tp_model_cfg *f, int64_t T) {
    if (f->mod.router == TP_MOD_ALL) return T;
    int64_t k = (int64_t)ceil(f->mod.capacity * (double)T - 1e-9); /* 0.1*30 is not 3 */
    return k < 1 ? (T > 0) : k > T ? T : k;
}

/* ---- what is known of each token ------------------------------------------------------------- */
typedef struct known {
    tp_tensor *score;    /* (B,T): what the choice goes by */
    tp_tensor *logit;    /* (B,T): the router's */
    tp_tensor *decision; /* (B,T): above 0, a causal choice takes the token */
} known;

/* Two layers on x in unit length, as the stream grows with depth and training; and the logit, which
 * knows the length. x and logit are detached. */
static tp_tensor *predict(tp_ctx *c, const tp_model *m, const tp_block *b, tp_tensor *x,
                          tp_tensor *logit) {
    tp_tensor *n = tp_rmsnorm(c, x, NULL, m->cfg.norm_eps);
    tp_tensor *h = tp_matmul(
        c, n, tp_weight(c, m, b->look),
        &(tp_matmul_opts){.trans_b = true, .bias = tp_weight(c, m, b->look_bias)}); /* (B,T,h) */
    tp_tensor *seen = tp_row_dot(c, tp_gelu(c, h), tp_weight(c, m, b->decide));     /* (B,T) */
    return tp_add(c, tp_add(c, seen, tp_mul(c, logit, b->decide_logit)), b->decide_bias);
}

/* wanted: the decision, too. learn: with gradients of what the decision learns by. */
static known look(tp_ctx *c, const tp_model *m, int layer, tp_tensor *x, const tp_model_in *in,
                  bool wanted, bool learn) {
    const tp_mod_cfg *f = &m->cfg.mod;
    const tp_block *b = &m->block[layer];
    bool through = learn && f->router == TP_MOD_LINEAR && f->causal == TP_MOD_AUX_LOSS;
    tp_tensor *still = tp_detach(c, x), *w = tp_weight(c, m, b->router);
    known k = {0};
    k.logit = through ? tp_row_dot(c, x, w) : tp_row_dot(c, still, w ? tp_detach(c, w) : NULL);
    k.score = k.logit;
    if (!k.logit) return k;
    if (f->router == TP_MOD_ALL) {
        k.decision = wanted ? tp_ones_like(c, k.logit) : NULL;
    } else if (f->router == TP_MOD_RANDOM) {
        tp_tensor *places = in->training ? NULL : in->positions;
        k.score = tp_noise(c, in->ids, places, (uint32_t)layer, !in->training);
        if (wanted)
            k.decision = tp_cast(c, tp_scale(c, k.score, 1, f->capacity - 1), k.logit->dtype);
    } else if (f->causal == TP_MOD_AUX_LOSS) {
        k.decision = k.logit;
    } else if (wanted && f->causal == TP_MOD_PREDICTOR) {
        k.decision = predict(c, m, b, still, k.logit);
    } else if (wanted) {
        /* a step moves it by the learning rate, and a logit by that times many channels: in units
         * of sqrt(C) it keeps up. Scaled for each token: so the parts of its gradient are before
         * they are added up, and no split of a batch changes the sum's bits */
        tp_tensor *each = tp_expand(c, b->threshold, k.logit->ndim, k.logit->shape);
        k.decision = tp_sub(c, k.logit, tp_scale(c, each, sqrt((double)m->cfg.channels), 0));
    }
    return k;
}

/* Of each token (B,T); NULL where nothing is to be learnt. */
/* lesson: decision loss */
static tp_tensor *token_loss(tp_ctx *c, const tp_model *m, const known *k, tp_tensor *member) {
    const tp_mod_cfg *f = &m->cfg.mod;
    if (f->router != TP_MOD_LINEAR) return NULL;
    if (f->causal != TP_MOD_THRESHOLD) return tp_binary_cross_entropy(c, member, k->decision);
    /* the pinball loss of d = s - threshold, max(q d, (q-1) d): least where P(d > 0) = 1 - q */
    double q = 1 - (double)tp_mod_tokens(&m->cfg, member->shape[1]) / (double)member->shape[1];
    return tp_add(c, tp_scale(c, k->decision, q, 0), tp_relu(c, tp_scale(c, k->decision, -1, 0)));
}
/* end */

/* ---- the choice ------------------------------------------------------------------------------ */
static void watch(tp_ctx *c, int layer, const tp_model_in *in, tp_tensor *logit, tp_tensor *rows) {
    if (in->watch && logit && rows)
        in->watch(in->watch_arg, c, layer, &(tp_mod_view){tp_detach(c, logit), rows});
}

static tp_chosen top_k(tp_ctx *c, const tp_model *m, int layer, tp_tensor *x, const tp_model_in *in,
                       tp_mod_sums *sums) {
    bool learn = sums->aux_scale > 0;
    known k = look(c, m, layer, x, in, learn, learn);
    tp_routed r = {0};
    if (k.score)
        r = tp_route(c, k.score,
                     &(tp_route_opts){.k = tp_mod_tokens(&m->cfg, x->shape[1]),
                                      .document = m->cfg.mod.by_document,
                                      .positions = in->positions,
                                      .segments = in->segments});
    if (!r.rows) return (tp_chosen){0};
    if (learn) {
        tp_tensor *loss = token_loss(c, m, &k, r.member);
        tp_tensor *still[] = {k.logit, k.decision, loss}; /* a report has no gradient */
        for (int i = 0; i < 3; i++) still[i] = still[i] ? tp_detach(c, still[i]) : NULL;
        tp_tensor *all = tp_route_report(c, still[0], r.member, still[1], still[2]);
        sums->route = sums->route ? tp_add(c, sums->route, all) : all;
        tp_tensor *aux =
            loss ? tp_scale(c, tp_sum(c, loss, TP_ALL_DIMS, false), sums->aux_scale, 0) : NULL;
        sums->aux = sums->aux && aux ? tp_add(c, sums->aux, aux) : aux;
    }
    watch(c, layer, in, k.logit, r.rows);
    return (tp_chosen){r.rows, r.positions, r.segments};
}

static int32_t *download(tp_ctx *c, const tp_tensor *t) {
    void *host = t ? tp_arena_alloc(c, (size_t)tp_numel(t) * 4) : NULL;
    return host && !tp_download(c, t, host) ? host : NULL;
}

/* Lists as long as the row that has most. Under META nobody knows, and the capacity is assumed. */
static tp_chosen ragged(tp_ctx *c, const tp_model *m, const tp_model_in *in, tp_tensor *decision) {
    int64_t B = decision->shape[0], T = decision->shape[1], K = 1;
    bool meta = c->meta;
    const float *d = NULL;
    int32_t *at = NULL, *segment = NULL, *room = NULL;
    if (meta) {
        K = tp_mod_tokens(&m->cfg, T);
    } else if (!(d = (float *)download(c, tp_cast(c, decision, TP_F32)))) {
        return (tp_chosen){0};
    }
    for (int64_t b = 0; b < B && !meta; b++) {
        int64_t n = 0;
        for (int64_t t = 0; t < T; t++) n += d[b * T + t] > 0;
        if (n > K) K = n;
    }
    if (!meta) {
        at = download(c, in->positions);
        segment = download(c, in->segments);
        room = tp_arena_alloc(c, (size_t)(3 * B * K + 1) * sizeof *room);
        if (!room) return (tp_chosen){0};
        memset(room, 0xff, (size_t)(3 * B * K) * sizeof *room); /* -1 */
    }
    int32_t *rows = room, *places = room ? rows + B * K : NULL,
            *segments = room ? places + B * K : NULL;
    for (int64_t b = 0; b < B && room; b++) {
        int64_t n = b * K;
        for (int64_t i = b * T; i < (b + 1) * T; i++) {
            if (!(d[i] > 0)) continue;
            rows[n] = (int32_t)i;
            places[n] = at ? at[i] : (int32_t)(i - b * T);
            segments[n++] = segment ? segment[i] : 0;
        }
        for (; n < (b + 1) * K; n++) places[n] = 0; /* rope turns by it */
    }
    tp_chosen r = {tp_tensor_from(c, TP_I32, TP_SHAPE(B, K), rows),
                   tp_tensor_from(c, TP_I32, TP_SHAPE(B, K), places),
                   in->segments ? tp_tensor_from(c, TP_I32, TP_SHAPE(B, K), segments) : NULL};
    return c->status ? (tp_chosen){0} : r;
}

static tp_chosen causal(tp_ctx *c, const tp_model *m, int layer, tp_tensor *x,
                        const tp_model_in *in) {
    known k = look(c, m, layer, x, in, true, false);
    tp_tensor *d = k.decision ? tp_detach(c, k.decision) : NULL;
    if (!d) return (tp_chosen){0};
    tp_chosen of = in->choose ? in->choose(in->choose_arg, c, layer, d) : ragged(c, m, in, d);
    watch(c, layer, in, k.logit, of.rows);
    return of;
}

/* ---- the block ------------------------------------------------------------------------------- */
static tp_tensor *branches_alone(tp_ctx *c, void *arg, tp_tensor *const in[], int nin) {
    (void)nin;
    const tp_stage *s = arg;
    tp_model_in with = tp_stage_in(s, in);
    return tp_block_branches(c, s->m, s->layer, in[0], &with);
}

/* The router's logit again, of the tokens taken and with its gradient: so nothing of the others is
 * held for the backward pass. A row's bits are the same. */
static tp_tensor *weight(tp_ctx *c, const tp_model *m, int layer, tp_tensor *x) {
    tp_tensor *s = tp_row_dot(c, x, tp_weight(c, m, m->block[layer].router));
    return m->cfg.mod.gate == TP_MOD_GATE_SIGMOID ? tp_sigmoid(c, s) : s;
}

/* Everything but the branches is in the scope "route": what `tapir bench mod` counts as routing. */
typedef struct taken {
    tp_tensor *sum, *xs, *r; /* (B,T,C), (P,K,C), (P,K) */
    tp_chosen of;
} taken;

static taken take(tp_ctx *c, const tp_model *m, int layer, tp_stream x, const tp_model_in *in,
                  tp_mod_sums *sums) {
    taken k = {.sum = x.sum};
    tp_scope s = tp_scope_open(c, "route");
    if (x.branch) k.sum = tp_add(c, x.branch, x.sum);
    if (k.sum && in->mode == TP_MOD_CAUSAL)
        k.of = causal(c, m, layer, k.sum, in);
    else if (k.sum)
        k.of = top_k(c, m, layer, k.sum, in, sums);
    if (k.of.rows && tp_numel(k.of.rows)) k.xs = tp_take_tokens(c, k.sum, k.of.rows);
    /* before the branches, so that its gradient comes after theirs, computed again or not */
    if (k.xs) k.r = weight(c, m, layer, k.xs);
    tp_tensor *keep[] = {k.sum,          k.xs,          k.r,       k.of.rows,
                         k.of.positions, k.of.segments, sums->aux, sums->route};
    tp_scope_close_n(c, s, keep, 8);
    return k;
}

/* lesson: forward */
tp_stream tp_mod_forward(tp_ctx *c, tp_model *m, int layer, tp_stream x, const tp_model_in *in,
                         tp_mod_sums *sums) {
    taken k = take(c, m, layer, x, in, sums);
    if (k.of.rows && !tp_numel(k.of.rows)) return (tp_stream){k.sum, NULL}; /* nobody goes in */
    if (!k.r) return (tp_stream){0};
    tp_model_in with = *in;
    with.positions = k.of.positions;
    with.segments = k.of.segments;
    tp_tensor *f; /* (P,K,C) */
    if (m->cfg.activation_checkpointing && !in->attend)
        f = tp_block_again(c, m, layer, branches_alone, k.xs, &with);
    else
        f = tp_block_branches(c, m, layer, k.xs, &with);
    tp_scope s = tp_scope_open(c, "route");
    tp_tensor *y = tp_put_tokens(c, k.sum, k.of.rows, f, k.r);
    return (tp_stream){tp_scope_close(c, s, y), NULL};
}
/* end */
