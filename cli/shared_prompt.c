/* Owns the update's rows with rl.share_prompts: a prompt's tokens go through the model once for its
 * group, not once for each completion.
 *
 *   a sample of the pass, N tokens:
 *     the prompt but its last token, P at most | what the first completion feeds | the second | …
 *
 * All but attention is by token, and does not mind. For attention, keys and values are gathered to
 * the rows that they would be without sharing, (G,T), and the completions' queries to their places
 * there; so log-probs keep their bits, those of sampling. Gradients of a prompt's tokens are summed
 * over its completions before they reach the weights: bits of their own, the same for any threads,
 * micro-batches and ranks as long as a pass has whole groups. */
#include "cli/grpo.h"
#include "core/ctx.h"
#include "ops/attention/attention.h"
#include "ops/concat/concat.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/reshape/reshape.h"
#include "ops/slice/slice.h"
#include <string.h>

tp_status tp_shared_prompt_check(const tp_grpo *g) {
    const tp_config *f = &g->cfg;
    int64_t G = f->rl.num_generations, parts = f->train.micro_batches * g->ranks;
    int64_t rows = f->rl.prompts_per_step * G / f->rl.steps_per_generation;
    if (!f->rl.share_prompts) return TP_OK;
    if (rows % (parts * G) || (parts > 1 && (G & (G - 1))))
        return tp_fail(g->c, TP_EARG,
                       "rl.share_prompts needs whole groups in every pass: %lld completions of an "
                       "update, in groups of %lld, do not go into %lld parts%s",
                       (long long)rows, (long long)G, (long long)parts,
                       G & (G - 1) ? " (of groups that are no power of two)" : "");
    if (f->mod.capacity > 0)
        return tp_fail(g->c, TP_EARG, "rl.share_prompts does not go with mod.capacity");
    if (f->model.activation_checkpointing)
        return tp_fail(g->c, TP_EARG,
                       "rl.share_prompts does not go with model.activation_checkpointing");
    return TP_OK;
}

/* ---- which token is where ------------------------------------------------------------------- */
/* Sizes of the step, not of the pass: every pass has the same. */
static void measure(const tp_rollouts *r, tp_packed *f) {
    int64_t shortest = r->n_prompt[0], most = 0;
    *f = (tp_packed){.G = r->G, .R = 1, .T = 1};
    for (int64_t i = 0, sum = 0; i < r->rows; i++) {
        int64_t np = r->n_prompt[i / r->G], n = r->n[i];
        if (np - 1 > f->P) f->P = np - 1;
        if (np < shortest) shortest = np;
        if (n > f->R) f->R = n;
        if (np - 1 + n > f->T) f->T = np - 1 + n;
        sum = i % r->G ? sum + n : n;
        if (sum > most) most = sum;
    }
    f->N = f->P + most;
    f->first_query = shortest - 1;
}

typedef struct row { /* a completion in the pass */
    const tp_rollouts *r;
    int64_t number, np, n;     /* in the step; tokens of its prompt and its own */
    int64_t prompt_at, own_at; /* its prompt's first token and its own, counted in the pass */
} row;

static row next_row(const tp_rollouts *r, const tp_packed *f, int64_t first, int64_t i, row last) {
    int64_t p = (first + i) / f->G, base = i / f->G * f->N;
    row x = {r, first + i, r->n_prompt[p], r->n[first + i], base, base + f->P};
    if (i % f->G) x.own_at = last.own_at + last.n;
    return x;
}

/* The token at position t; behind the end, the last one. */
static int64_t token_at(const row *x, int64_t t) {
    int64_t own = t - (x->np - 1);
    if (own < 0) return x->prompt_at + t;
    return x->own_at + (own < x->n ? own : x->n - 1);
}

static int32_t *room(tp_ctx *c, int64_t n, int byte) {
    int32_t *x = tp_arena_alloc(c, (size_t)n * sizeof *x);
    if (x) memset(x, byte, (size_t)n * sizeof *x);
    return x;
}

static bool put_tokens(tp_ctx *c, tp_grpo *g, int64_t first, tp_packed *f) {
    tp_rollouts *r = &g->now;
    int64_t cells = f->groups * f->N, W = r->words;
    int32_t *ids = room(c, cells, 0), *at = room(c, cells, 0), *y = room(c, cells, 0);
    int32_t *set = r->set ? room(c, cells * W, -1) : NULL;
    if (!ids || !at || !y || (r->set && !set)) return false;
    for (int64_t i = 0; i < cells; i++) y[i] = TP_IGNORE;
    row x = {0};
    for (int64_t i = 0; i < f->groups * f->G; i++) {
        x = next_row(r, f, first, i, x);
        for (int64_t t = 0; t < x.np - 1 + x.n; t++) {
            int64_t cell = token_at(&x, t), own = t - (x.np - 1), from = x.number * r->R + own;
            ids[cell] = own > 0 ? r->ids[from - 1] : r->prompt[x.number / f->G * r->P + t];
            at[cell] = (int32_t)t;
            if (own < 0) continue;
            y[cell] = r->ids[from];
            if (set) memcpy(set + cell * W, r->set + from * W, (size_t)W * sizeof *set);
        }
    }
    f->ids = tp_tensor_from(c, TP_I32, TP_SHAPE(f->groups, f->N), ids);
    f->positions = tp_tensor_from(c, TP_I32, TP_SHAPE(f->groups, f->N), at);
    f->targets = tp_tensor_from(c, TP_I32, TP_SHAPE(f->groups, f->N), y);
    f->set = set ? tp_tensor_from(c, TP_I32, TP_SHAPE(f->groups, f->N, W), set) : NULL;
    return f->ids && f->positions && f->targets && (!set || f->set);
}

