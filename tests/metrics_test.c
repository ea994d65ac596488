/* metrics.jsonl and TensorBoard events: numbers come back bit for bit, and a file cut anywhere and
 * gone on with equals one that was never cut. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "core/ctx.h"
#include "data/metrics.h"
#include "data/tfevents.h"

static char path[64];

static int setup(void **state) {
    tp_ctx *c = NULL;
    strcpy(path, "/tmp/tapir_metrics_XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0 || tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return 1;
    close(fd);
    *state = c;
    return 0;
}

static int teardown(void **state) {
    tp_ctx_free(*state);
    unlink(path);
    return 0;
}

static char *slurp(const char *from, size_t *n) {
    FILE *f = fopen(from, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(*n + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    bytes[*n] = 0;
    fclose(f);
    return bytes;
}

static void spit(const char *to, const void *bytes, size_t n) {
    FILE *f = fopen(to, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* ---- metrics.jsonl -------------------------------------------------------------------------- */
static void test_text(void **state) {
    tp_ctx *c = *state;
    tp_metrics *m;
    assert_int_equal(tp_metrics_open(&m, c, path, -1), TP_OK);
    tp_metric r[] = {tp_metric_f64("loss", 0.1),
                     tp_metric_f64("lr", 1e-8),
                     tp_metric_f64("third", 1.0 / 3),
                     tp_metric_i64("tokens", INT64_MAX),
                     tp_metric_f64("nan", NAN),
                     tp_metric_f64("inf", -INFINITY),
                     tp_metric_text("split", "a\"b\\\n\x01\xC3\xA9\xFF")};
    assert_int_equal(tp_metrics_write(m, 7, r, 7), TP_OK);
    assert_int_equal(tp_metrics_write(m, 8, NULL, 0), TP_OK);
    assert_int_equal(tp_metrics_sync(m), TP_OK);
    tp_metric twice[] = {tp_metric_f64("a", 1), tp_metric_f64("a", 2)};
    assert_int_equal(tp_metrics_write(m, 9, twice, 2), TP_EARG);
    tp_clear(c);
    tp_metric step = tp_metric_f64("step", 1);
    assert_int_equal(tp_metrics_write(m, 9, &step, 1), TP_EARG);
    tp_clear(c);
    assert_int_equal(tp_metrics_write(m, -1, NULL, 0), TP_EARG);
    tp_clear(c);
    tp_metrics_close(m);
    size_t n;
    char *text = slurp(path, &n);
    assert_string_equal(text, "{\"step\":7,\"loss\":0.1,\"lr\":1e-8,\"third\":0.3333333333333333"
                              ",\"tokens\":9223372036854775807,\"nan\":null,\"inf\":null,"
                              "\"split\":\"a\\\"b\\\\\\n\\u0001\xC3\xA9\xEF\xBF\xBD\"}\n"
                              "{\"step\":8}\n");
    free(text);
}

typedef struct seen {
    int64_t records, last_step, stop_after;
    double value[64];
    char text[64];
} seen;

static bool see(void *arg, int64_t step, const tp_metric *m, int n) {
    seen *s = arg;
    s->last_step = step;
    s->records++;
    for (int i = 0; i < n && i < 64; i++) {
        if (m[i].type == TP_METRIC_TEXT)
            snprintf(s->text, sizeof s->text, "%s", m[i].text);
        else
            s->value[i] = m[i].f64;
    }
    return !s->stop_after || s->records < s->stop_after;
}

static void test_bits_come_back(void **state) {
    tp_ctx *c = *state;
    for (uint64_t trial = 0; trial < 50; trial++) {
        char keys[32][16];
        tp_metric r[33];
        for (int i = 0; i < 32; i++) {
            uint32_t w[4];
            double v;
            tp_philox(w, 5, TP_RNG_TEST, trial, (uint64_t)i);
            memcpy(&v, w, sizeof v);
            snprintf(keys[i], sizeof keys[i], "k%d", i);
            r[i] = tp_metric_f64(keys[i], isfinite(v) ? v : 0.5);
        }
        r[32] = tp_metric_text("t", "tab\there");
        tp_metrics *m;
        seen s = {0};
        int64_t bad;
        assert_int_equal(tp_metrics_open(&m, c, path, -1), TP_OK);
        assert_int_equal(tp_metrics_write(m, 3, r, 33), TP_OK);
        tp_metrics_close(m);
        assert_int_equal(tp_metrics_read(c, path, see, &s, &bad), TP_OK);
        assert_int_equal(s.records, 1);
        assert_int_equal(bad, 0);
        for (int i = 0; i < 32; i++) assert_memory_equal(&s.value[i], &r[i].f64, sizeof(double));
        assert_string_equal(s.text, "tab\there");
    }
}

