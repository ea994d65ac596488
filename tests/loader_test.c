/* The loader: every token once an epoch, the same rows whoever asks, nothing across documents. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/loader.h"
#include "data/sample_order.h"

static char dir[64];
static tp_ctx *ctx;

static int setup(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/tapir-loader-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    return tp_ctx_new(&ctx, &(tp_ctx_opts){.meta = true, .threads = 1}) != TP_OK;
}

static int teardown(void **state) {
    (void)state;
    char command[128];
    tp_ctx_free(ctx);
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command) != 0;
}

/* A corpus in which token i is the id i, so that a row says where it came from; id i stands for
 * i % 5 bytes. `lengths` ends with 0. */
static tp_corpus *make(const int64_t *lengths) {
    static int32_t id_bytes[70000];
    char path[128];
    tp_corpus_writer *w;
    tp_corpus *co;
    for (int i = 0; i < 70000; i++) id_bytes[i] = i % 5;
    tp_corpus_meta meta = {.vocab = 70000, .eos = -1, .id_bytes = id_bytes};
    snprintf(path, sizeof path, "%s/c.h5", dir);
    if (tp_corpus_writer_new(&w, ctx, path, &meta)) fail_msg("%s", tp_error(ctx));
    int32_t id = 0;
    for (; *lengths; lengths++) {
        int64_t bytes = 0;
        for (int64_t i = 0; i < *lengths; i++, id++) {
            bytes += id_bytes[id];
            assert_int_equal(tp_corpus_writer_add(w, ctx, &id, 1), TP_OK);
        }
        assert_int_equal(tp_corpus_writer_end_doc(w, ctx, bytes), TP_OK);
    }
    if (tp_corpus_writer_finish(w, ctx, NULL)) fail_msg("%s", tp_error(ctx));
    tp_corpus_writer_free(w);
    if (tp_corpus_open(&co, ctx, path)) fail_msg("%s", tp_error(ctx));
    unlink(path);
    return co;
}

static tp_corpus *make_many(int docs) {
    int64_t *lengths = calloc((size_t)docs + 1, sizeof *lengths);
    for (int d = 0; d < docs; d++) lengths[d] = 1 + (d * 7919) % 61;
    tp_corpus *co = make(lengths);
    free(lengths);
    return co;
}

static tp_loader *loader(tp_corpus *co, const tp_loader_opts *o) {
    tp_loader *l;
    if (tp_loader_new(&l, ctx, co, o)) fail_msg("%s", tp_error(ctx));
    return l;
}

static tp_batch next(tp_loader *l) {
    tp_batch b;
    if (tp_loader_next(l, ctx, &b)) fail_msg("%s", tp_error(ctx));
    return b;
}

static void expect_words(tp_status got, tp_status want, const char *words) {
    assert_int_equal(got, want);
    if (!strstr(tp_error(ctx), words)) fail_msg("\"%s\" lacks \"%s\"", tp_error(ctx), words);
    tp_clear(ctx);
}

/* ---- permutations --------------------------------------------------------------------------- */

static void permutations_are_bijections(void **state) {
    (void)state;
    const uint64_t sizes[] = {1, 2, 3, 5, 8, 9, 1000, 4097};
    uint8_t seen[4097];
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        tp_perm p;
        tp_perm_init(&p, sizes[k], 42, 3, 1);
        memset(seen, 0, sizeof seen);
        for (uint64_t i = 0; i < sizes[k]; i++) {
            uint64_t to = tp_perm_at(&p, i);
            assert_true(to < sizes[k]);
            assert_int_equal(seen[to]++, 0);
        }
    }
    tp_perm big; /* beyond 2^32: in range and different */
    tp_perm_init(&big, 5000000000ull, 42, 3, 1);
    uint64_t above = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t a = tp_perm_at(&big, i * 5000000);
        assert_true(a < 5000000000ull);
        above += a > 2500000000ull;
    }
    assert_in_range(above, 400, 600);
}

