/* checkpoint_seal: a checksum in front of a checkpoint.
 *
 * HDF5 checks only part of what it stores and trusts the rest, so a damaged file can give wrong
 * numbers or worse. A hash over the file's bytes finds every change before HDF5 is asked. The seal:
 *     tapir-checkpoint / version 1 / step 1000 / bytes 123456 / code 0.1.0 abc / sha256 …
 * one line each. The hash covers the lines before it, then everything after the 512 bytes. */
#include "data/checkpoint_seal.h"
#include "data/checkpoint.h"
#include "data/sha256.h"
#include "data/text.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 1 << 20 };
static const char magic[] = "tapir-checkpoint\nversion ";

/* The lines that are hashed; their length. */
static size_t head_lines(char out[TP_SEAL_BYTES], const tp_seal *s) {
    return (size_t)snprintf(out, TP_SEAL_BYTES, "%s%lld\nstep %lld\nbytes %lld\ncode %s\n", magic,
                            (long long)s->version, (long long)s->step, (long long)s->bytes,
                            s->code);
}

static tp_status hash_file(char hex[65], tp_ctx *c, int fd, const char *path, const tp_seal *s) {
    char lines[TP_SEAL_BYTES];
    uint8_t digest[32], *chunk = tp_malloc(c, CHUNK);
    if (!chunk) return TP_ENOMEM;
    tp_sha256 h;
    tp_sha256_init(&h);
    tp_sha256_update(&h, lines, head_lines(lines, s));
    tp_status st = TP_OK;
    for (int64_t at = TP_SEAL_BYTES; !st && at < s->bytes;) {
        int64_t left = s->bytes - at;
        ssize_t got = pread(fd, chunk, left < CHUNK ? (size_t)left : CHUNK, at);
        if (got > 0) {
            tp_sha256_update(&h, chunk, (size_t)got);
            at += got;
        } else if (!got)
            st = tp_fail(c, TP_EFORMAT, "%s: became shorter while it was read", path);
        else if (errno != EINTR)
            st = tp_fail(c, TP_EIO, "%s: cannot read: %s", path, strerror(errno));
    }
    tp_sha256_final(&h, digest);
    tp_sha256_hex(digest, hex);
    tp_free(chunk);
    return st;
}

/* The 512 bytes: lines, hash, zeros. */
static void seal_block(char block[TP_SEAL_BYTES], const tp_seal *s, const char *hex) {
    memset(block, 0, TP_SEAL_BYTES);
    size_t n = head_lines(block, s);
    snprintf(block + n, TP_SEAL_BYTES - n, "sha256 %s\n", hex);
}

tp_status tp_seal_write(tp_ctx *c, const char *path, int64_t step, const char *code) {
    char hex[65], block[TP_SEAL_BYTES];
    struct stat info;
    tp_status st;
    tp_seal s = {.version = TP_CHECKPOINT_VERSION, .step = step};
    snprintf(s.code, sizeof s.code, "%s", code);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info)) {
        st = tp_fail(c, TP_EIO, "%s: cannot open: %s", path, strerror(errno));
        goto done;
    }
    s.bytes = info.st_size;
    if ((st = hash_file(hex, c, fd, path, &s))) goto done;
    seal_block(block, &s, hex);
    ssize_t put = pwrite(fd, block, sizeof block, 0);
    if (put != (ssize_t)sizeof block)
        st = tp_fail(c, TP_EIO, "%s: cannot write: %s", path,
                     put < 0 ? strerror(errno) : "the disk is full");
done:
    if (fd >= 0 && close(fd) && !st)
        st = tp_fail(c, TP_EIO, "%s: cannot write: %s", path, strerror(errno));
    return st;
}

/* Reads "word NUMBER\n" at *at, or with a NULL number "word TEXT\n" into text. */
static bool take_line(const char **at, const char *word, int64_t *number, char *text, size_t cap) {
    size_t skip = strlen(word);
    const char *end = strchr(*at, '\n');
    if (!end || strncmp(*at, word, skip)) return false;
    const char *value = *at + skip;
    size_t n = (size_t)(end - value);
    *at = end + 1;
    if (number) return !tp_i64_parse(number, value, n) && *number >= 0;
    if (n >= cap) return false;
    memcpy(text, value, n);
    text[n] = 0;
    return true;
}

static tp_status parse(tp_seal *s, char hex[65], tp_ctx *c, const char *path, const char *block) {
    const char *at = block + strlen("tapir-checkpoint\n");
    if (strncmp(block, magic, sizeof magic - 1)) {
        bool hdf5 = !memcmp(block, "\211HDF\r\n\032\n", 8);
        return tp_fail(c, TP_EFORMAT, "%s: %snot a Tapir checkpoint", path,
                       hdf5 ? "an HDF5 file, but " : "");
    }
    if (!take_line(&at, "version ", &s->version, NULL, 0))
        return tp_fail(c, TP_EFORMAT, "%s: damaged: no format version", path);
    if (s->version > TP_CHECKPOINT_VERSION)
        return tp_fail(c, TP_EFORMAT,
                       "%s: written in format version %lld; this program reads up to version %d",
                       path, (long long)s->version, TP_CHECKPOINT_VERSION);
    if (!take_line(&at, "step ", &s->step, NULL, 0) ||
        !take_line(&at, "bytes ", &s->bytes, NULL, 0) ||
        !take_line(&at, "code ", NULL, s->code, sizeof s->code) ||
        !take_line(&at, "sha256 ", NULL, hex, 65))
        return tp_fail(c, TP_EFORMAT, "%s: damaged in its first %d bytes", path, TP_SEAL_BYTES);
    return TP_OK;
}

tp_status tp_seal_check(tp_seal *out, tp_ctx *c, const char *path) {
    char block[TP_SEAL_BYTES + 1] = "", same[TP_SEAL_BYTES], hex[65], found[65];
    struct stat info;
    tp_status st = TP_OK;
    *out = (tp_seal){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    if (fd < 0) return tp_fail(c, TP_EIO, "%s: cannot open: %s", path, strerror(errno));
    ssize_t got = 0;
    if (fstat(fd, &info) || (S_ISREG(info.st_mode) && (got = pread(fd, block, 512, 0)) < 0))
        st = tp_fail(c, TP_EIO, "%s: cannot read: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        st = tp_fail(c, TP_EIO, "%s: not a file", path);
    else if (!info.st_size)
        st = tp_fail(c, TP_EFORMAT, "%s: empty", path);
    else if ((st = parse(out, hex, c, path, block)))
        goto done;
    else if (info.st_size != out->bytes || got < TP_SEAL_BYTES)
        st = tp_fail(c, TP_EFORMAT, "%s: %s: %lld bytes, but %lld were written", path,
                     info.st_size < out->bytes ? "cut short" : "damaged", (long long)info.st_size,
                     (long long)out->bytes);
    else if (!(st = hash_file(found, c, fd, path, out))) {
        /* rendering the seal again also catches what parsing would forgive */
        seal_block(same, out, found);
        if (memcmp(same, block, sizeof same))
            st = tp_fail(c, TP_EFORMAT, "%s: damaged: its content does not match its checksum",
                         path);
    }
done:
    close(fd);
    return st;
}