/* Steps first..last: a training record each, an evaluation every fourth. */
static void write_steps(tp_metrics *m, int64_t first, int64_t last) {
    for (int64_t step = first; step <= last; step++) {
        tp_metric train[] = {tp_metric_f64("loss", 5.0 / (double)step),
                             tp_metric_text("split", "train")};
        tp_metric val[] = {tp_metric_f64("loss", 6.0 / (double)step)};
        assert_int_equal(tp_metrics_write(m, step, train, 2), TP_OK);
        if (step % 4 == 0) assert_int_equal(tp_metrics_write(m, step, val, 1), TP_OK);
    }
}

/* Killed at any byte after checkpoint 8, resumed there: the file is that of an unbroken run. */
static void test_resume(void **state) {
    tp_ctx *c = *state;
    tp_metrics *m;
    size_t whole_n, n;
    assert_int_equal(tp_metrics_open(&m, c, path, -1), TP_OK);
    write_steps(m, 1, 12);
    tp_metrics_close(m);
    char *whole = slurp(path, &whole_n);
    const char *nine = strstr(whole, "{\"step\":9");
    assert_non_null(nine);
    for (size_t cut = (size_t)(nine - whole); cut <= whole_n; cut++) {
        spit(path, whole, cut);
        assert_int_equal(tp_metrics_open(&m, c, path, 8), TP_OK);
        write_steps(m, 9, 12);
        tp_metrics_close(m);
        char *now = slurp(path, &n);
        assert_string_equal(now, whole);
        free(now);
    }
    /* a power cut may leave anything behind the last record that was synced */
    static const char *const tails[] = {
        "{\"step\":9,\"lo",     "\xff\xfe\n",  "{}\n{\"step\":-1}\n",   "{\"step\":9.5}\n",
        "{\"step\":\"9\"}\n\n", "[1]\nnull\n", "{\"step\":9}garbage\n", "\n\n"};
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        fprintf(f, "%.*s%s", (int)(nine - whole), whole, tails[i]);
        fclose(f);
        assert_int_equal(tp_metrics_open(&m, c, path, 8), TP_OK);
        write_steps(m, 9, 12);
        tp_metrics_close(m);
        char *now = slurp(path, &n);
        assert_string_equal(now, whole);
        free(now);
    }
    /* the cut depends on the step: a mutant that ignores it would pass all of the above */
    assert_int_equal(tp_metrics_open(&m, c, path, 7), TP_OK);
    tp_metrics_close(m);
    char *now = slurp(path, &n);
    assert_null(strstr(now, "{\"step\":8"));
    assert_non_null(strstr(now, "{\"step\":7"));
    free(now);
    free(whole);
}

