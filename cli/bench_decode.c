/* tapir bench decode CONFIG: tokens per second of generation, beside what memory allows: a token at
 * batch 1 reads every weight once. With routed blocks, beside the same model without them. Weights
 * are random, or those of model.init_from; where they are random, routed blocks choose at random,
 * too, which keeps to mod.capacity. */
#include "cli/bench.h"
#include "cli/source.h"
#include "core/ctx.h"
#include "infer/engine.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 16, REPEATS = 5 };

/* ---- memory --------------------------------------------------------------------------------- */
typedef struct reading {
    const float *x;
    float *sum; /* a number for each chunk, so that nothing is left out */
    int64_t chunk;
} reading;

/* streams > 1: side by side, lines asked for into the second cache before they are wanted. */
static inline void read_as(const reading *r, int64_t i, const int streams) {
    enum { LINE = 16, AHEAD = 512 };
    const float *x = r->x + i * r->chunk;
    int64_t part = r->chunk / streams;
    float s[LINE] = {0};
    for (int64_t j = 0; j < part; j += LINE)
        for (int t = 0; t < streams; t++) {
            if (streams > 1) __builtin_prefetch(x + t * part + j + AHEAD, 0, 2);
            for (int k = 0; k < LINE; k++) s[k] += x[t * part + j + k];
        }
    r->sum[i] = s[0];
    for (int k = 1; k < LINE; k++) r->sum[i] += s[k];
}

static void read_plain(void *arg, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) read_as(arg, i, 1);
}

static void read_streams(void *arg, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) read_as(arg, i, 8);
}

enum { CHUNK = 1 << 17 };
typedef struct memory { /* as many bytes as are read for a token: small models stay in the caches */
    tp_tensor *at;      /* where weights lie, in pages as large as theirs */
    float *sum;
    int64_t chunks;
    double best; /* bytes per second, of all times that it was measured */
} memory;

static tp_status memory_open(memory *m, tp_ctx *c, double bytes) {
    m->chunks = (int64_t)(bytes / (CHUNK * sizeof(float))) + 1;
    m->at = tp_tensor_keep(c, TP_F32, TP_SHAPE(m->chunks * CHUNK));
    m->sum = tp_calloc(c, (size_t)m->chunks, sizeof *m->sum);
    if (!m->at || !m->sum) return tp_error_status(c);
    for (int64_t j = 0; j < m->chunks * CHUNK; j++) tp_f32(m->at)[j] = (float)(j & 7);
    return TP_OK;
}

/* The faster of two ways to read, either of which is the better one on some processor. */
static void memory_measure(memory *m, tp_ctx *c) {
    static const tp_range_fn way[] = {read_plain, read_streams};
    reading r = {tp_f32(m->at), m->sum, CHUNK};
    for (int i = 0; i < 6; i++) {
        double begin = tp_now();
        tp_parallel_for(c, m->chunks, 1, way[i % 2], &r);
        m->best = fmax(m->best, (double)(m->chunks * CHUNK) * sizeof(float) / (tp_now() - begin));
    }
}

/* ---- decoding ------------------------------------------------------------------------------- */
static const int64_t batches[] = {1, 4, 16, 64};
enum { BATCHES = sizeof batches / sizeof *batches };
typedef struct measured {
    double seconds[BATCHES];
    double kv_bytes, flops; /* of a token: kept by the layers; done for it at the largest batch */
} measured;

/* The best of several runs; memory, if not NULL, is measured between them: other programs of the
 * machine take their share of it, now more, now less. */
static tp_status decode(tp_ctx *c, tp_model *m, int batch, int64_t tokens, memory *beside,
                        measured *out) {
    int32_t prompt[PROMPT] = {1, 2, 3};
    tp_engine *e;
    tp_engine_opts o = {.lanes = batches[batch], .max_length = PROMPT + tokens};
    tp_request q = {.prompt = prompt,
                    .n = PROMPT,
                    .samples = batches[batch],
                    .max_new_tokens = tokens,
                    .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
                    .stop = -1};
    tp_status st = tp_engine_new(&e, c, m, &o);
    double *seconds = &out->seconds[batch];
    *seconds = INFINITY;
    int repeats = beside ? 3 * REPEATS : REPEATS;
    for (int i = 0; i < repeats && !st; i++) {
        if (beside) memory_measure(beside, c);
        double begin = tp_now();
        st = tp_engine_run(e, &q, 1, NULL);
        *seconds = fmin(*seconds, tp_now() - begin);
        tp_progress(false, "batch %lld, run %d of %d", (long long)batches[batch], i + 1, repeats);
        if (!st && tp_interrupted()) st = TP_EINTERRUPT;
    }
    tp_progress_clear();
    if (!st) {
        tp_engine_stats s = tp_engine_get_stats(e);
        out->kv_bytes = tp_engine_kv_bytes_per_token(e);
        out->flops = s.flops_singly / (double)s.fed_singly;
    }
    tp_engine_free(e);
    return st;
}

/* The block that a parameter belongs to, by its name: "model.layers.3.mlp…"; -1: none. */
static int64_t layer_of(const char *name) {
    const char *digits = strpbrk(name, "0123456789");
    return digits ? strtoll(digits, NULL, 10) : -1;
}

/* What one token reads: of a routed block as much as the capacity says; a token's row of the
 * embedding is not all of it, unless it is the head as well. */