/* Over many keys each element goes everywhere equally often, and neighbours part. */
static void permutations_are_even(void **state) {
    (void)state;
    for (uint64_t n = 2; n <= 24; n += 11) {
        double chi2 = 0, runs = 0;
        enum { KEYS = 4000 };
        int count[24][24] = {{0}};
        for (uint64_t epoch = 0; epoch < KEYS; epoch++) {
            tp_perm p;
            tp_perm_init(&p, n, 7, epoch, 1);
            for (uint64_t i = 0; i < n; i++) {
                count[i][tp_perm_at(&p, i)]++;
                runs += i && tp_perm_at(&p, i) == tp_perm_at(&p, i - 1) + 1;
            }
        }
        double mean = (double)KEYS / (double)n, df = (double)(n - 1) * (double)(n - 1);
        for (uint64_t i = 0; i < n; i++)
            for (uint64_t j = 0; j < n; j++) chi2 += (count[i][j] - mean) * (count[i][j] - mean);
        chi2 /= mean;
        /* six standard deviations of chi-square */
        assert_true(chi2 < df + 6 * 1.42 * (df > 1 ? df / 2 : 2));
        /* a random permutation has (n-1)/n such neighbours on average */
        assert_true(runs / KEYS > 0.9 * (double)(n - 1) / (double)n);
        assert_true(runs / KEYS < 1.1 * (double)(n - 1) / (double)n);
    }
}

/* ---- coverage ------------------------------------------------------------------------------- */

/* Counts how often each token is an input and a target in one epoch, and checks every row: targets
 * follow inputs, segments hold one document each, positions count. Returns the epoch's targets. */
static int64_t check_epoch(tp_corpus *co, tp_loader *l, const tp_loader_opts *o, int *in,
                           int *out) {
    const int64_t *offsets = tp_corpus_offsets(co);
    int64_t n = tp_corpus_get_info(co)->tokens, targets = 0, bytes = 0, counted = 0, byte_sum = 0;
    memset(in, 0, (size_t)n * sizeof *in);
    memset(out, 0, (size_t)n * sizeof *out);
    int64_t *doc_of = malloc((size_t)n * sizeof *doc_of);
    for (int64_t d = 0; d < tp_corpus_get_info(co)->docs; d++)
        for (int64_t i = offsets[d]; i < offsets[d + 1]; i++) doc_of[i] = d;
    for (int64_t row = 0, rows = tp_loader_rows(l); row < rows;) {
        tp_batch b = next(l);
        assert_int_equal(b.sample % rows, row);
        counted += b.n_targets;
        byte_sum += b.target_bytes;
        for (int64_t r = 0; r < b.rows && row < rows; r++, row++) {
            int64_t mine = 0;
            for (int64_t i = r * o->T, end = i + o->T; i < end; i++) {
                bool first = i == r * o->T;
                if (b.segments && b.segments[i] < 0) {
                    assert_int_equal(b.targets[i], TP_IGNORE);
                    continue;
                }
                if (!b.segments && b.inputs[i] == 0 && !first && b.inputs[i - 1] == 0)
                    continue; /* padding */
                bool pad = !b.segments && b.inputs[i] == 0 && b.targets[i] == TP_IGNORE && n > 1;
                if (pad) continue;
                in[b.inputs[i]]++;
                if (b.targets[i] != TP_IGNORE) {
                    assert_int_equal(b.targets[i], b.inputs[i] + 1);
                    out[b.targets[i]]++;
                    bytes += b.targets[i] % 5;
                    mine++;
                }
                if (!b.segments) continue;
                bool same = !first && b.segments[i] == b.segments[i - 1];
                if (first) assert_int_equal(b.segments[i], 0);
                if (!same && !first) assert_int_equal(b.segments[i], b.segments[i - 1] + 1);
                assert_int_equal(b.positions[i], same ? b.positions[i - 1] + 1 : 0);
                if (same) assert_int_equal(doc_of[b.inputs[i]], doc_of[b.inputs[i - 1]]);
                if (b.targets[i] >= 0) assert_int_equal(doc_of[b.targets[i]], doc_of[b.inputs[i]]);
            }
            int64_t told;
            assert_int_equal(tp_loader_count_targets(l, ctx, b.sample + r, 1, &told), TP_OK);
            assert_int_equal(told, mine);
            targets += mine;
        }
        if (row == rows && b.sample + b.rows <= (b.sample / rows + 1) * rows) {
            assert_int_equal(counted, targets); /* the batch ends with the epoch */
            assert_int_equal(byte_sum, bytes);
        }
    }
    free(doc_of);
    return targets;
}