static void test_garbage(void **state) {
    tp_ctx *c = *state;
    tp_metrics *m;
    static const char *const foreign[] = {"hello\n",
                                          "hello",
                                          "{\"a\":1}",
                                          "\x7f"
                                          "ELF\n\n",
                                          "{\"a\":1}\n{\"b\":2}\n",
                                          "\n"};
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        size_t n;
        spit(path, foreign[i], strlen(foreign[i]));
        assert_int_equal(tp_metrics_open(&m, c, path, -1), TP_EFORMAT);
        assert_non_null(strstr(tp_error(c), "holds no metrics"));
        tp_clear(c);
        char *now = slurp(path, &n); /* untouched */
        assert_string_equal(now, foreign[i]);
        free(now);
    }
    spit(path, "{\"ste", 5); /* our own first record, torn */
    assert_int_equal(tp_metrics_open(&m, c, path, 5), TP_OK);
    tp_metrics_close(m);

    /* a line longer than the reader's buffer, between good ones */
    size_t n = 3000000;
    char *big = malloc(n);
    assert_non_null(big);
    memset(big, 'x', n);
    memcpy(big, "{\"step\":1,\"loss\":2}\n", 20);
    static const char end[] = "\n{\"step\":2,\"loss\":3,\"x\":[1]}\n{\"step\":3}\nto";
    memcpy(big + n - (sizeof end - 1), end, sizeof end - 1);
    spit(path, big, n);
    free(big);
    seen s = {0};
    int64_t bad;
    assert_int_equal(tp_metrics_read(c, path, see, &s, &bad), TP_OK);
    assert_int_equal(s.records, 3);
    assert_int_equal(bad, 2);
    s = (seen){.stop_after = 2};
    assert_int_equal(tp_metrics_read(c, path, see, &s, NULL), TP_OK);
    assert_int_equal(s.last_step, 2);
    assert_int_equal(tp_metrics_open(&m, c, path, 2), TP_OK);
    write_steps(m, 3, 3);
    tp_metrics_close(m);
    s = (seen){0};
    assert_int_equal(tp_metrics_read(c, path, see, &s, &bad), TP_OK);
    assert_int_equal(s.records, 3);
    assert_int_equal(bad, 1); /* the long line stands before a good one, so it stays */

    assert_int_equal(tp_metrics_open(&m, c, "/nowhere/m.jsonl", -1), TP_EIO);
    tp_clear(c);
    assert_int_equal(tp_metrics_open(&m, c, "/tmp", -1), TP_EIO);
    tp_clear(c);
    assert_int_equal(tp_metrics_read(c, "/tmp", see, &s, &bad), TP_EIO);
}

static void test_full_disk(void **state) {
    tp_ctx *c = *state;
    tp_metrics *m;
    int status;
    assert_int_equal(tp_metrics_open(&m, c, path, -1), TP_OK);
    write_steps(m, 1, 3);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){.rlim_cur = 160, .rlim_max = 160});
        tp_metric r = tp_metric_text("text", "0123456789012345678901234567890123456789012345");
        tp_status st = TP_OK;
        for (int i = 4; i < 9 && !st; i++) st = tp_metrics_write(m, i, &r, 1);
        _exit(st == TP_EIO ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    tp_metrics_close(m);
    seen s = {0};
    int64_t bad;
    assert_int_equal(tp_metrics_read(c, path, see, &s, &bad), TP_OK);
    assert_int_equal(bad, 0);
    assert_true(s.records >= 3);
}

static void test_no_memory(void **state) {
    tp_ctx *c = *state;
    int failures = 0;
    for (long at = 1; at < 12; at++) {
        tp_metrics *m = NULL;
        tp_tfevents *e = NULL;
        tp_metric r = tp_metric_f64("a", 1);
        c->fail_alloc_at = at;
        tp_status st = tp_metrics_open(&m, c, path, -1);
        if (!st) st = tp_metrics_write(m, 1, &r, 1);
        tp_metrics_close(m);
        if (!st) st = tp_tfevents_open(&e, c, "/tmp", 1, -1);
        if (!st) st = tp_tfevents_write(e, 1, 1, &r, 1);
        if (e) unlink(tp_tfevents_path(e));
        tp_tfevents_close(e);
        assert_true(st == TP_OK || st == TP_ENOMEM);
        failures += st != TP_OK;
        tp_clear(c);
    }
    assert_true(failures > 3 && failures < 11);
}

/* ---- TensorBoard ---------------------------------------------------------------------------- */
/* An oracle of its own: CRC bit by bit, protobuf by hand. */
static uint32_t crc_by_bit(const uint8_t *p, size_t n) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int b = 0; b < 8; b++) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
    }
    return ~crc;
}

static uint64_t little(const uint8_t *p, int n) {
    uint64_t v = 0;
    for (int i = n; i--;) v = v << 8 | p[i];
    return v;
}

