/* Owns the loop that writes text: one forward over the context per token. */
#include "infer/infer.h"
#include "ops/cast/cast.h"
#include "ops/slice/slice.h"

static tp_status next_logits(tp_ctx *c, tp_model *m, const int32_t *ids, int64_t n, float *logits) {
    tp_tensor *in = tp_tensor_new(c, TP_I32, TP_SHAPE(1, n));
    if (!in) return tp_error_status(c);
    if (tp_upload(c, in, ids)) return tp_error_status(c);
    tp_tensor *h = tp_model_hidden(c, m, &(tp_model_in){.ids = in});
    tp_tensor *y = h ? tp_model_logits(c, m, tp_slice(c, h, 1, n - 1, 1)) : NULL;
    if (y) y = tp_cast(c, y, TP_F32);
    if (y) tp_download(c, y, logits);
    tp_step_end(c);
    return tp_error_status(c);
}

tp_status tp_generate(tp_ctx *c, tp_model *m, const tp_generate_opts *o, int32_t *ids, int64_t *n) {
    const tp_model_cfg *f = tp_model_config(m);
    if (*n < 1) return tp_fail(c, TP_EARG, "generate: the prompt has no tokens");
    for (int64_t i = 0; i < *n; i++)
        if (ids[i] < 0 || ids[i] >= f->vocab)
            return tp_fail(c, TP_EARG, "generate: token %d of the prompt is not in 0..%lld", ids[i],
                           (long long)f->vocab - 1);
    tp_sampler *s = NULL;
    float *logits = tp_malloc(c, (size_t)f->vocab * sizeof *logits);
    tp_status st = logits ? tp_sampler_new(&s, c, f->vocab) : tp_error_status(c);
    int64_t from = 0;
    for (int64_t made = 0; made < o->max_new_tokens && !st; made++) {
        while (*n - from > f->context) from += (f->context + 1) / 2;
        int32_t id = 0;
        st = next_logits(c, m, ids + from, *n - from, logits);
        if (!st) st = tp_sample_token(c, s, &o->sampling, logits, ids, *n, o->sequence, &id, NULL);
        if (st) break;
        ids[(*n)++] = id;
        if (id == o->stop || (o->token && !o->token(o->arg, id))) break;
    }
    tp_sampler_free(s);
    tp_free(logits);
    return st;
}
