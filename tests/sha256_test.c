/* SHA-256 against published digests, and the portable path against the one this machine takes. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/sha256.h"

/* A second copy of the code, without the processor's instructions. */
#define TP_SHA_PORTABLE
#define tp_sha256_init portable_init
#define tp_sha256_update portable_update
#define tp_sha256_final portable_final
#define tp_sha256_hex portable_hex
void portable_init(tp_sha256 *h);
void portable_update(tp_sha256 *h, const void *data, size_t bytes);
void portable_final(tp_sha256 *h, uint8_t out[32]);
void portable_hex(const uint8_t digest[32], char out[65]);
#include "data/sha256.c"
#undef tp_sha256_init
#undef tp_sha256_update
#undef tp_sha256_final
#undef tp_sha256_hex

static void digest(const void *data, size_t n, size_t step, char hex[65]) {
    tp_sha256 h;
    uint8_t out[32];
    tp_sha256_init(&h);
    for (size_t i = 0; i < n; i += step)
        tp_sha256_update(&h, (const char *)data + i, n - i < step ? n - i : step);
    tp_sha256_final(&h, out);
    tp_sha256_hex(out, hex);
}

static void published_vectors(void **state) {
    (void)state;
    char hex[65];
    digest("", 0, 1, hex); /* NIST CAVP, SHA256ShortMsg, Len = 0 */
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    digest("abc", 3, 3, hex); /* FIPS 180-2, B.1 and B.2 */
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    digest(two, strlen(two), 56, hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000);
    assert_non_null(million);
    memset(million, 'a', 1000000);
    digest(million, 1000000, 997, hex); /* B.3 */
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

static void any_split_and_both_paths_agree(void **state) {
    (void)state;
    uint8_t data[400], out[32], want[32];
    tp_sha256 h;
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 167 + 13);
    for (size_t n = 0; n <= 200; n++) {
        portable_init(&h);
        portable_update(&h, data, n);
        portable_final(&h, want);
        for (size_t cut = 0; cut <= n; cut += 7) {
            tp_sha256_init(&h);
            tp_sha256_update(&h, data, cut);
            tp_sha256_update(&h, data + cut, n - cut);
            tp_sha256_final(&h, out);
            assert_memory_equal(out, want, 32);
        }
    }
    data[100] ^= 1;
    tp_sha256_init(&h);
    tp_sha256_update(&h, data, 200);
    tp_sha256_final(&h, out);
    assert_memory_not_equal(out, want, 32);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(published_vectors),
                                       cmocka_unit_test(any_split_and_both_paths_agree)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
