/* Tests of tokenizers that normalise text (NFC): the form itself, where its text is cut, the two
 * kinds of added tokens, and ids that Hugging Face's library gives. */
#include "tokenizer_fixture.h"
#include <utf8proc.h>

/* ---- the form ------------------------------------------------------------------------------- */
static tp_nfc *nfc; /* made once for all tests */

static void assert_form(tp_ctx *c, const char *text, size_t n, const char *want, size_t n_want) {
    uint8_t *got = NULL, *exact = malloc(n ? n : 1); /* exactly, so that an overread shows */
    size_t n_got = 99;
    memcpy(exact, text, n);
    assert_int_equal(tp_nfc_form(&got, &n_got, c, nfc, exact, n), TP_OK);
    bool same = n == n_want && !memcmp(text, want, n);
    if (n_got != n_want || memcmp(got ? got : exact, want, n_want) || same != !got)
        fail_msg("'%s' became '%.*s', wanted '%s'", text, (int)n_got,
                 (const char *)(got ? got : exact), want);
    tp_free(got);
    free(exact);
}

#define FORM(text, want) assert_form(c, text, sizeof text - 1, want, sizeof want - 1)

/* From UAX #15 and chapter 3 of the standard; each also between other characters. */
static const char *const forms[][2] = {
    {"e\u0301", "é"},
    {"\u212B", "Å"}, /* singletons */
    {"\u2126", "Ω"},
    {"\u0374", "\u02B9"},
    {"\U0002F800", "\u4E3D"},
    {"\u0344", "\u0308\u0301"},
    {"\u0958", "\u0915\u093C"}, /* excluded from composition */
    {"\u0915\u093C", "\u0915\u093C"},
    {"\uFB1D", "\u05D9\u05B4"},
    {"\u2ADC", "\u2ADD\u0338"},
    {"\U0001D15E", "\U0001D157\U0001D165"},
    {"\u1100\u1161", "\uAC00"}, /* Hangul */
    {"\u1100\u1161\u11A8", "\uAC01"},
    {"\uAC00\u11C2", "\uAC1B"},
    {"\uAC00\u11C3", "\uAC00\u11C3"},
    {"\uAC00\u11A7", "\uAC00\u11A7"},
    {"\u1100\u1161\u11A7\u11A8", "\uAC00\u11A7\u11A8"},
    {"\uAC01\u11A8", "\uAC01\u11A8"},
    {"\u1100\u0301\u1161", "\u1100\u0301\u1161"},
    {"q\u0307\u0323", "q\u0323\u0307"}, /* marks in order of their class */
    {"\u1E0B\u0323", "\u1E0D\u0307"},
    {"é\u0327", "\u0229\u0301"},
    {"e\u0301\u0300\u0301", "é\u0300\u0301"}, /* equal classes stay as they stand */
    {"a\u0345\u0328\u0301", "\u0105\u0301\u0345"},
    {"a\u0316\u0315\u0300\u05AE\u0300b", "\u00E0\u0316\u05AE\u0300\u0315b"},
    {"\u09C7\u09BE", "\u09CB"}, /* a second half that is no mark by class */
    {"\u09C7\u0334\u09BE", "\u09C7\u0334\u09BE"},
    {"\u0301e", "\u0301e"}, /* nothing to stand on */
    {"か\u3099", "が"},
    {"日\u0301\u0327", "日\u0327\u0301"},
    {"\u03B1\u0345\u0301", "\u1FB4"},
};

static void form(void **state) {
    (void)state;
    static const char *const around[][2] = {{"", ""},     {"a ", "."},      {"\n", "日本"},
                                            {"本", "가"}, {"\xFF", "\x80"}, {"ш", "\xF0\x9F"}};
    tp_ctx *c = new_ctx(1, 0);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        for (size_t k = 0; k < sizeof around / sizeof *around; k++) {
            char text[128], want[128];
            int n = snprintf(text, sizeof text, "%s%s%s", around[k][0], forms[i][0], around[k][1]);
            int m = snprintf(want, sizeof want, "%s%s%s", around[k][0], forms[i][1], around[k][1]);
            assert_form(c, text, (size_t)n, want, (size_t)m);
        }
    FORM("", "");
    FORM("plain\0text", "plain\0text");
    FORM("e\xCC\x81\0e\xCC\x81", "\xC3\xA9\0\xC3\xA9");
    tp_ctx_free(c);
}

