/* Tests of data/tokenizer.h: splits written out by hand, decode(encode(x)) == x for all kinds of
 * bytes, and what happens to files that are damaged or ask for what Tapir does not do. */
#include "tokenizer_fixture.h"

/* ---- alphabet and splits -------------------------------------------------------------------- */
static void alphabet(void **state) {
    (void)state;
    static const struct {
        uint8_t byte;
        uint32_t ch;
    } known[] = {{0x00, 0x100}, {'\n', 0x10A}, {' ', 0x120},  {'!', '!'},   {'A', 'A'},
                 {'~', '~'},    {0x7F, 0x121}, {0xA0, 0x142}, {0xA1, 0xA1}, {0xAC, 0xAC},
                 {0xAD, 0x143}, {0xAE, 0xAE},  {0xFF, 0xFF}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_int_equal(tp_byte_to_char(known[i].byte), known[i].ch);
    int found = 0;
    for (uint32_t ch = 0; ch < 0x400; ch++) {
        int b = tp_char_to_byte(ch);
        if (b < 0) continue;
        found++;
        assert_int_equal(tp_byte_to_char((uint8_t)b), ch);
    }
    assert_int_equal(found, 256);
}

typedef struct joined {
    char s[512];
    size_t n;
} joined;

static void join_piece(void *arg, const uint8_t *p, size_t n) {
    joined *j = arg;
    assert_true(j->n + n + 2 < sizeof j->s);
    memcpy(j->s + j->n, p, n);
    j->n += n;
    j->s[j->n++] = '|';
    j->s[j->n] = 0;
}

static void assert_split(const char *pattern, const char *text, const char *want) {
    tp_ctx *c = new_ctx(1, 0);
    tp_pretokenizer p = {0};
    tp_splitter *s = NULL;
    joined j = {{0}, 0};
    assert_int_equal(tp_pretok_add(&p, c, "test", tp_pattern_by_name(pattern)), TP_OK);
    assert_int_equal(tp_splitter_new(&s, c), TP_OK);
    assert_int_equal(tp_pretok_split(&p, s, (const uint8_t *)text, strlen(text), join_piece, &j),
                     0);
    assert_string_equal(j.s, want);
    tp_splitter_free(s);
    tp_pretok_clear(&p);
    tp_ctx_free(c);
}

static void splits(void **state) {
    (void)state;
    assert_split("gpt2", "Hello world's  test\n\n 123", "Hello| world|'s| | test|\n\n| 123|");
    assert_split("gpt2", "we'll I'VE  \n x", "we|'ll| I|'|VE|  \n| x|");
    assert_split("gpt2", "a1b22 $5.00!?", "a|1|b|22| $|5|.|00|!?|");
    assert_split("gpt2", "naïve 日本語 \xC2\xA0x ", "naïve| 日本語| |\xC2\xA0|x| |");
    assert_split("cl100k", "Hello world's  test\n\n 123", "Hello| world|'s| | test|\n\n| |123|");
    assert_split("cl100k", "I'VE 1234567 (a) x;\n\n  y", "I|'VE| |123|456|7| (|a|)| x|;\n\n| | y|");
    /* runs of invalid bytes: a stray continuation, an overlong, a surrogate, a cut character */
    assert_split("gpt2", "a\x80 b\xC0\xAF_\xED\xA0\x80z\xF0\x9F\x99",
                 "a|\x80| b|\xC0\xAF|_|\xED\xA0\x80|z|\xF0\x9F\x99|");
    /* U+180E is no space for Unicode, though PCRE2's \s takes it */
    assert_split("gpt2", "\xE1\xA0\x8E!", "\xE1\xA0\x8E!|");
}

/* ---- encoding and decoding ------------------------------------------------------------------ */
typedef struct marks { /* at[i]: a piece begins at byte i of base */
    const uint8_t *base;
    bool at[4096];
} marks;

static void mark_piece(void *arg, const uint8_t *p, size_t n) {
    marks *m = arg;
    (void)n;
    m->at[p - m->base] = true;
}

/* Splitting the two sides of any cut gives the pieces of the whole. */
static void cuts(void **state) {
    (void)state;
    static char text[sizeof((marks *)0)->at];
    static marks whole, parts;
    size_t n = sample_text(text, sizeof text, 6), n_cuts = 0;
    const uint8_t *p = whole.base = parts.base = (const uint8_t *)text;
    tp_ctx *c = new_ctx(1, 0);
    tp_splitter *s = NULL;
    assert_int_equal(tp_splitter_new(&s, c), TP_OK);
    for (int k = 0; k < 2; k++) {
        tp_pretokenizer pre = {0};
        const char *regex = k ? tp_pattern_cl100k : tp_pattern_gpt2;
        assert_int_equal(tp_pretok_add(&pre, c, "test", regex), TP_OK);
        memset(whole.at, 0, sizeof whole.at);
        assert_int_equal(tp_pretok_split(&pre, s, p, n, mark_piece, &whole), 0);
        for (size_t at = 0; (at = tp_pretok_cut(&pre, p, n, at + 1)) < n; n_cuts++) {
            memset(parts.at, 0, sizeof parts.at);
            assert_int_equal(tp_pretok_split(&pre, s, p, at, mark_piece, &parts), 0);
            assert_int_equal(tp_pretok_split(&pre, s, p + at, n - at, mark_piece, &parts), 0);
            assert_memory_equal(parts.at, whole.at, n);
        }
        tp_pretok_clear(&pre);
    }
    assert_true(n_cuts > 300);
    tp_splitter_free(s);
    tp_ctx_free(c);
}

static void cut_for_threads(void **state) {
    (void)state;
    static char text[300000];
    size_t n = sample_text(text, sizeof text, 4);
    tp_ctx *c = new_ctx(2, 0);
    tp_tokenizer *t = sample_tokenizer(c, "cl100k"), *u = NULL;
    /* an equal pattern that the library does not know is never cut for the threads */
    char *json = replaced(tp_tokenizer_json(t, NULL), "\\\\s+\"}", "\\\\s+|zz(?!z)z\"}");
    assert_int_equal(tp_tokenizer_from_json(&u, c, json, strlen(json), "u"), TP_OK);
    assert_true(t->pretok.cuts_words && !u->pretok.cuts_words);
    tp_ids cut = encode(c, t, text, n, false), uncut = encode(c, u, text, n, false);
    assert_same_ids(&cut, &uncut);
    free(json);
    tp_tokenizer_free(t);
    tp_tokenizer_free(u);
    tp_ctx_free(c);
}

static void batches(void **state) {
    (void)state;
    enum { N = 700 };
    static char text[300000];
    static tp_text texts[N];
    sample_text(text, sizeof text, 4);
    tp_ctx *c = new_ctx(2, 0);
    tp_tokenizer *t = sample_tokenizer(c, "cl100k");
    int64_t ends[N], from = 0;
    for (int i = 0; i < N; i++) /* empty ones among them */
        texts[i] = (tp_text){text + i * 300, i % 7 ? rnd((uint64_t)i, 400) : 0};
    texts[0].bytes = NULL;
    texts[5].n = 90000;
    tp_encoder *e = NULL;
    tp_ids all = {0};
    assert_int_equal(tp_encoder_new(&e, c, t, NULL), TP_OK);
    assert_int_equal(tp_encode_batch(&all, ends, e, texts, N), TP_OK);
    for (int i = 0; i < N; from = ends[i++]) { /* each as if it were alone */
        tp_ids one = {0};
        assert_int_equal(tp_encode(&one, e, texts[i].bytes, texts[i].n), TP_OK);
        assert_int_equal(one.n, ends[i] - from);
        if (one.n) assert_memory_equal(one.data, all.data + from, (size_t)one.n * sizeof(int32_t));
        tp_ids_clear(&one);
    }
    assert_int_equal(from, all.n);
    texts[3].n = -1;
    assert_int_equal(tp_encode_batch(&all, ends, e, texts, N), TP_EARG);
    assert_int_equal(all.n, from);
    tp_encoder_free(e);
    tp_ids_clear(&all);
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

/* A pattern that backtracks without end gives up on the text in words, and *out is as before. */
static void hopeless_pattern(void **state) {
    (void)state;
    enum { N = 9000 }; /* more than one round of the encoder */
    static tp_text texts[N];
    static const char z[] = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = sample_tokenizer(c, "cl100k"), *u = NULL;
    char *json =
        replaced(tp_tokenizer_json(t, NULL), "(?i:'s|'t|'re|'ve|'m|'ll|'d)|", "(?:z+z+)+y|");
    assert_int_equal(tp_tokenizer_from_json(&u, c, json, strlen(json), "u"), TP_OK);
    for (int i = 0; i < N; i++) texts[i] = (tp_text){"ab", 2};
    texts[N - 1] = (tp_text){z, sizeof z - 1};
    tp_encoder *e = NULL;
    tp_ids ids = {0};
    int64_t ends[N];
    assert_int_equal(tp_encoder_new(&e, c, u, NULL), TP_OK);
    assert_int_equal(tp_encode(&ids, e, "ab", 2), TP_OK);
    int64_t n = ids.n;
    assert_int_equal(tp_encode_batch(&ids, ends, e, texts, N), TP_EARG);
    assert_int_equal(ids.n, n);
    assert_non_null(strstr(tp_error(c), "gave up"));
    tp_ids_clear(&ids);
    tp_encoder_free(e);
    free(json);
    tp_tokenizer_free(t);
    tp_tokenizer_free(u);
    tp_ctx_free(c);
}

static void identity(void **state) {
    (void)state;
    static const char *const texts[] = {
        "👩‍👩‍👧 🇩🇪 é", "<|endoftext|> in text", "\xC3\x28 \xE2\x82",
        "\xF4\x90\x80\x80\xC1\xBF",       "\r\n\r\n \t",           "the\xF0\x9F\x99"};
    static uint8_t buf[200000];
    tp_ctx *c = new_ctx(2, 0);
    tp_tokenizer *t[3] = {sample_tokenizer(c, NULL), sample_tokenizer(c, "cl100k"), NULL};
    assert_int_equal(tp_tokenizer_new_bytes(&t[2], c, NULL, 0), TP_OK);
    for (int k = 0; k < 3; k++) {
        assert_identity(c, t[k], NULL, 0);
        for (int b = 0; b < 256; b++) buf[b] = (uint8_t)b;
        for (int b = 0; b < 256; b += 15) assert_identity(c, t[k], buf + b, 1);
        assert_identity(c, t[k], buf, 256);
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
            assert_identity(c, t[k], texts[i], strlen(texts[i]));
        for (uint64_t i = 0; i < 100; i++) {
            size_t n = rnd(i, 200);
            for (size_t x = 0; x < n; x++) buf[x] = (uint8_t)rnd(i << 32 | x, i & 1 ? 256 : 0xC4);
            assert_identity(c, t[k], buf, n);
        }
        for (size_t i = 0; i + 8 <= sizeof buf;
             i += 8) { /* alike words, so that cache slots clash */
            memcpy(buf + i, " nat", 4);
            for (size_t x = 0; x < 4; x++) buf[i + 4 + x] = (uint8_t)('a' + (i / 8 >> 4 * x) % 16);
        }
        assert_identity(c, t[k], buf, sizeof buf);
        memset(buf, k ? ' ' : 'n', sizeof buf); /* longer than a piece may be */
        assert_identity(c, t[k], buf, sizeof buf);
        for (size_t i = 0; i < sizeof buf; i++) buf[i] = (uint8_t) "日"[i % 3];
        assert_identity(c, t[k], buf, sizeof buf - 1);
    }
    for (int k = 0; k < 3; k++) tp_tokenizer_free(t[k]);
    tp_ctx_free(c);
}

static void streaming(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = NULL;
    assert_int_equal(tp_tokenizer_new_bytes(&t, c, NULL, 0), TP_OK);
    const uint8_t text[] = "a\xC3\xA9\xE6\x97\xA5\xF0\x9F\x99\x82\xF0\x9F!\x80";
    const int want[] = {1, 0, 2, 0, 0, 3, 0,
                        0, 0, 4, 0, 0, 3, 1}; /* bytes out after each byte in */
    tp_decoder d = {0};
    char out[64], *s;
    size_t n;
    for (int i = 0; i < 14; i++) assert_int_equal(tp_decoder_push(&d, t, text[i], out), want[i]);
    assert_int_equal(tp_decoder_push(&d, t, 0xE6, out), 0);
    assert_int_equal(tp_decoder_flush(&d, out), 1);
    assert_int_equal(tp_decoder_flush(&d, out), 0);
    const int32_t unknown[] = {65, 257, 0xE6, -1, 66, INT32_MAX, 0xC3}; /* a padded vocabulary */
    const char shown[] = "A\uFFFD\xE6\uFFFDB\uFFFD\xC3";
    assert_int_equal(tp_decode(&s, &n, c, t, unknown, 7), TP_OK);
    assert_int_equal(n, sizeof shown - 1);
    assert_memory_equal(s, shown, n);
    size_t at = 0;
    for (int i = 0; i < 7; i++) at += tp_decoder_push(&d, t, unknown[i], out + at);
    at += tp_decoder_flush(&d, out + at);
    assert_int_equal(at, n);
    assert_memory_equal(out, shown, n);
    tp_free(s);
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

static void specials(void **state) {
    (void)state;
    static const char *const names[] = {"<|im|>", "<|im|>x", "</s>"};
    static const char *const bad[][2] = {
        {"a b", "x1"}, {"", "x1"}, {"é", "x1"}, {"x1", "x1"}, {"a", "x1"}};
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = NULL;
    assert_int_equal(tp_tokenizer_new_bytes(&t, c, names, 3), TP_OK);
    assert_int_equal(tp_tokenizer_vocab_size(t), 259);
    assert_int_equal(tp_tokenizer_eos(t), 258);
    assert_int_equal(tp_tokenizer_bos(t), -1);
    assert_int_equal(tp_tokenizer_find(t, "<|im|>", 6), 256);
    assert_int_equal(tp_tokenizer_find(t, "A", 1), 'A');
    assert_int_equal(tp_tokenizer_find(t, "AB", 2), -1);
    assert_int_equal(tp_tokenizer_kind(t, 258), TP_TOKEN_SPECIAL);
    assert_int_equal(tp_tokenizer_kind(t, 'A'), TP_TOKEN_BYTE);
    assert_int_equal(tp_tokenizer_kind(t, 259), TP_TOKEN_UNUSED);
    assert_string_equal(tp_token_kind_name(TP_TOKEN_SPECIAL), "special");
    size_t n = 7;
    assert_null(tp_tokenizer_token(t, -1, &n));
    assert_int_equal(n, 0);
    const char *text = "a<|im|>x<|im|><|im";
    tp_ids on = encode(c, t, text, strlen(text), true);
    tp_ids off = encode(c, t, text, strlen(text), false);
    const int32_t want[] = {'a', 257, 256, '<', '|', 'i', 'm'}; /* the longest that begins there */
    assert_int_equal(on.n, 7);
    assert_memory_equal(on.data, want, sizeof want);
    assert_int_equal(off.n, strlen(text));
    for (int64_t i = 0; i < off.n; i++) assert_int_equal(off.data[i], text[i]);
    tp_ids_clear(&on);
    tp_ids_clear(&off);
    tp_tokenizer_free(t);
    for (int i = 0; i < 5; i++) {
        tp_clear(c);
        assert_int_equal(tp_tokenizer_new_bytes(&t, c, bad[i], 2), TP_EARG);
        assert_null(t);
        assert_non_null(strstr(tp_error(c), "special token"));
    }
    tp_ctx_free(c);
}

static void added_tokens(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = sample_tokenizer(c, NULL), *u = NULL;
    assert_int_equal(tp_tokenizer_eos(t), 399);
    char *more = replaced(tp_tokenizer_json(t, NULL), "\"added_tokens\": [",
                          "\"added_tokens\": [{\"id\":401,\"content\":\"  \",\"special\":false},"
                          "{\"id\":402,\"content\":\"日x\",\"special\":false},"
                          "{\"id\":403,\"content\":\"日本\",\"special\":true},");
    char *json = replaced(more, "\"post_processor\": null",
                          "\"post_processor\": {\"type\":\"TemplateProcessing\",\"single\":"
                          "[{\"SpecialToken\":{\"id\":\"<|endoftext|>\",\"type_id\":0}}]}");
    assert_int_equal(tp_tokenizer_from_json(&u, c, json, strlen(json), "u"), TP_OK);
    assert_int_equal(tp_tokenizer_vocab_size(u), 404);
    assert_int_equal(tp_tokenizer_kind(u, 400), TP_TOKEN_UNUSED);
    const int32_t hole[] = {400, 401};
    char *shown;
    size_t n_shown;
    assert_int_equal(tp_decode(&shown, &n_shown, c, u, hole, 2), TP_OK);
    assert_string_equal(shown, "\uFFFD  ");
    tp_free(shown);
    assert_int_equal(tp_tokenizer_kind(u, 401), TP_TOKEN_ADDED);
    assert_int_equal(tp_tokenizer_bos(u), 399);
    tp_ids ids = encode(c, u, "the  日本", 11, false);
    assert_int_equal(ids.data[0], tp_tokenizer_find(t, "the", 3));
    assert_int_equal(ids.data[1], 401);
    assert_true(ids.n > 2 && ids.data[ids.n - 1] != 403);
    tp_ids_clear(&ids);
    ids = encode(c, u, "the  日本", 11, true);
    assert_int_equal(ids.data[ids.n - 1], 403);
    tp_ids_clear(&ids);
    free(more);
    free(json);
    tp_tokenizer_free(t);
    tp_tokenizer_free(u);
    tp_ctx_free(c);
}

/* ---- files and hostile input ---------------------------------------------------------------- */
static void merge_forms(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = sample_tokenizer(c, NULL), *u = NULL;
    cJSON *root = cJSON_Parse(tp_tokenizer_json(t, NULL)), *m;
    cJSON *model = cJSON_GetObjectItem(root, "model"), *pairs = cJSON_CreateArray();
    cJSON_ArrayForEach(m, cJSON_GetObjectItem(model, "merges")) {
        char a[99], b[99];
        assert_int_equal(sscanf(m->valuestring, "%98s %98s", a, b), 2);
        const char *both[] = {a, b};
        cJSON_AddItemToArray(pairs, cJSON_CreateStringArray(both, 2));
    }
    cJSON_ReplaceItemInObject(model, "merges", pairs);
    char *json = cJSON_PrintUnformatted(root);
    assert_int_equal(tp_tokenizer_from_json(&u, c, json, strlen(json), "u"), TP_OK);
    tp_ids x = encode(c, t, sample, 5000, false), y = encode(c, u, sample, 5000, false);
    assert_true(x.n > 500);
    assert_same_ids(&x, &y);
    tp_tokenizer_free(u);
    cJSON_free(json);
    /* with ignore_merges a token is found even where no merge makes it */
    cJSON_ReplaceItemInObject(model, "merges", cJSON_CreateArray());
    cJSON_ReplaceItemInObject(model, "ignore_merges", cJSON_CreateTrue());
    json = cJSON_PrintUnformatted(root);
    assert_int_equal(tp_tokenizer_from_json(&u, c, json, strlen(json), "u"), TP_OK);
    tp_ids z = encode(c, u, "thing", 5, false);
    assert_int_equal(z.n, 1);
    tp_ids_clear(&z);
    cJSON_free(json);
    cJSON_Delete(root);
    tp_tokenizer_free(t);
    tp_tokenizer_free(u);
    tp_ctx_free(c);
}

static void files(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = sample_tokenizer(c, "cl100k"), *u = NULL;
    char dir[] = "/tmp/tapir-tokenizer-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/t.json", dir);
    assert_int_equal(tp_tokenizer_save(t, c, path), TP_OK);
    assert_int_equal(tp_tokenizer_load(&u, c, path), TP_OK);
    assert_string_equal(tp_tokenizer_json(t, NULL), tp_tokenizer_json(u, NULL));
    tp_ids x = encode(c, t, sample, 9000, false), y = encode(c, u, sample, 9000, false);
    assert_same_ids(&x, &y);
    tp_tokenizer_free(u);
    unlink(path);
    assert_int_equal(tp_tokenizer_load(&u, c, path), TP_EIO);
    assert_non_null(strstr(tp_error(c), path));
    tp_clear(c);
    assert_int_equal(tp_tokenizer_load(&u, c, dir), TP_EIO);
    snprintf(path, sizeof path, "%s/none/t.json", dir);
    tp_clear(c);
    assert_int_equal(tp_tokenizer_save(t, c, path), TP_EIO);
    assert_int_equal(rmdir(dir), 0); /* nothing is left behind */
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

static const char *const refused[][3] = {
    /* replace, by, and the message must contain */
    {"\"normalizer\": null", "\"normalizer\": {\"type\":\"NFD\"}", "NFD"},
    {"\"normalizer\": null",
     "\"normalizer\": {\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}",
     "Lowercase"},
    {"\"truncation\": null", "\"truncation\": {\"max_length\":5}", "truncation"},
    {"\"type\": \"BPE\"", "\"type\": \"WordPiece\"", "WordPiece"},
    {"\"dropout\": null", "\"dropout\": 0.1", "dropout"},
    {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix"},
    {"\"ignore_merges\": false", "\"ignore_merges\": 1", "ignore_merges"},
    {"\"ignore_merges\": false", "\"ignore_merges\": false, \"ignore_merges\": true", "twice"},
    {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "add_prefix_space"},
    {"\"Isolated\"", "\"Removed\"", "Removed"},
    {"\"Split\"", "\"Metaspace\"", "Metaspace"},
    {"\\\\s+(?!\\\\S)", "(?!\\\\S", "does not compile"},
    {"\\\\s+(?!\\\\S)", "\\\\w+", "\\w"},
    {"\\\\s+(?!\\\\S)", "[a&&b]", "&&"},
    {"\\\\s+(?!\\\\S)", "[a[b]c]", "class inside"},
    {"\"decoder\": {\"type\": \"ByteLevel\"", "\"decoder\": {\"type\": \"WordPiece\"", "decoder"},
    {"\"post_processor\": null", "\"post_processor\": {\"type\":\"BertProcessing\"}", "BertProc"},
    {"\"lstrip\": false", "\"lstrip\": true", "lstrip"},
    {"\"id\": 399", "\"id\": 398", "<|endoftext|>"},
    {"\"id\": 399", "\"id\": 1e300", "whole number"},
    {"\"content\": \"<|endoftext|>\"", "\"content\": \"\"", "empty"},
    {"\"a\": 97", "\"a\": 98", "both have id 98"},
    {"\"a\": 97", "\"a\": 97, \"a\": 500", "twice"},
    {"\"a\": 97", "\"a\": -1", "whole number"},
    {"\"a\": 97", "\"a\": 97.5", "whole number"},
    {"\"a\": 97", "\"a\": 16000000", "highest id"},
    {"\"a\": 97", "\"a\": \"97\"", "whole number"},
    {"\"a\": 97", "\"日\": 97", "0x61"},
    {"\"merges\": [", "\"merges\": [\"a \",", "merge 0"},
    {"\"merges\": [", "\"merges\": [[\"a\",\"b\",\"c\"],", "merge 0"},
    {"\"merges\": [", "\"merges\": [7,", "merge 0"},
    {"\"merges\": [", "\"merges\": [\"q q\",", "lacks"},
    {"\"merges\": [", "\"merges\": [\"i n\",\"i n\",", "stands twice"},
    {"\"merges\": [", "\"merges\": 5, \"x\": [", "not an array"},
    {"\"vocab\": {", "\"vocab\": 5, \"x\": {", "not an object"},
    {"\"version\": \"1.0\"", "\"version\": \"\\u0000\"", "NUL"},
    {"\"version\": \"1.0\"", "\"version\": \"1.0", "line"},
    {"\"model\"", "\"modal\"", "model"},
};

static void refusals(void **state) {
    (void)state;
    static const char *const foreign[] = {"",
                                          "{}",
                                          "[]",
                                          "null",
                                          "{\"model\":{}}",
                                          "\"x\"",
                                          "{\"model\":7}",
                                          "{}x",
                                          "<html>",
                                          "{\"model\":{\"vocab\":{},\"merges\":[]}}"};
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = sample_tokenizer(c, "cl100k"), *u = NULL;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char *json = replaced(tp_tokenizer_json(t, NULL), refused[i][0], refused[i][1]);
        tp_clear(c);
        if (tp_tokenizer_from_json(&u, c, json, strlen(json), "file.json") != TP_EFORMAT)
            fail_msg("case %zu (%s) was not refused", i, refused[i][1]);
        assert_null(u);
        if (strncmp(tp_error(c), "file.json: ", 11) || !strstr(tp_error(c), refused[i][2]))
            fail_msg("case %zu: message is '%s', wanted '%s'", i, tp_error(c), refused[i][2]);
        free(json);
    }
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        tp_clear(c);
        assert_int_equal(tp_tokenizer_from_json(&u, c, foreign[i], strlen(foreign[i]), "f"),
                         TP_EFORMAT);
        assert_true(strlen(tp_error(c)) > 10);
    }
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

static void damage(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = sample_tokenizer(c, "cl100k"), *u = NULL;
    size_t n;
    const char *json = tp_tokenizer_json(t, &n);
    for (size_t cut = 0; cut < n - 2; cut += 1 + n / 150) {
        char *part = malloc(cut ? cut : 1); /* exactly, so that an overread shows */
        memcpy(part, json, cut);
        tp_clear(c);
        assert_int_equal(tp_tokenizer_from_json(&u, c, part, cut, "cut"), TP_EFORMAT);
        free(part);
    }
    char *copy = malloc(n);
    for (uint64_t i = 0; i < 300; i++) { /* may load as something else; then it must work */
        memcpy(copy, json, n);
        copy[rnd(i, (uint32_t)n)] ^= (char)(1u << rnd(i + 5000, 8));
        tp_clear(c);
        tp_status st = tp_tokenizer_from_json(&u, c, copy, n, "flipped");
        assert_true((st == TP_OK) == (u != NULL));
        if (st)
            assert_true(strlen(tp_error(c)) > 10);
        else if (i % 8 == 0)
            assert_identity(c, u, sample, 300);
        tp_tokenizer_free(u);
    }
    free(copy);
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alphabet),    cmocka_unit_test(splits),
        cmocka_unit_test(cuts),        cmocka_unit_test(cut_for_threads),
        cmocka_unit_test(batches),     cmocka_unit_test(hopeless_pattern),
        cmocka_unit_test(identity),    cmocka_unit_test(streaming),
        cmocka_unit_test(specials),    cmocka_unit_test(added_tokens),
        cmocka_unit_test(merge_forms), cmocka_unit_test(files),
        cmocka_unit_test(refusals),    cmocka_unit_test(damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