static void every_token_once_per_epoch(void **state) {
    (void)state;
    tp_corpus *co = make_many(300);
    int64_t n = tp_corpus_get_info(co)->tokens, docs = 300;
    const int64_t *offsets = tp_corpus_offsets(co);
    int *in = malloc((size_t)n * sizeof *in), *out = malloc((size_t)n * sizeof *out);
    const int64_t lengths[] = {1, 7, 64, 1000, n - 1, n, n + 5};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        for (int packing = 0; packing < 2; packing++) {
            for (int sequential = 0; sequential < 2; sequential++) {
                tp_loader_opts o = {.batch = 1,
                                    .T = lengths[k],
                                    .seed = 5,
                                    .packing = (tp_packing)packing,
                                    .sequential = sequential};
                tp_loader *l = loader(co, &o);
                for (int epoch = 0; epoch < 2 - sequential; epoch++) {
                    int64_t targets = check_epoch(co, l, &o, in, out);
                    assert_int_equal(targets, packing ? n - docs : n - 1);
                    for (int64_t i = 0, d = 0; i < n; i++) {
                        if (i == offsets[d + 1]) d++;
                        bool is_first = packing ? i == offsets[d] : i == 0;
                        assert_int_equal(out[i], !is_first);
                        /* the last token is no input of a sequential pass that ends before it */
                        if (!sequential) assert_int_equal(in[i], 1);
                    }
                }
                if (sequential) assert_int_equal(next(l).rows, 0);
                tp_loader_free(l);
            }
        }
    }
    free(in), free(out);
    tp_corpus_close(co);
}

static void epochs_and_seeds_differ(void **state) {
    (void)state;
    tp_corpus *co = make_many(300);
    int32_t rows[3][64];
    tp_loader_opts o = {.batch = 1, .T = 64, .seed = 5};
    for (int packing = 0; packing < 2; packing++) {
        o.packing = (tp_packing)packing;
        for (int k = 0; k < 3; k++) {
            o.seed = k == 2 ? 6 : 5;
            tp_loader *l = loader(co, &o);
            if (k == 1) tp_loader_seek(l, ctx, tp_loader_rows(l));
            tp_batch b = next(l);
            assert_int_equal(b.epoch, k == 1);
            memcpy(rows[k], b.inputs, sizeof rows[k]);
            tp_loader_free(l);
        }
        assert_memory_not_equal(rows[0], rows[1], sizeof rows[0]);
        assert_memory_not_equal(rows[0], rows[2], sizeof rows[0]);
    }
    tp_corpus_close(co);
}

/* ---- the same samples, whoever asks --------------------------------------------------------- */

static bool same_row(const tp_batch *a, int64_t ra, const tp_batch *b, int64_t rb, int64_t T) {
    size_t n = (size_t)T * sizeof(int32_t);
    if (memcmp(a->inputs + ra * T, b->inputs + rb * T, n)) return false;
    if (memcmp(a->targets + ra * T, b->targets + rb * T, n)) return false;
    if (!a->segments) return true;
    return !memcmp(a->segments + ra * T, b->segments + rb * T, n) &&
           !memcmp(a->positions + ra * T, b->positions + rb * T, n);
}

static void seek_prefetch_and_ranks_change_nothing(void **state) {
    (void)state;
    enum { T = 48, G = 12, STEPS = 30 };
    tp_corpus *co = make_many(100); /* some five epochs */
    for (int packing = 0; packing < 2; packing++) {
        tp_loader_opts one = {.batch = 1, .T = T, .seed = 9, .packing = (tp_packing)packing};
        tp_loader *alone = loader(co, &one);
        for (int rank = 0; rank < 3; rank++) {
            for (int prefetch = 0; prefetch < 2; prefetch++) {
                tp_loader_opts o = one;
                o.batch = 2, o.period = G, o.first = rank * 4, o.share = 4, o.prefetch = prefetch;
                tp_loader *l = loader(co, &o);
                for (int half = 0; half < STEPS * 2; half++) {
                    if (half == 31) { /* resume elsewhere, once while a batch is on its way */
                        assert_int_equal(tp_loader_seek(l, ctx, 50 * G), TP_OK);
                        assert_int_equal(tp_loader_seek(l, ctx, 15 * G), TP_OK);
                        half--;
                        assert_int_equal(half % 2, 0);
                        tp_batch again = next(l);
                        assert_int_equal(again.sample, 15 * G + rank * 4);
                        half++;
                    }
                    tp_batch b = next(l);
                    assert_int_equal(b.sample, half / 2 * G + rank * 4 + half % 2 * 2);
                    for (int r = 0; r < 2; r++) {
                        assert_int_equal(tp_loader_seek(alone, ctx, b.sample + r), TP_OK);
                        tp_batch a = next(alone);
                        assert_int_equal(a.sample, b.sample + r);
                        assert_true(same_row(&a, 0, &b, r, T));
                    }
                }
                tp_loader_free(l);
            }
        }
        tp_loader_free(alone);
    }
    tp_corpus_close(co);
}

