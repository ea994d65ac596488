/* Owns one transformer block, pre-norm, in both families:
 *
 *   h = x + proj(attention(q, k, v)),  (q, k, v) from norm1(x)
 *   y = h + mlp(norm2(h))
 *
 * GPT-2: LayerNorm, one fused qkv matrix stored (in,out), GELU. Llama: RMSNorm, three matrices
 * stored (out,in), optional norms of q and k, rope, SwiGLU. */
#include "nn/model.h"
#include "ops/add/add.h"
#include "ops/attention/attention.h"
#include "ops/dropout/dropout.h"
#include "ops/gelu/gelu.h"
#include "ops/matmul/matmul.h"
#include "ops/reshape/reshape.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/rope/rope.h"
#include "ops/scale/scale.h"
#include "ops/split/split.h"
#include "ops/swiglu/swiglu.h"

static bool is_llama(const tp_model *m) { return m->cfg.family == TP_FAMILY_LLAMA; }

/* y + s (x A^T) B^T, y given. */
static tp_tensor *adapted(tp_ctx *c, const tp_model *m, tp_tensor *x, const tp_linear *l,
                          tp_tensor *y) {
    const tp_matmul_opts o = {.trans_b = true};
    tp_scope s = tp_scope_open(c, "lora");
    tp_tensor *h = tp_matmul(c, x, tp_weight(c, m, l->a), &o); /* (B,T,r): s costs least here */
    h = tp_scale(c, h, tp_lora_scale(&m->cfg.lora), 0);
    tp_tensor *sum = tp_scope_close(c, s, tp_add(c, y, tp_matmul(c, h, tp_weight(c, m, l->b), &o)));
    if (sum) tp_release(c, y);
    return sum;
}

/* x (B,T,in) times a matrix in its family's layout. */
static tp_tensor *linear(tp_ctx *c, const tp_model *m, tp_tensor *x, const tp_linear *l) {
    tp_matmul_opts o = {.trans_b = is_llama(m), .bias = tp_weight(c, m, l->bias)};
    tp_tensor *y = tp_matmul(c, x, tp_weight(c, m, l->w), &o);
    return y && l->a ? adapted(c, m, x, l, y) : y;
}

static tp_tensor *heads(tp_ctx *c, tp_tensor *x, int64_t n, int64_t d) /* (B,T,n*d) -> (B,T,n,d) */
{
    return x ? tp_reshape(c, x, TP_SHAPE(x->shape[0], x->shape[1], n, d)) : NULL;
}

typedef struct qkv {
    tp_tensor *q, *k, *v; /* (B,T,H,D), k and v (B,T,Hkv,D) */
} qkv;

static qkv gpt2_qkv(tp_ctx *c, const tp_model *m, const tp_block *b, tp_tensor *x) {
    int64_t H = m->cfg.heads, D = m->cfg.head_dim;
    tp_tensor *all = linear(c, m, x, &b->qkv), *part[3] = {0}; /* (B,T,3HD) */
    if (!all || tp_split(c, all, -1, 3, (int64_t[]){H * D, H * D, H * D}, part)) return (qkv){0};
    return (qkv){heads(c, part[0], H, D), heads(c, part[1], H, D), heads(c, part[2], H, D)};
}

static tp_tensor *rotate(tp_ctx *c, const tp_model *m, tp_tensor *x, tp_tensor *norm,
                         const tp_model_in *in) {
    if (norm) x = tp_rmsnorm(c, x, tp_weight(c, m, norm), m->cfg.norm_eps);
    return tp_rope(c, x,
                   &(tp_rope_opts){.theta = m->cfg.rope_theta,
                                   .scaling = m->cfg.rope_scaling,
                                   .positions = in->positions});
}

static qkv llama_qkv(tp_ctx *c, const tp_model *m, const tp_block *b, tp_tensor *x,
                     const tp_model_in *in) {
    int64_t H = m->cfg.heads, K = m->cfg.kv_heads, D = m->cfg.head_dim;
    return (qkv){rotate(c, m, heads(c, linear(c, m, x, &b->q), H, D), b->q_norm, in),
                 rotate(c, m, heads(c, linear(c, m, x, &b->k), K, D), b->k_norm, in),
                 heads(c, linear(c, m, x, &b->v), K, D)};
}