/* What is not UTF-8 stays, and marks do not reach over it. */
static void invalid(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    FORM("e\xFF\xCC\x81", "e\xFF\xCC\x81");
    FORM("e\xCC\x81\xFFo\xCC\x88", "\xC3\xA9\xFF\xC3\xB6");
    FORM("e\xCC", "e\xCC");
    FORM("e\xCC\x81\x81", "\xC3\xA9\x81");
    FORM("\x80\x81\xCC\x81", "\x80\x81\xCC\x81");
    FORM("\xE2\xCC\x81", "\xE2\xCC\x81");
    FORM("a\xED\xA0\x80\xCC\x8A", "a\xED\xA0\x80\xCC\x8A"); /* a surrogate */
    FORM("\xC0\xAF\xE2\x84\xAB\xE2\x84", "\xC0\xAF\xC3\x85\xE2\x84");
    FORM("\xF4\x90\x80\x80\xE2\x84\xA6", "\xF4\x90\x80\x80\xCE\xA9");
    FORM("o\xCC\x88\xCC", "\xC3\xB6\xCC"); /* after what changed, too */
    tp_ctx_free(c);
}

/* A text of up to `most` characters: letters, marks, jamo, ideographs, wholes and their parts. */
static size_t marked_text(char *out, uint64_t seed, uint32_t most) {
    static const uint32_t from[][2] = {
        {' ', 95},      {'a', 26},        {0xC0, 0x140}, {0x300, 0x70}, {0x300, 0x70},
        {0x344, 3},     {0x390, 0x60},    {0x400, 0x60}, {0x5B0, 0x20}, {0x915, 0x50},
        {0x9C7, 2},     {0x9BE, 1},       {0xC46, 0x10}, {0xF71, 0x10}, {0x1100, 0x13},
        {0x1161, 0x15}, {0x11A8, 0x1C},   {0x1E00, 256}, {0x1F00, 256}, {0x212A, 2},
        {0x304B, 0x50}, {0x4E00, 0x5200}, {0xAC00, 2},   {0xF900, 256}, {0xFB1D, 0x30},
        {0x1D157, 14},  {0x2F800, 500}};
    size_t n = 0;
    uint64_t at = seed << 32;
    uint32_t kinds = 1 + rnd(at++, 6), len = rnd(at++, most);
    for (uint32_t i = 0; i < len; i++) {
        const uint32_t *f =
            from[(rnd(seed << 32 | rnd(at++, kinds), 9999) + seed) % (sizeof from / sizeof *from)];
        n += tp_utf8_put(out + n, f[0] + rnd(at++, f[1]));
    }
    return n;
}

/* Taking a text apart into runs changes nothing: utf8proc does the whole of it at once. */
static void at_once(void **state) {
    (void)state;
    char text[1000];
    tp_ctx *c = new_ctx(1, 0);
    int changed = 0;
    for (uint64_t seed = 0; seed < 20000; seed++) {
        size_t n = marked_text(text, seed, 40);
        text[n] = 0;
        char *want = (char *)utf8proc_NFC((uint8_t *)text);
        changed += strcmp(text, want) != 0;
        assert_form(c, text, n, want, strlen(want));
        free(want);
    }
    assert_in_range(changed, 5000, 19000);
    tp_ctx_free(c);
}

/* Half a million marks in the worst order take no time. */
static void many_marks(void **state) {
    (void)state;
    enum { N = 250000 };
    static char text[4 * N + 1], want[4 * N + 2];
    tp_ctx *c = new_ctx(1, 0);
    char *to = text, *sorted = want;
    *to++ = 'a';
    for (int i = 0; i < N; i++, to += 4) memcpy(to, "\u0301\u0316", 4);
    memcpy(sorted, "á", 2);
    for (sorted += 2; sorted < want + 2 + 2 * N; sorted += 2) memcpy(sorted, "\u0316", 2);
    for (; sorted < want + 4 * N; sorted += 2) memcpy(sorted, "\u0301", 2);
    assert_form(c, text, sizeof text, want, (size_t)(sorted - want));
    tp_ctx_free(c);
}

/* ---- tokenizers ----------------------------------------------------------------------------- */
#define NFC "\"normalizer\": {\"type\": \"NFC\"}"

/* t's file with one edit. */
static tp_tokenizer *edited(tp_ctx *c, const tp_tokenizer *t, const char *from, const char *to) {
    tp_tokenizer *u = NULL;
    char *json = replaced(tp_tokenizer_json(t, NULL), from, to);
    if (tp_tokenizer_from_json(&u, c, json, strlen(json), "u")) fail_msg("%s", tp_error(c));
    free(json);
    return u;
}