static bool put_places(tp_ctx *c, tp_grpo *g, int64_t first, tp_packed *f) {
    const tp_rollouts *r = &g->now;
    int64_t rows = f->groups * f->G, Q = f->T - f->first_query, own = f->N - f->P;
    int32_t *key = room(c, rows * f->T, 0), *query = room(c, rows * Q, 0);
    int32_t *answer = room(c, f->groups * own, 0), *token = room(c, rows * f->R, 0);
    if (!key || !query || !answer || !token) return false;
    row x = {0};
    for (int64_t i = 0; i < rows; i++) {
        x = next_row(r, f, first, i, x);
        int64_t start = i / f->G * own + x.own_at - i / f->G * f->N - f->P;
        for (int64_t t = 0; t < f->T; t++) key[i * f->T + t] = (int32_t)token_at(&x, t);
        for (int64_t t = 0; t < Q; t++) query[i * Q + t] = key[i * f->T + f->first_query + t];
        for (int64_t t = 0; t < x.n; t++)
            answer[start + t] = (int32_t)(i * Q + x.np - 1 - f->first_query + t);
        for (int64_t t = 0; t < f->R; t++)
            token[i * f->R + t] = (int32_t)token_at(&x, x.np - 1 + t);
    }
    f->keys = tp_tensor_from(c, TP_I32, TP_SHAPE(rows * f->T), key);
    f->queries = tp_tensor_from(c, TP_I32, TP_SHAPE(rows * Q), query);
    f->answers = tp_tensor_from(c, TP_I32, TP_SHAPE(f->groups * own), answer);
    f->tokens = tp_tensor_from(c, TP_I32, TP_SHAPE(rows * f->R), token);
    return f->keys && f->queries && f->answers && f->tokens;
}

bool tp_packed_feed(tp_ctx *c, tp_grpo *g, int64_t first, int64_t rows, tp_packed *f) {
    measure(&g->now, f);
    f->groups = rows / g->now.G;
    return put_tokens(c, g, first, f) && put_places(c, g, first, f);
}

/* ---- the pass ------------------------------------------------------------------------------- */
/* x (S,N,H,D), rows of it by number -> (rows,T,H,D). */
static tp_tensor *spread_out(tp_ctx *c, tp_tensor *x, tp_tensor *which, int64_t rows, int64_t T) {
    int64_t H = x->shape[2], D = x->shape[3];
    x = tp_reshape(c, x, TP_SHAPE(x->shape[0] * x->shape[1], H * D));
    x = x ? tp_gather_rows(c, x, which) : NULL;
    return x ? tp_reshape(c, x, TP_SHAPE(rows, T, H, D)) : NULL;
}

static tp_tensor *of_prompts(const tp_packed *f, tp_ctx *c, tp_tensor *x) {
    return tp_slice(c, x, 1, 0, f->P);
}

static tp_tensor *attend(void *arg, tp_ctx *c, tp_tensor *q, tp_tensor *k, tp_tensor *v,
                         const tp_attend_opts *o) {
    const tp_packed *f = arg;
    int64_t rows = f->groups * f->G, Q = f->T - f->first_query, H = q->shape[2], D = q->shape[3];
    tp_attention_opts with = {.causal = true, .window = o->window, .softcap = o->softcap};
    tp_tensor *y[2] = {NULL, NULL};
    if (f->P)
        y[0] = tp_attention(c, of_prompts(f, c, q), of_prompts(f, c, k), of_prompts(f, c, v), &with,
                            NULL);
    tp_tensor *a = tp_attention(c, spread_out(c, q, f->queries, rows, Q),
                                spread_out(c, k, f->keys, rows, f->T),
                                spread_out(c, v, f->keys, rows, f->T), &with, NULL);
    a = a ? tp_reshape(c, a, TP_SHAPE(rows * Q, H * D)) : NULL;
    a = a ? tp_gather_rows(c, a, f->answers) : NULL;
    y[1] = a ? tp_reshape(c, a, TP_SHAPE(f->groups, f->N - f->P, H, D)) : NULL;
    if (!y[1] || (f->P && !y[0])) return NULL;
    return f->P ? tp_concat(c, 1, 2, y) : y[1];
}

/* (S,N) -> (rows,R); behind a completion's end stands its last token's. */
static tp_tensor *of_completions(tp_ctx *c, const tp_packed *f, tp_tensor *x) {
    x = x ? tp_reshape(c, x, TP_SHAPE(f->groups * f->N, 1)) : NULL;
    x = x ? tp_gather_rows(c, x, f->tokens) : NULL;
    return x ? tp_reshape(c, x, TP_SHAPE(f->groups * f->G, f->R)) : NULL;
}

tp_model_out tp_packed_forward(tp_ctx *c, tp_grpo *g, tp_model *m, tp_packed *f) {
    tp_model_in in = {.ids = f->ids,
                      .positions = f->positions,
                      .training = true,
                      .attend = attend,
                      .attend_arg = f};
    tp_model_out y = tp_model_logprob(c, m, &in, f->targets,
                                      &(tp_model_logprob_opts){g->cfg.rl.temperature, f->set});
    y.logprob = of_completions(c, f, y.logprob);
    y.entropy = of_completions(c, f, y.entropy);
    if (!y.entropy) y.logprob = NULL;
    return y;
}
