/* Owns the plain way to one text: an engine with one lane. */
#include "infer/engine.h"

typedef struct text {
    const tp_generate_opts *o;
    int32_t *ids;
    int64_t *n;
} text;

static bool take(void *arg, int64_t request, int64_t sample, int32_t id) {
    text *t = arg;
    (void)request, (void)sample;
    t->ids[(*t->n)++] = id;
    return id == t->o->stop || !t->o->token || t->o->token(t->o->arg, id);
}

tp_status tp_generate(tp_ctx *c, tp_model *m, const tp_generate_opts *o, int32_t *ids, int64_t *n) {
    int64_t context = tp_model_config(m)->context, longest = *n + o->max_new_tokens;
    text t = {o, ids, n};
    tp_engine *e;
    tp_request r = {.prompt = ids,
                    .n = *n,
                    .samples = 1,
                    .max_new_tokens = o->max_new_tokens,
                    .sampling = o->sampling,
                    .first_sample = o->sample,
                    .stop = o->stop};
    tp_engine_opts opts = {
        .lanes = 1, .slide = true, .max_length = longest < context ? longest : context};
    tp_status st = tp_engine_new(&e, c, m, &opts);
    if (!st) st = tp_engine_run(e, &r, 1, &(tp_engine_calls){.token = take, .arg = &t});
    tp_engine_free(e);
    return st;
}
