/* Tests of byte-pair merging and of training, against both done the slow, plain way in this file.
 */
#include "tokenizer_fixture.h"

/* ---- against the plain way ----------------------------------------------- ------------------ */
typedef struct plain_merge {
    char a[64], b[64];
} plain_merge;

static plain_merge *read_merges(const tp_tokenizer *t, int *n) {
    cJSON *root = cJSON_Parse(tp_tokenizer_json(t, NULL));
    const cJSON *list = cJSON_GetObjectItem(cJSON_GetObjectItem(root, "model"), "merges"), *m;
    *n = cJSON_GetArraySize(list);
    plain_merge *out = calloc((size_t)*n + 1, sizeof *out), *to = out;
    cJSON_ArrayForEach(m, list) {
        assert_int_equal(sscanf(m->valuestring, "%63s %63s", to->a, to->b), 2);
        to++;
    }
    cJSON_Delete(root);
    return out;
}

/* Letters only, so that bytes and alphabet agree: of all pairs that can merge, the one of lowest
 * rank, the leftmost of equals; until none is left. */
static int plain_bpe(const plain_merge *m, int n_merges, const char *word, char (*sym)[512]) {
    int n = 0;
    for (; word[n]; n++) sym[n][0] = word[n], sym[n][1] = 0;
    for (;;) {
        int at = -1;
        for (int r = 0; r < n_merges && at < 0; r++)
            for (int i = 0; i + 1 < n && at < 0; i++)
                if (!strcmp(sym[i], m[r].a) && !strcmp(sym[i + 1], m[r].b)) at = i;
        if (at < 0) return n;
        strcat(sym[at], sym[at + 1]);
        n--;
        memmove(sym[at + 1], sym[at + 2], (size_t)(n - at - 1) * sizeof *sym);
    }
}