static tp_tensor *drop(tp_ctx *c, const tp_model *m, tp_tensor *x, const tp_model_in *in) {
    return in->training && m->cfg.dropout > 0 ? tp_dropout(c, x, m->cfg.dropout) : x;
}

static tp_tensor *attend(tp_ctx *c, const tp_model *m, int layer, tp_tensor *x,
                         const tp_model_in *in) {
    tp_scope s = tp_scope_open(c, "attn");
    const tp_block *b = &m->block[layer];
    qkv a = is_llama(m) ? llama_qkv(c, m, b, x, in) : gpt2_qkv(c, m, b, x);
    tp_tensor *y = NULL; /* (B,T,H,D) */
    if (in->attend) {
        tp_attend_opts o = {layer, m->cfg.sliding_window, m->cfg.attn_softcap};
        if (a.q && a.k && a.v) y = in->attend(in->attend_arg, c, a.q, a.k, a.v, &o);
    } else {
        tp_attention_opts o = {.causal = true,
                               .window = m->cfg.sliding_window,
                               .softcap = m->cfg.attn_softcap,
                               .segments = in->segments};
        y = tp_attention(c, a.q, a.k, a.v, &o, NULL);
    }
    if (y) y = tp_reshape(c, y, TP_SHAPE(y->shape[0], y->shape[1], y->shape[2] * y->shape[3]));
    return tp_scope_close(c, s, drop(c, m, linear(c, m, y, &b->proj), in));
}

static tp_tensor *mlp(tp_ctx *c, const tp_model *m, const tp_block *b, tp_tensor *x,
                      const tp_model_in *in) {
    tp_scope s = tp_scope_open(c, "mlp");
    /* On a GPU a pass over (B,T,F) costs as much as its arithmetic: gelu joins the products. An
     * adapter adds to them, so with one they stay apart. */
    if (!is_llama(m) && c->device == TP_CUDA && !b->fc.a && !b->down.a) {
        tp_tensor *y = tp_gelu_mlp(c, x, tp_weight(c, m, b->fc.w), tp_weight(c, m, b->fc.bias),
                                   tp_weight(c, m, b->down.w), tp_weight(c, m, b->down.bias));
        return tp_scope_close(c, s, drop(c, m, y, in));
    }
    /* Not tp_matmul_gelu: gelu is bound by arithmetic, and a pass of its own was 1 % faster here.
     */
    tp_tensor *h = is_llama(m) ? tp_swiglu(c, linear(c, m, x, &b->gate), linear(c, m, x, &b->up))
                               : tp_gelu(c, linear(c, m, x, &b->fc)); /* (B,T,F) */
    return tp_scope_close(c, s, drop(c, m, linear(c, m, h, &b->down), in));
}

/* The MLP's branch; *x is the stream that it is to be added to, *attention the branch before it. */
static tp_tensor *branches(tp_ctx *c, tp_model *m, int layer, tp_stream *x, const tp_model_in *in,
                           tp_tensor **attention) {
    const tp_block *b = &m->block[layer];
    tp_tensor *n = tp_stream_norm(c, m, x, b->norm1, b->norm1_bias);
    *attention = x->branch = attend(c, m, layer, n, in);
    n = tp_stream_norm(c, m, x, b->norm2, b->norm2_bias);
    return mlp(c, m, b, n, in);
}

tp_stream tp_block_forward(tp_ctx *c, tp_model *m, int layer, tp_stream x, const tp_model_in *in) {
    tp_tensor *attention;
    x.branch = branches(c, m, layer, &x, in, &attention);
    return x;
}

tp_tensor *tp_block_branches(tp_ctx *c, tp_model *m, int layer, tp_tensor *x,
                             const tp_model_in *in) {
    tp_stream s = {x, NULL};
    tp_tensor *attention, *last = branches(c, m, layer, &s, in, &attention);
    return tp_add(c, attention, last);
}
