/* tapir bench decode CONFIG: tokens per second of generation on random weights, beside what memory
 * allows: a token at batch 1 reads every weight once. */
#include "cli/bench.h"
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
/* The best of several runs; memory, if not NULL, is measured between them: other programs of the
 * machine take their share of it, now more, now less. */
static tp_status decode(tp_ctx *c, tp_model *m, int64_t batch, int64_t tokens, memory *beside,
                        double *seconds) {
    int32_t prompt[PROMPT] = {1, 2, 3};
    tp_engine *e;
    tp_engine_opts o = {.lanes = batch, .max_length = PROMPT + tokens};
    tp_request q = {.prompt = prompt,
                    .n = PROMPT,
                    .samples = batch,
                    .max_new_tokens = tokens,
                    .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
                    .stop = -1};
    tp_status st = tp_engine_new(&e, c, m, &o);
    *seconds = INFINITY;
    int repeats = beside ? 3 * REPEATS : REPEATS;
    for (int i = 0; i < repeats && !st; i++) {
        if (beside) memory_measure(beside, c);
        double begin = tp_now();
        st = tp_engine_run(e, &q, 1, NULL);
        *seconds = fmin(*seconds, tp_now() - begin);
        tp_progress(false, "batch %lld, run %d of %d", (long long)batch, i + 1, repeats);
        if (!st && tp_interrupted()) st = TP_EINTERRUPT;
    }
    tp_progress_clear();
    tp_engine_free(e);
    return st;
}

int tp_bench_decode(const char *command, char *const words[], int n, bool json) {
    static const int64_t batches[] = {1, 4, 16, 64};
    enum { BATCHES = sizeof batches / sizeof *batches };
    tp_config cfg;
    tp_ctx *c;
    tp_trainer t = {0};
    int code = tp_open_config(command, &cfg, &c, words, n);
    if (code) return code;
    tp_status st = cfg.model.vocab ? TP_OK : tp_config_require(c, &cfg, "model.vocab");
    if (!st && !cfg.model.vocab) st = tp_fail(c, TP_EARG, "model.vocab must be given");
    if (!st) st = tp_trainer_model(&t, c, &cfg);
    int64_t tokens = cfg.model.context - PROMPT < 128 ? cfg.model.context - PROMPT : 128;
    if (!st && tokens < 8)
        st = tp_fail(c, TP_EARG, "model.context must be 24 or more, got %lld",
                     (long long)cfg.model.context);
    double seconds[BATCHES] = {0}, weights = 0;
    memory mem = {0};
    if (!st) { /* a token's row of the embedding is not all of it, unless it is the head as well */
        const tp_params *p = tp_model_params(t.model);
        for (int i = 0; i < p->n; i++)
            if (cfg.model.tie_embeddings || !(p->p[i].flags & TP_P_EMBED))
                weights += (double)tp_numel(p->p[i].t) * sizeof(float);
        st = memory_open(&mem, c, weights);
    }
    double cache = (double)tp_plan_kv_bytes(&cfg) * (PROMPT + (double)tokens / 2);
    for (int i = 0; i < BATCHES && !st; i++)
        st = decode(c, t.model, batches[i], tokens, i ? NULL : &mem, &seconds[i]);
    if (st) code = tp_say_failure(command, c, st);
    double speed = mem.best, limit = speed / (weights + cache);
    if (!st && !json)
        printf("weights          %.1f MB are read for a token, and %.2f MB of keys and values\n"
               "memory           %.1f GB/s, measured on as many bytes: at most %.1f tokens/s at "
               "batch 1\n",
               weights / 1e6, cache / 1e6, speed / 1e9, limit);
    if (!st && json)
        printf("{\"weight_bytes\":%.0f,\"kv_bytes\":%.0f,\"memory_gb_per_s\":%.4g,"
               "\"limit_tokens_per_s\":%.6g,\"threads\":%d",
               weights, cache, speed / 1e9, limit, tp_threads(c));
    for (int i = 0; i < BATCHES && !st; i++) {
        double rate = (double)(batches[i] * tokens) / seconds[i];
        if (json)
            printf(",\"tokens_per_s_%lld\":%.6g", (long long)batches[i], rate);
        else if (i == 0)
            printf("batch 1          %.1f tokens/s   (%.0f %% of that)\n", rate,
                   100 * rate / limit);
        else
            printf("batch %-10lld %.1f tokens/s\n", (long long)batches[i], rate);
    }
    if (!st && json) printf(",\"of_limit\":%.4g}\n", (double)tokens / seconds[0] / limit);
    if (mem.at) tp_release(c, mem.at);
    tp_free(mem.sum);
    tp_trainer_clear(&t);
    tp_ctx_free(c);
    return code;
}