static uint32_t mask(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

/* Takes the record at *at of the file; its event. */
static const uint8_t *take_record(const uint8_t *file, size_t n, size_t *at, size_t *len) {
    assert_true(*at + 16 <= n);
    const uint8_t *p = file + *at;
    *len = (size_t)little(p, 8);
    assert_true(*len <= n - *at - 16);
    assert_int_equal(little(p + 8, 4), mask(crc_by_bit(p, 8)));
    assert_int_equal(little(p + 12 + *len, 4), mask(crc_by_bit(p + 12, *len)));
    *at += 16 + *len;
    return p + 12;
}

static void test_crc(void **state) {
    (void)state;
    uint8_t bytes[32] = {0};
    assert_int_equal(tp_crc32c("123456789", 9), 0xE3069283u);
    assert_int_equal(tp_crc32c(bytes, 32), 0x8A9136AAu); /* RFC 3720, B.4: 32 bytes of zeros */
    memset(bytes, 0xFF, 32);
    assert_int_equal(tp_crc32c(bytes, 32), 0x62A8AB43u); /* and of ones */
    assert_int_equal(tp_crc32c("", 0), 0);
}

static void test_events(void **state) {
    tp_ctx *c = *state;
    char dir[] = "/tmp/tapir_events_XXXXXX";
    assert_non_null(mkdtemp(dir));
    tp_tfevents *e, *again;
    tp_metric r[] = {tp_metric_f64("a", 1.5), tp_metric_text("skipped", "x"),
                     tp_metric_i64("b", 0)};
    assert_int_equal(tp_tfevents_open(&e, c, dir, 1000.5, 41), TP_OK);
    assert_int_equal(tp_tfevents_open(&again, c, dir, 1000.5, -1), TP_OK); /* a name of its own */
    assert_true(strcmp(tp_tfevents_path(e), tp_tfevents_path(again)) < 0);
    assert_non_null(strstr(tp_tfevents_path(e), "/events.out.tfevents.0000001000."));
    assert_int_equal(tp_tfevents_write(e, 1001.5, 300, r, 3), TP_OK);
    assert_int_equal(tp_tfevents_write(e, 1001.5, 300, r + 1, 1), TP_OK); /* nothing to say */
    size_t n, at = 0, len;
    uint8_t *file = (uint8_t *)slurp(tp_tfevents_path(e), &n);
    static const uint8_t first[] = "\x09\x00\x00\x00\x00\x00\x44\x8f\x40" /* 1: double 1000.5 */
                                   "\x1a\x0d"
                                   "brain.Event:2"; /* 3: string */
    static const uint8_t second[] = "\x09\x00\x00\x00\x00\x00\x44\x8f\x40"
                                    "\x10\x2a"          /* 2: varint 42 */
                                    "\x3a\x02\x08\x01"; /* 7: {1: START} */
    static const uint8_t third[] = "\x09\x00\x00\x00\x00\x00\x4c\x8f\x40"
                                   "\x10\xac\x02" /* 2: varint 300 */
                                   "\x2a\x14"     /* 5: summary of two values */
                                   "\x0a\x08\x0a\x01"
                                   "a"
                                   "\x15\x00\x00\xc0\x3f"
                                   "\x0a\x08\x0a\x01"
                                   "b"
                                   "\x15\x00\x00\x00\x00";
    const uint8_t *event = take_record(file, n, &at, &len);
    assert_int_equal(len, sizeof first - 1);
    assert_memory_equal(event, first, len);
    event = take_record(file, n, &at, &len);
    assert_int_equal(len, sizeof second - 1);
    assert_memory_equal(event, second, len);
    event = take_record(file, n, &at, &len);
    assert_int_equal(len, sizeof third - 1);
    assert_memory_equal(event, third, len);
    assert_int_equal(at, n);
    free(file);
    static const uint8_t all[] = "\x09\x00\x00\x00\x00\x00\x44\x8f\x40"
                                 "\x3a\x02\x08\x01"; /* from step 0 on, a 0 being left out */
    file = (uint8_t *)slurp(tp_tfevents_path(again), &n);
    at = 0;
    take_record(file, n, &at, &len);
    event = take_record(file, n, &at, &len);
    assert_int_equal(len, sizeof all - 1);
    assert_memory_equal(event, all, len);
    assert_int_equal(at, n);
    free(file);
    unlink(tp_tfevents_path(e));
    unlink(tp_tfevents_path(again));
    tp_tfevents_close(e);
    tp_tfevents_close(again);
    rmdir(dir);
    assert_int_equal(tp_tfevents_open(&e, c, "/nowhere/at/all", 1, -1), TP_EIO);
    tp_clear(c);
    assert_int_equal(tp_tfevents_open(&e, c, "/tmp", NAN, -1), TP_EARG);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_text),      TEST(test_bits_come_back), TEST(test_resume), TEST(test_garbage),
        TEST(test_full_disk), TEST(test_no_memory),      TEST(test_crc),    TEST(test_events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
