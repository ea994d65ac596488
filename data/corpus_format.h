/* What the corpus reader and writer agree on beyond data/corpus.h. */
#ifndef TP_CORPUS_FORMAT_H
#define TP_CORPUS_FORMAT_H
#include "data/corpus.h"
#include "data/sha256.h"

#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the corpus hash is defined over little-endian values; swap them first on this machine"
#endif

#define TP_CORPUS_FORMAT "tapir-corpus"
enum {
    TP_CORPUS_VERSION = 1,
    /* Tokens per block, in the file and in the reader's cache. A training row is some thousand
     * tokens at a random place and costs a whole block with its checksum: 2^16 keeps that near
     * 0.1 ms, and 10^10 tokens still have only 150,000 blocks to index. */
    TP_CORPUS_BLOCK = 1 << 16,
    TP_CORPUS_DOC_BLOCK = 1 << 13, /* documents per block: small corpora stay small */
    TP_CORPUS_MAX_VOCAB = 1 << 24,
    TP_CORPUS_MAX_ID_BYTES = 1 << 20, /* so that no sum over a corpus overflows */
    TP_CORPUS_MAX_TEXT = 1 << 29      /* bytes of tokenizer JSON or source names */
};

static inline int tp_corpus_token_size(int32_t vocab) { return vocab <= 65536 ? 2 : 4; }

/* The checksum of a block. Each step is a bijection of h for a given word and of the word for a
 * given h, so a change within any one word always shows; and unlike HDF5's own (Fletcher-32) it is
 * not 0 for zeros, which is what a hole in a damaged file reads as. */
static inline uint64_t tp_corpus_check(const void *block, size_t bytes) {
    const uint8_t *p = (const uint8_t *)block;
    uint64_t h = 0x9e3779b97f4a7c15u ^ bytes;
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t word = 0;
        memcpy(&word, p + at, bytes - at < 8 ? bytes - at : 8);
        h = (h ^ word) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return h;
}

/* The parts of the content, hashed on their own so that each can be streamed. */
typedef struct tp_corpus_hash {
    tp_sha256 tokens, offsets, doc_bytes, id_bytes, tokenizer;
} tp_corpus_hash;

static inline void tp_corpus_hash_init(tp_corpus_hash *h) {
    tp_sha256_init(&h->tokens);
    tp_sha256_init(&h->offsets);
    tp_sha256_init(&h->doc_bytes);
    tp_sha256_init(&h->id_bytes);
    tp_sha256_init(&h->tokenizer);
}

/* sha256(format, version, vocab, eos, then the digest of each part). */
static inline void tp_corpus_hash_final(tp_corpus_hash *h, int32_t vocab, int32_t eos,
                                        char hex[65]) {
    tp_sha256 all;
    uint8_t digest[32];
    int64_t head[3] = {TP_CORPUS_VERSION, vocab, eos};
    tp_sha256 *part[] = {&h->tokens, &h->offsets, &h->doc_bytes, &h->id_bytes, &h->tokenizer};
    tp_sha256_init(&all);
    tp_sha256_update(&all, TP_CORPUS_FORMAT, strlen(TP_CORPUS_FORMAT));
    tp_sha256_update(&all, head, sizeof head);
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        tp_sha256_final(part[i], digest);
        tp_sha256_update(&all, digest, sizeof digest);
    }
    tp_sha256_final(&all, digest);
    tp_sha256_hex(digest, hex);
}
#endif