static double weight_bytes(tp_model *m) {
    const tp_model_cfg *f = tp_model_config(m);
    const tp_params *p = tp_model_params(m);
    double sum = 0, part = (double)tp_mod_tokens(f, f->context) / (double)f->context;
    for (int i = 0; i < p->n; i++) {
        if (!f->tie_embeddings && (p->p[i].flags & TP_P_EMBED)) continue;
        int64_t layer = layer_of(p->p[i].name);
        bool some = layer >= 0 && tp_mod_routed(f, layer) && !strstr(p->p[i].name, ".mod.");
        sum += (some ? part : 1) * (double)tp_numel(p->p[i].t) * sizeof(float);
    }
    return sum;
}

static tp_status open_model(tp_trainer *t, tp_ctx *c, const tp_config *cfg) {
    tp_status st = tp_trainer_model(t, c, cfg);
    return st || !*cfg->model.init_from ? st : tp_begin_weights(c, cfg, tp_model_params(t->model));
}

typedef struct report {
    double weights, cache, memory; /* bytes of a token, bytes per second */
    int64_t tokens;
    const measured *it, *dense; /* dense NULL: there are no routed blocks */
} report;

static double rate(const report *r, const measured *x, int batch) {
    return (double)(batches[batch] * r->tokens) / x->seconds[batch];
}

static void print_text(const report *r) {
    double limit = r->memory / (r->weights + r->cache);
    char a[32], b[32];
    printf("weights          %.1f MB are read for a token, and %.2f MB of keys and values\n"
           "memory           %.1f GB/s, measured on as many bytes: at most %.1f tokens/s at "
           "batch 1\n",
           r->weights / 1e6, r->cache / 1e6, r->memory / 1e9, limit);
    printf("key-value cache  %s bytes per token", tp_count(a, r->it->kv_bytes));
    if (r->dense) printf("   (every block dense: %s)", tp_count(b, r->dense->kv_bytes));
    printf("\nFLOPs per token  %s", tp_count(a, r->it->flops));
    if (r->dense) printf("   (every block dense: %s)", tp_count(b, r->dense->flops));
    printf("\n");
    for (int i = 0; i < BATCHES; i++) {
        double x = rate(r, r->it, i);
        printf("batch %-10lld %.1f tokens/s", (long long)batches[i], x);
        if (i == 0) printf("   (%.0f %% of that)", 100 * x / limit);
        if (r->dense) printf("   (every block dense: %.1f)", rate(r, r->dense, i));
        printf("\n");
    }
}

static void print_json(const report *r, int threads) {
    double limit = r->memory / (r->weights + r->cache);
    printf("{\"weight_bytes\":%.0f,\"kv_bytes\":%.0f,\"memory_gb_per_s\":%.4g,"
           "\"limit_tokens_per_s\":%.6g,\"threads\":%d",
           r->weights, r->cache, r->memory / 1e9, limit, threads);
    for (const measured *x = r->it; x; x = x == r->it ? r->dense : NULL) {
        const char *prefix = x == r->it ? "" : "dense_";
        printf(",\"%skv_bytes_per_token\":%.6g,\"%sflops_per_token\":%.6g", prefix, x->kv_bytes,
               prefix, x->flops);
        for (int i = 0; i < BATCHES; i++)
            printf(",\"%stokens_per_s_%lld\":%.6g", prefix, (long long)batches[i], rate(r, x, i));
    }
    printf(",\"of_limit\":%.4g}\n", rate(r, r->it, 0) / limit);
}

int tp_bench_decode(const char *command, char *const words[], int n, bool json) {
    tp_config cfg;
    tp_ctx *c;
    tp_trainer t[2] = {{0}};
    int code = tp_open_config(command, &cfg, &c, words, n);
    if (code) return code;
    tp_status st = tp_config_vocab(c, &cfg);
    if (!*cfg.model.init_from) /* what was never trained keeps to no capacity */
        cfg.mod.router =
            cfg.mod.router == TP_CFG_ROUTER_LINEAR ? TP_CFG_ROUTER_RANDOM : cfg.mod.router;
    if (!st) st = open_model(&t[0], c, &cfg);
    bool routed = !st && tp_trainer_routes(&t[0]);
    int64_t tokens = cfg.model.context - PROMPT < 128 ? cfg.model.context - PROMPT : 128;
    if (!st && cfg.device != TP_CPU)
        st = tp_fail(c, TP_EARG, "bench decode compares with this machine's memory: device: cpu");
    if (!st && tokens < 8)
        st = tp_fail(c, TP_EARG, "model.context must be 24 or more, got %lld",
                     (long long)cfg.model.context);
    tp_config dense = cfg;
    dense.mod.capacity = 0;
    *dense.model.init_from = 0;
    if (!st && routed) st = open_model(&t[1], c, &dense);
    measured x[2] = {{{0}}};
    memory mem = {0};
    report r = {.tokens = tokens, .it = &x[0], .dense = routed ? &x[1] : NULL};
    if (!st) {
        r.weights = weight_bytes(t[0].model);
        r.cache = (double)tp_kv_bytes_per_token(t[0].model) * (PROMPT + (double)tokens / 2);
        st = memory_open(&mem, c, r.weights);
    }
    for (int i = 0; i < BATCHES && !st; i++)
        for (int j = 0; j <= routed && !st; j++)
            st = decode(c, t[j].model, i, tokens, i ? NULL : &mem, &x[j]);
    r.memory = mem.best;
    if (st)
        code = tp_say_failure(command, c, st);
    else if (json)
        print_json(&r, tp_threads(c));
    else
        print_text(&r);
    if (mem.at) tp_release(c, mem.at);
    tp_free(mem.sum);
    tp_trainer_clear(&t[1]);
    tp_trainer_clear(&t[0]);
    tp_ctx_free(c);
    return code;
}