static void merging(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    char text[4000], word[301];
    for (size_t i = 0; i < sizeof text; i++) text[i] = i % 9 == 8 ? '\n' : (char)('a' + rnd(i, 3));
    tp_tokenizer *t = train(c, text, sizeof text, &(tp_bpe_opts){.vocab_size = 330});
    int n_merges;
    plain_merge *m = read_merges(t, &n_merges);
    assert_true(n_merges >= 330 - 256 - 1);
    static char sym[400][512];
    for (uint64_t k = 0; k < 40; k++) { /* lengths on both sides of the switch to a heap */
        int n = 1 + (int)rnd(k + 9000, k % 2 ? 90 : 300);
        for (int i = 0; i < n; i++) word[i] = (char)('a' + rnd(k << 20 | (uint64_t)i, 3));
        word[n] = 0;
        int want = plain_bpe(m, n_merges, word, sym);
        tp_ids ids = encode(c, t, word, (size_t)n, false);
        assert_int_equal(ids.n, want);
        for (int i = 0; i < want; i++)
            assert_int_equal(ids.data[i], tp_tokenizer_find(t, sym[i], strlen(sym[i])));
        tp_ids_clear(&ids);
    }
    free(m);
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

enum { PLAIN_IDS = 320, PLAIN_TEXT = 1200 };
static int id_of(char (*names)[64], int n, const char *s) {
    for (int id = 1; id < n; id++)
        if (!strcmp(names[id], s)) return id;
    fail_msg("no such token: %s", s);
    return 0;
}

/* Trains by counting everything anew before every merge. Words are runs of letters, "\n" between.
 */
static int plain_train(const char *text, int want, plain_merge *out) {
    static char sym[PLAIN_TEXT][64], names[PLAIN_IDS][64];
    static int count[PLAIN_IDS][PLAIN_IDS], id[PLAIN_TEXT];
    int n = 0, n_ids = 256, done = 0;
    for (int i = 0; i < 256; i++) names[i][0] = (char)i, names[i][1] = 0;
    for (const char *p = text; *p; p++) sym[n][0] = *p, sym[n++][1] = 0;
    for (; done < want; done++) {
        memset(count, 0, sizeof count);
        int a = 0, b = 0;
        for (int i = 0; i < n; i++) id[i] = id_of(names, n_ids, sym[i]);
        for (int i = 0; i + 1 < n; i++)
            if (sym[i][0] != '\n' && sym[i + 1][0] != '\n') count[id[i]][id[i + 1]]++;
        for (int x = 0; x < n_ids; x++)
            for (int y = 0; y < n_ids; y++)
                if (count[x][y] > count[a][b]) a = x, b = y;
        if (count[a][b] < 2) break;
        snprintf(out[done].a, 64, "%s", names[a]);
        snprintf(out[done].b, 64, "%s", names[b]);
        char both[64];
        snprintf(both, 64, "%.31s%.31s", names[a], names[b]);
        bool known = false; /* two ways to spell a token are one token */
        for (int x = 0; x < n_ids; x++) known |= !strcmp(names[x], both);
        if (!known) strcpy(names[n_ids++], both);
        int k = 0;
        for (int i = 0; i < n; k++) {
            bool hit = i + 1 < n && id[i] == a && id[i + 1] == b;
            memmove(sym[k], hit ? both : sym[i], 64);
            i += hit ? 2 : 1;
        }
        n = k;
    }
    return done;
}

static void training(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(2, 0);
    for (uint64_t seed = 0; seed < 4; seed++) {
        char text[PLAIN_TEXT + 1] = {0};
        for (uint64_t i = 0; i < PLAIN_TEXT; i++)
            text[i] =
                i % (7 + seed) == 6 ? '\n' : (char)('a' + rnd(seed << 32 | i, 2 + (uint32_t)seed));
        plain_merge want[60] = {{{0}, {0}}};
        int n = plain_train(text, 50, want), n_got;
        tp_tokenizer *t = train(c, text, PLAIN_TEXT, &(tp_bpe_opts){.vocab_size = 256 + 1 + n});
        plain_merge *got = read_merges(t, &n_got);
        assert_true(n >= 20 && n_got >= n);
        for (int i = 0; i < n; i++) {
            assert_string_equal(got[i].a, want[i].a);
            assert_string_equal(got[i].b, want[i].b);
        }
        free(got);
        tp_tokenizer_free(t);
    }
    tp_ctx_free(c);
}

static tp_tokenizer *train_parts(tp_ctx *c, const char *text, size_t part, bool backwards) {
    tp_bpe_trainer *b = NULL;
    tp_tokenizer *t = NULL, *again = NULL;
    const tp_bpe_opts o = {.vocab_size = 500, .pattern = "cl100k"};
    assert_int_equal(tp_bpe_trainer_new(&b, c, &o), TP_OK);
    for (size_t i = 0; i < 10; i++) {
        const char *p = text + (backwards ? 9 - i : i) * part;
        assert_int_equal(tp_bpe_trainer_add(b, p, (int64_t)part), TP_OK);
    }
    assert_int_equal(tp_bpe_trainer_finish(&t, b), TP_OK);
    assert_int_equal(tp_bpe_trainer_finish(&again, b), TP_ESTATE);
    assert_int_equal(tp_bpe_trainer_add(b, "x", 1), TP_ESTATE);
    tp_bpe_trainer_free(b);
    tp_clear(c);
    return t;
}

static void determinism(void **state) {
    (void)state;
    static char text[1 << 20];
    size_t n = sample_text(text, sizeof text, 3);
    tp_ctx *c1 = new_ctx(1, 0), *c2 = new_ctx(2, 0);
    tp_tokenizer *a = train_parts(c1, text, n / 10, false);
    tp_tokenizer *b = train_parts(c2, text, n / 10, true);
    assert_string_equal(tp_tokenizer_json(a, NULL), tp_tokenizer_json(b, NULL));
    tp_ids x = encode(c1, a, text, n, false), y = encode(c2, b, text, n, false);
    assert_same_ids(&x, &y);
    tp_tokenizer_free(a);
    tp_tokenizer_free(b);
    tp_ctx_free(c1);
    tp_ctx_free(c2);
}

static bool stop_at_half(void *arg, double fraction, const char *what) {
    (void)what;
    ++*(int *)arg;
    return fraction < 0.5;
}

static void training_options(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    const char *const names[] = {"the"};
    int calls = 0;
    const tp_bpe_opts bad[] = {{.vocab_size = 256},
                               {.vocab_size = -1},
                               {.vocab_size = INT64_MAX},
                               {.vocab_size = 400, .pattern = "gpt3"},
                               {.vocab_size = 400, .min_count = -1},
                               {.vocab_size = 400, .specials = names, .n_specials = -1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tp_bpe_trainer *b = NULL;
        tp_clear(c);
        assert_int_equal(tp_bpe_trainer_new(&b, c, &bad[i]), TP_EARG);
        assert_null(b);
        assert_true(strlen(tp_error(c)) > 20);
    }
    size_t n = sample_text(sample, sizeof sample, 1);
    const tp_bpe_opts stopped = {
        .vocab_size = 420, .progress = stop_at_half, .progress_arg = &calls};
    tp_clear(c);
    assert_null(train(c, sample, n, &stopped));
    assert_int_equal(tp_error_status(c), TP_EINTERRUPT);
    assert_true(calls > 1);
    tp_clear(c);
    /* too little text: fewer ids, no failure */
    tp_tokenizer *t = train(c, "", 0, &(tp_bpe_opts){.vocab_size = 400});
    assert_int_equal(tp_tokenizer_vocab_size(t), 257);
    tp_tokenizer_free(t);
    t = train(c, "abab", 4, &(tp_bpe_opts){.vocab_size = 400});
    assert_int_equal(tp_tokenizer_vocab_size(t), 258);
    tp_tokenizer_free(t);
    /* a special that text spells stays out of reach of text */
    t = train(c, sample, n, &(tp_bpe_opts){.vocab_size = 400, .specials = names, .n_specials = 1});
    assert_int_equal(tp_tokenizer_find(t, "the", 3), 399);
    tp_ids ids = encode(c, t, "the", 3, false);
    assert_true(ids.n > 1);
    tp_ids_clear(&ids);
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

/* Each allocation fails once: a status, a sentence, no leak (under ASan); and at last success. */
static void out_of_memory(void **state) {
    (void)state;
    size_t n = sample_text(sample, 3000, 2);
    int failures = 0;
    for (long at = 1;; at += at < 150 ? 1 : 37) {
        tp_ctx *c = new_ctx(1, at);
        tp_bpe_trainer *b = NULL;
        tp_tokenizer *t = NULL;
        tp_encoder *e = NULL;
        tp_ids ids = {0};
        char *back = NULL;
        size_t n_back;
        tp_status st = tp_bpe_trainer_new(&b, c, &(tp_bpe_opts){.vocab_size = 300});
        if (!st) st = tp_bpe_trainer_add(b, sample, (int64_t)n);
        if (!st) st = tp_bpe_trainer_finish(&t, b);
        if (!st) st = tp_encoder_new(&e, c, t, NULL);
        if (!st) st = tp_encode(&ids, e, sample, (int64_t)n);
        if (!st) st = tp_decode(&back, &n_back, c, t, ids.data, ids.n);
        if (st) assert_int_equal(st, TP_ENOMEM);
        if (st) assert_true(strlen(tp_error(c)) > 5);
        tp_free(back);
        tp_ids_clear(&ids);
        tp_encoder_free(e);
        tp_tokenizer_free(t);
        tp_bpe_trainer_free(b);
        tp_ctx_free(c);
        if (!st) break;
        failures++;
    }
    assert_true(failures > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging),       cmocka_unit_test(training),
        cmocka_unit_test(determinism),   cmocka_unit_test(training_options),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
