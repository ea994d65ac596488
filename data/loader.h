/* Batches of training rows from a corpus. Sample i of a run is a pure function of (corpus, T, seed,
 * packing, i); see data/sample_order.h for how rows are cut and shuffled. With a prefetch thread
 * the next batch is read while the present one is used; the batches are the same. */
#ifndef TP_LOADER_H
#define TP_LOADER_H
#include "data/corpus.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_packing {
    TP_PACK_STREAM,   /* rows are cut from the running text; a row may hold several documents */
    TP_PACK_DOCUMENTS /* shuffled documents, back to back; segments keep them apart */
} tp_packing;

typedef struct tp_loader_opts {
    int64_t batch; /* B: rows per tp_loader_next */
    int64_t T;     /* inputs per row */
    uint64_t seed;
    tp_packing packing;
    bool sequential; /* validation: the corpus once, in order; every token but the first is the
                        target of exactly one row (packing documents: but the first of each) */
    bool prefetch;
    /* Ranks: of every `period` samples this loader hands out `share`, from `first` on. batch must
     * divide share. All 0: every sample. */
    int64_t period, first, share;
} tp_loader_opts;

enum { TP_IGNORE = -100 }; /* a target that counts for nothing */

/* Valid until the next call of tp_loader_next, _seek or _free. */
typedef struct tp_batch {
    int64_t sample;          /* global number of row 0's sample; row r's is sample + r */
    int64_t rows;            /* B; sequential: fewer at the end (the rest is padding), 0 after it */
    const int32_t *inputs;   /* (B,T); padding is 0 */
    const int32_t *targets;  /* (B,T); TP_IGNORE where there is none */
    const int32_t *segments; /* (B,T) from 0 in each row, -1 on padding; NULL: packing stream */
    const int32_t *positions; /* (B,T) from 0 in each segment; NULL: packing stream */
    int64_t n_targets;        /* that are not ignored */
    int64_t target_bytes;     /* bytes of text they stand for: bits per byte divides by this */
    int64_t epoch;            /* of row 0 */
} tp_batch;

typedef struct tp_loader tp_loader;

/* The corpus must outlive the loader; several loaders may share it. */
tp_status tp_loader_new(tp_loader **out, tp_ctx *c, tp_corpus *co, const tp_loader_opts *opts);
tp_status tp_loader_next(tp_loader *l, tp_ctx *c, tp_batch *out);
/* The next batch begins with this sample (ranks: with the first sample of this rank's that is not
 * before it; `sample` is a multiple of period). Cheap; forgets a failure. */
tp_status tp_loader_seek(tp_loader *l, tp_ctx *c, int64_t sample);
/* Targets that count in samples [first, first+n), without reading a token. */
tp_status tp_loader_count_targets(tp_loader *l, tp_ctx *c, int64_t first, int64_t n,
                                  int64_t *targets);
int64_t tp_loader_rows(const tp_loader *l); /* samples per epoch */
void tp_loader_free(tp_loader *l);          /* stops the thread */

#ifdef __cplusplus
}
#endif
#endif