#define ADD(id, text, is_normalized, is_special)                                                   \
    "{\"id\": " #id ", \"content\": \"" text "\", \"single_word\": false, \"lstrip\": false, "     \
    "\"rstrip\": false, \"normalized\": " is_normalized ", \"special\": " is_special "},"

/* Bytes, and merges up to "café"; added tokens of all kinds. */
static tp_tokenizer *small_tokenizer(tp_ctx *c) {
    static const char *const edits[][2] = {
        {"\"normalizer\": null", NFC},
        {"\"use_regex\": false", "\"use_regex\": true"},
        {"\"vocab\": {", "\"vocab\": {\"Ã©\":257,\"fÃ©\":258,\"afÃ©\":259,\"cafÃ©\":260,"},
        {"\"merges\": [", "\"merges\": [\"Ã ©\",\"f Ã©\",\"a fÃ©\",\"c afÃ©\""},
        {"\"added_tokens\": [",
         "\"added_tokens\": [" ADD(261, "<|a|>", "false", "false")
             ADD(262, "e\u0301!", "false", "false") ADD(263, "か\u3099?", "true", "false")
                 ADD(264, "\u0301:", "true", "false") ADD(265, "日\u0301", "true", "true")
                     ADD(266, "\u212B本", "false", "true")}};
    tp_tokenizer *t = NULL;
    assert_int_equal(tp_tokenizer_new_bytes(&t, c, NULL, 0), TP_OK);
    char *json = replaced(tp_tokenizer_json(t, NULL), "", "");
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        char *next = replaced(json, edits[i][0], edits[i][1]);
        free(json);
        json = next;
    }
    tp_tokenizer_free(t);
    if (tp_tokenizer_from_json(&t, c, json, strlen(json), "small")) fail_msg("%s", tp_error(c));
    free(json);
    return t;
}

/* The ids are those of Hugging Face's tokenizers 0.23.3, for the same file. */
static void as_the_library(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int32_t ids[16]; /* up to a 0 */
    } known[] = {
        {"cafe\u0301", {260}},
        {"caf\u00E9 cafe\u0301s", {260, 32, 260, 115}},
        {"e\u0301!", {262}},
        {"\u00E9!", {257, 33}},
        {"cafe\u0301!", {99, 97, 102, 262}},
        {"cafe\u0301<|a|>\u0301", {260, 261, 204, 129}},
        {"<|a|>\u0301: a\u0301:", {261, 264, 32, 195, 161, 58}},
        {"x\u0301:", {120, 264}},
        {"\u0301:", {264}},
        {"\u304C?", {263}},
        {"\u304B\u3099?", {263}},
        {"\u304B<|a|>\u3099?", {227, 129, 139, 261, 227, 130, 153, 63}},
        {"\u65E5\u0301\u0327", {230, 151, 165, 204, 167, 204, 129}},
        {"\u65E5\u0327\u0301", {230, 151, 165, 204, 167, 204, 129}},
        {"\u65E5\u0301", {265}},
        {"\u212B\u672C", {266}},
        {"\u00C5\u672C", {195, 133, 230, 156, 172}},
        {"A\u030A\u672C", {195, 133, 230, 156, 172}},
        {"\u212B", {195, 133}},
        {"\u1100\u1161\u11A8", {234, 176, 129}},
        {"q\u0307\u0323", {113, 204, 163, 204, 135}},
        {"e\u0301!\u0327!", {262, 204, 167, 33}},
        {"<|a|>e\u0327\u0301!", {261, 200, 169, 204, 129, 33}},
        {"cafe\u0327\u0301", {99, 97, 102, 200, 169, 204, 129}},
    };
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = small_tokenizer(c);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        tp_ids ids = encode(c, t, known[i].text, strlen(known[i].text), true);
        int64_t n = 0;
        while (known[i].ids[n]) n++;
        if (ids.n != n || memcmp(ids.data, known[i].ids, (size_t)n * sizeof *ids.data))
            fail_msg("'%s' has other ids", known[i].text);
        tp_ids_clear(&ids);
    }
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

