/* SHA-256 (FIPS 180-4), streamed: names the content of corpora and checkpoints. */
#ifndef TP_SHA256_H
#define TP_SHA256_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_sha256 {
    uint32_t state[8];
    uint64_t bytes;    /* hashed so far */
    uint8_t block[64]; /* bytes not yet hashed; bytes % 64 of them */
} tp_sha256;

void tp_sha256_init(tp_sha256 *h);
void tp_sha256_update(tp_sha256 *h, const void *data, size_t bytes);
void tp_sha256_final(tp_sha256 *h, uint8_t out[32]); /* h must be initialised again after this */
void tp_sha256_hex(const uint8_t digest[32], char out[65]);

#ifdef __cplusplus
}
#endif
#endif