/* A seek while the thread is filling a batch: that batch is stale and must not come out. */
static void seeks_race_the_thread(void **state) {
    (void)state;
    tp_corpus *co = make_many(1000);
    tp_loader *l = loader(co, &(tp_loader_opts){.batch = 256, .T = 64, .prefetch = true});
    for (int64_t i = 0; i < 300; i++) {
        int64_t to = i * 7919 % 10000;
        assert_int_equal(tp_loader_seek(l, ctx, to), TP_OK);
        assert_int_equal(next(l).sample, to); /* from here on the next one is being filled */
        if (i % 3) usleep((useconds_t)(i % 50));
    }
    tp_loader_free(l);
    tp_corpus_close(co);
}

static void validation_ends_once(void **state) {
    (void)state;
    tp_corpus *co = make((int64_t[]){10, 11, 0});
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        tp_loader_opts o = {.batch = 4, .T = 4, .sequential = true, .prefetch = prefetch};
        tp_loader *l = loader(co, &o);
        for (int pass = 0; pass < 2; pass++) {
            tp_batch b = next(l); /* 21 tokens: five rows of four, the last target is token 20 */
            assert_int_equal(b.rows, 4);
            assert_int_equal(b.n_targets, 16);
            b = next(l);
            assert_int_equal(b.rows, 1);
            assert_int_equal(b.inputs[3], 19);
            assert_int_equal(b.targets[3], 20);
            assert_int_equal(b.targets[4], TP_IGNORE);
            assert_int_equal(b.n_targets, 4);
            assert_int_equal(b.target_bytes, 2 + 3 + 4 + 0);
            for (int i = 0; i < 3; i++) assert_int_equal(next(l).rows, 0);
            assert_int_equal(tp_loader_seek(l, ctx, 0), TP_OK);
        }
        tp_loader_free(l);
    }
    tp_corpus_close(co);
}

static void small_corpora(void **state) {
    (void)state;
    tp_loader *l;
    tp_loader_opts o = {.batch = 1, .T = 8};
    tp_corpus *co = make((int64_t[]){1, 0});
    expect_words(tp_loader_new(&l, ctx, co, &o), TP_EARG, "nothing to predict");
    tp_corpus_close(co);
    co = make((int64_t[]){1, 1, 1, 0});
    o.packing = TP_PACK_DOCUMENTS;
    expect_words(tp_loader_new(&l, ctx, co, &o), TP_EARG, "single token");
    o.packing = TP_PACK_STREAM;
    l = loader(co, &o);
    for (int i = 0; i < 5; i++) {
        tp_batch b = next(l);
        assert_int_equal(b.n_targets, 2);
        assert_int_equal(b.target_bytes, 3);
    }
    tp_loader_free(l);
    o.batch = 0;
    expect_words(tp_loader_new(&l, ctx, co, &o), TP_EARG, "0 rows");
    o.batch = INT64_MAX / 2;
    expect_words(tp_loader_new(&l, ctx, co, &o), TP_EARG, "cannot be made");
    o.batch = 1, o.T = 0;
    expect_words(tp_loader_new(&l, ctx, co, &o), TP_EARG, "rows of 0");
    o = (tp_loader_opts){.batch = 3, .T = 2, .period = 8, .share = 4};
    expect_words(tp_loader_new(&l, ctx, co, &o), TP_EARG, "in batches of 3");
    o = (tp_loader_opts){.batch = 2, .T = 2, .period = 8, .share = 4, .first = 5};
    expect_words(tp_loader_new(&l, ctx, co, &o), TP_EARG, "samples from 5");
    o.first = 4;
    l = loader(co, &o);
    expect_words(tp_loader_seek(l, ctx, 3), TP_EARG, "no period");
    expect_words(tp_loader_seek(l, ctx, -1), TP_EARG, "sample -1");
    tp_loader_free(l);
    tp_corpus_close(co);
    int64_t none = 0;
    tp_order *order;
    expect_words(tp_order_new(&order, ctx, &none, 0, &(tp_order_opts){.T = 1}), TP_EARG,
                 "no documents");
}