/* Specials that are plain text, a file that says nothing of "normalized", what tokens decode to. */
static void added_tokens(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = small_tokenizer(c);
    static const char text[] = "\u212B本日\u0301\u304B\u3099?";
    tp_ids ids = encode(c, t, text, sizeof text - 1, false);
    char *back;
    size_t n;
    assert_int_equal(ids.n, 2 + 3 + 3 + 2 + 1);
    assert_int_equal(ids.data[10], 263);
    assert_int_equal(tp_decode(&back, &n, c, t, ids.data, ids.n), TP_OK);
    assert_string_equal(back, "\u00C5本日\u0301\u304C?");
    tp_free(back);
    tp_ids_clear(&ids);
    /* missing: as the library makes one, normalized unless special */
    tp_tokenizer *u =
        edited(c, t, "\"normalized\": true, \"special\": false", "\"special\": false");
    ids = encode(c, u, "\u304C?", 4, false);
    assert_int_equal(ids.n, 1);
    tp_ids_clear(&ids);
    tp_tokenizer_free(u);
    u = edited(c, t, "\"normalized\": false, \"special\": true", "\"special\": true");
    ids = encode(c, u, "\u00C5本", 5, true);
    assert_int_equal(ids.n, 5);
    tp_ids_clear(&ids);
    tp_tokenizer_free(u);
    /* two tokens that text could not tell apart */
    char *json = replaced(tp_tokenizer_json(t, NULL), "e\u0301!", "\u304C?");
    assert_int_equal(tp_tokenizer_from_json(&u, c, json, strlen(json), "u"), TP_EFORMAT);
    assert_non_null(strstr(tp_error(c), "the same token"));
    free(json);
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

/* Encoding x is encoding x's normal form with the same file without a normalizer. */
static void assert_as_form(tp_ctx *c, const tp_tokenizer *t, const tp_tokenizer *plain,
                           const void *text, size_t n) {
    uint8_t *form = NULL;
    size_t n_form;
    assert_int_equal(tp_nfc_form(&form, &n_form, c, nfc, text, n), TP_OK);
    const void *normal = form ? form : text;
    tp_ids x = encode(c, t, text, n, false), y = encode(c, plain, normal, n_form, false);
    assert_same_ids(&x, &y);
    assert_identity(c, t, normal, n_form);
    tp_free(form);
}

static void any_text(void **state) {
    (void)state;
    static char text[10 << 20];
    tp_ctx *c = new_ctx(1, 0), *threads = new_ctx(2, 0);
    tp_tokenizer *t[3] = {sample_tokenizer(c, NULL), sample_tokenizer(c, "cl100k")};
    assert_int_equal(tp_tokenizer_new_bytes(&t[2], c, NULL, 0), TP_OK);
    for (int k = 0; k < 3; k++) {
        tp_tokenizer *u = edited(c, t[k], "\"normalizer\": null", NFC);
        for (uint64_t seed = 0; seed < 200; seed++)
            assert_as_form(c, u, t[k], text, marked_text(text, seed, 60));
        /* cut anywhere, also inside of characters */
        size_t n = marked_text(text, 5, 60);
        for (size_t i = 0; i <= n; i++) {
            assert_as_form(c, u, t[k], text, i);
            assert_as_form(c, u, t[k], text + i, n - i);
        }
        /* long enough for the threads to share, and for several rounds of them */
        for (n = 0; n + 20000 < sizeof text / (k == 1 ? 1 : 16);) {
            n += marked_text(text + n, n, 3000);
            n += sample_text(text + n, 4000, n);
        }
        assert_as_form(threads, u, t[k], text, n);
        tp_tokenizer_free(u);
        tp_tokenizer_free(t[k]);
    }
    tp_ctx_free(threads);
    tp_ctx_free(c);
}

static void batches(void **state) {
    (void)state;
    enum { N = 20000 }; /* more than two rounds */
    static const char *const texts[] = {
        "e\u0301", "", "cafe\u0301<|a|>\u0301:", "plain", "<|a|>", "\u0301:"};
    static const int32_t want[][4] = {{257}, {-1}, {260, 261, 264}, {'p'}, {261}, {264}};
    static tp_text list[N];
    static int64_t ends[N];
    tp_ctx *c = new_ctx(2, 0);
    tp_tokenizer *t = small_tokenizer(c);
    tp_encoder *e = NULL;
    tp_ids ids = {0};
    for (int i = 0; i < N; i++) list[i] = (tp_text){texts[i % 6], (int64_t)strlen(texts[i % 6])};
    assert_int_equal(tp_encoder_new(&e, c, t, NULL), TP_OK);
    assert_int_equal(tp_encode_batch(&ids, ends, e, list, N), TP_OK);
    for (int64_t i = 0, from = 0; i < N; from = ends[i++]) {
        static const int n[] = {1, 0, 3, 5, 1, 1};
        assert_int_equal(ends[i] - from, n[i % 6]);
        for (int k = 0; k < n[i % 6] && i % 6 != 3; k++)
            assert_int_equal(ids.data[from + k], want[i % 6][k]);
    }
    tp_ids_clear(&ids);
    tp_encoder_free(e);
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

static void files(void **state) {
    (void)state;
#define SEQUENCE(list) "\"normalizer\": {\"type\":\"Sequence\",\"normalizers\":[" list "]}"
    static const struct {
        const char *normalizer, *refused; /* the word that the message says; NULL: it is taken */
        int64_t ids;                      /* of a letter and a mark */
    } known[] = {
        {SEQUENCE(""), NULL, 3},
        {SEQUENCE("{\"type\":\"NFC\"}"), NULL, 1},
        {SEQUENCE("{\"type\":\"NFC\"},{\"type\":\"NFC\"}"), NULL, 1},
        {SEQUENCE("{\"type\":\"NFC\"},{\"type\":\"Lowercase\"}"), "Lowercase", 0},
        {SEQUENCE("{\"type\":\"Sequence\",\"normalizers\":[]}"), "Sequence", 0},
        {"\"normalizer\": {\"type\":\"NFD\"}", "NFD", 0},
        {"\"normalizer\": {\"type\":\"NFKC\"}", "NFKC", 0},
        {"\"normalizer\": {\"type\":\"Sequence\"}", "Sequence", 0},
        {"\"normalizer\": {\"normalizers\":[]}", "normalizer", 0},
        {"\"normalizer\": \"NFC\"", "normalizer", 0},
    };
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *t = small_tokenizer(c), *u = NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        char *json = replaced(tp_tokenizer_json(t, NULL), NFC, known[i].normalizer);
        tp_clear(c);
        assert_int_equal(tp_tokenizer_from_json(&u, c, json, strlen(json), "u"),
                         known[i].refused ? TP_EFORMAT : TP_OK);
        free(json);
        if (known[i].refused) {
            assert_non_null(strstr(tp_error(c), known[i].refused));
            continue;
        }
        tp_ids ids = encode(c, u, "e\u0301", 3, false);
        assert_int_equal(ids.n, known[i].ids);
        tp_ids_clear(&ids);
        tp_tokenizer_free(u);
    }
    tp_tokenizer_free(t);
    tp_ctx_free(c);
}

/* Each allocation fails once: a status, a sentence, no leak (under ASan), nothing appended. */
static void out_of_memory(void **state) {
    (void)state;
    static const char text[] = "e\u0301 <|a|>\u0301\u0316\u304B\u3099? e\u0301!\u212B.";
    const tp_text texts[] = {{text, sizeof text - 1}, {"o\u0308", 3}, {text, sizeof text - 1}};
    tp_ctx *c = new_ctx(1, 0);
    tp_tokenizer *small = small_tokenizer(c);
    size_t n;
    const char *json = tp_tokenizer_json(small, &n);
    int while_encoding = 0;
    for (long at = 1;; at++) {
        tp_ctx *f = new_ctx(1, at);
        tp_tokenizer *t = NULL;
        tp_encoder *e = NULL;
        tp_ids ids = {0};
        int64_t ends[3];
        tp_status st = tp_tokenizer_from_json(&t, f, json, n, "f");
        if (!st) st = tp_encoder_new(&e, f, t, NULL);
        if (!st) {
            st = tp_encode_batch(&ids, ends, e, texts, 3);
            while_encoding += st != TP_OK;
            assert_true(!st || !ids.n);
        }
        if (st) assert_int_equal(st, TP_ENOMEM);
        if (st) assert_true(strlen(tp_error(f)) > 5);
        tp_ids_clear(&ids);
        tp_encoder_free(e);
        tp_tokenizer_free(t);
        tp_ctx_free(f);
        if (!st) break;
    }
    assert_true(while_encoding >= 12); /* two or three for a stretch: code points, marks, text */
    tp_tokenizer_free(small);
    tp_ctx_free(c);
}

static int setup(void **state) {
    tp_ctx *c = new_ctx(1, 0);
    *state = c;
    return tp_nfc_new(&nfc, c) != TP_OK;
}

static int teardown(void **state) {
    tp_free(nfc);
    tp_ctx_free(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(form),           cmocka_unit_test(invalid),
        cmocka_unit_test(at_once),        cmocka_unit_test(many_marks),
        cmocka_unit_test(as_the_library), cmocka_unit_test(added_tokens),
        cmocka_unit_test(any_text),       cmocka_unit_test(batches),
        cmocka_unit_test(files),          cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