/* Damage met by the prefetch thread reaches the caller, again and again until a seek. */
static void errors_cross_threads(void **state) {
    (void)state;
    char path[128];
    tp_corpus_writer *w;
    tp_corpus *co;
    tp_batch b;
    int32_t id_bytes[10] = {0}, ids[1000];
    snprintf(path, sizeof path, "%s/bad.h5", dir);
    tp_corpus_meta meta = {.vocab = 10, .eos = -1, .id_bytes = id_bytes};
    for (int i = 0; i < 1000; i++) ids[i] = 3;
    assert_int_equal(tp_corpus_writer_new(&w, ctx, path, &meta), TP_OK);
    for (int i = 0; i < 300; i++) assert_int_equal(tp_corpus_writer_add(w, ctx, ids, 1000), TP_OK);
    assert_int_equal(tp_corpus_writer_end_doc(w, ctx, 0), TP_OK);
    assert_int_equal(tp_corpus_writer_finish(w, ctx, NULL), TP_OK);
    tp_corpus_writer_free(w);
    assert_int_equal(tp_corpus_open(&co, ctx, path), TP_OK);
    assert_int_equal(truncate(path, 150000), 0);
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        tp_loader_opts o = {.batch = 1, .T = 100000, .sequential = true, .prefetch = prefetch};
        tp_loader *l = loader(co, &o);
        assert_int_equal(tp_loader_seek(l, ctx, 1), TP_OK);
        for (int i = 0; i < 2; i++) expect_words(tp_loader_next(l, ctx, &b), TP_EFORMAT, "bad.h5");
        tp_loader_free(l);
    }
    tp_corpus_close(co);
}

/* ---- large corpora: the arithmetic, without the tokens -------------------------------------- */

static void orders_beyond_2_to_31(void **state) {
    (void)state;
    enum { DOCS = 1000 };
    int64_t offsets[DOCS + 1] = {0};
    for (int d = 0; d < DOCS; d++) offsets[d + 1] = offsets[d] + 9000000 + d * 1001;
    int64_t n = offsets[DOCS]; /* 9.5 * 10^9 */
    for (int documents = 0; documents < 2; documents++) {
        tp_order *o;
        tp_order_opts opts = {.T = 4096, .seed = 3, .documents = documents};
        assert_int_equal(tp_order_new(&o, ctx, offsets, DOCS, &opts), TP_OK);
        assert_int_equal(tp_order_rows(o), (n + 4095) / 4096);
        int64_t beyond = 0;
        for (int64_t s = 0; s < 3 * n / 4096; s += 99991) {
            const tp_run *run;
            int64_t n_runs, sum = 0;
            assert_int_equal(tp_order_sample(o, ctx, s, &run, &n_runs), TP_OK);
            for (int64_t i = 0; i < n_runs; i++) {
                sum += run[i].n;
                assert_true(run[i].first >= 0 && run[i].n > 0);
                assert_true(run[i].first + run[i].n + run[i].last_has_target <= n);
                beyond += run[i].first > INT32_MAX;
            }
            assert_true(sum == 4096 || sum == n % 4096);
        }
        assert_true(beyond > 20);
        tp_order_free(o);
        opts.sequential = true;
        assert_int_equal(tp_order_new(&o, ctx, offsets, DOCS, &opts), TP_OK);
        const tp_run *run;
        int64_t n_runs, last = tp_order_rows(o) - 1;
        assert_int_equal(tp_order_sample(o, ctx, last, &run, &n_runs), TP_OK);
        assert_int_equal(run[0].first, last * 4096);
        assert_int_equal(run[n_runs - 1].first + run[n_runs - 1].n, n);
        assert_false(run[n_runs - 1].last_has_target);
        tp_order_free(o);
    }
}

static void no_memory_is_told_not_fatal(void **state) {
    (void)state;
    tp_corpus *co = make_many(50);
    int failures = 0;
    for (long at = 1; at < 30; at++) {
        tp_ctx *c;
        tp_loader *l;
        tp_batch b;
        tp_loader_opts o = {.batch = 2, .T = 64, .packing = TP_PACK_DOCUMENTS};
        if (tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1, .fail_alloc_at = at}))
            continue;
        tp_status st = tp_loader_new(&l, c, co, &o);
        if (!st) st = tp_loader_next(l, c, &b);
        if (st) assert_int_equal(st, TP_ENOMEM);
        failures += st != TP_OK;
        tp_loader_free(l);
        tp_ctx_free(c);
    }
    assert_true(failures > 4);
    tp_corpus_close(co);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(permutations_are_bijections),
        cmocka_unit_test(permutations_are_even),
        cmocka_unit_test(every_token_once_per_epoch),
        cmocka_unit_test(epochs_and_seeds_differ),
        cmocka_unit_test(seek_prefetch_and_ranks_change_nothing),
        cmocka_unit_test(seeks_race_the_thread),
        cmocka_unit_test(validation_ends_once),
        cmocka_unit_test(small_corpora),
        cmocka_unit_test(errors_cross_threads),
        cmocka_unit_test(orders_beyond_2_to_31),
        cmocka_unit_test(no_memory_is_told_not_fatal),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
