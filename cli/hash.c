/* tapir hash: one number for all weights of a run, to compare runs by. */
#include "cli/cli.h"
#include "data/sha256.h"
#include <stdio.h>
#include <string.h>

static char *path;
static error_t parse(int key, char *arg, struct argp_state *state) {
    if (key == ARGP_KEY_ARG && !path)
        path = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(state, "one run at a time");
    else if (key == ARGP_KEY_NO_ARGS)
        argp_error(state, "which run?");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

/* Over every weight in the file's order: name, NUL, dtype, NUL, shape as 8-byte little-endian
 * integers, bytes. */
static tp_status hash_weights(tp_ctx *c, tp_checkpoint_reader *r, char hex[65]) {
    tp_sha256 h;
    uint8_t digest[32];
    tp_sha256_init(&h);
    for (int64_t i = 0; i < tp_checkpoint_count(r); i++) {
        const tp_checkpoint_entry *e = tp_checkpoint_at(r, i);
        if (strncmp(e->name, "weights/", 8)) continue;
        void *data = tp_malloc(c, e->bytes);
        if (!data) return tp_error_status(c);
        tp_status st = tp_checkpoint_get(r, e->name, e->dtype, e->ndim, e->shape, data, e->bytes);
        if (!st) {
            const char *type = tp_dtype_name(e->dtype);
            tp_sha256_update(&h, e->name + 8, strlen(e->name + 8) + 1);
            tp_sha256_update(&h, type, strlen(type) + 1);
            for (int d = 0; d < e->ndim; d++) {
                uint8_t le[8];
                for (int b = 0; b < 8; b++) le[b] = (uint8_t)((uint64_t)e->shape[d] >> (8 * b));
                tp_sha256_update(&h, le, sizeof le);
            }
            tp_sha256_update(&h, data, e->bytes);
        }
        tp_free(data);
        if (st) return st;
    }
    tp_sha256_final(&h, digest);
    tp_sha256_hex(digest, hex);
    return TP_OK;
}

int cmd_hash(int argc, char **argv) {
    const struct argp argp = {
        .parser = parse,
        .args_doc = "RUN",
        .doc =
            "Prints the sha256 over the names, shapes and bytes of all weights of a run's newest "
            "checkpoint (or of the checkpoint file given). Equal hashes: equal models, to the "
            "bit."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_ctx *c;
    tp_status st = tp_ctx_new(&c, NULL);
    if (st) return tp_say_failure(argv[0], NULL, st);
    tp_run r;
    char hex[65];
    st = tp_run_open(&r, c, path, false);
    if (!st) st = hash_weights(c, r.from, hex);
    int code = st ? tp_say_failure(argv[0], c, st) : EXIT_DONE;
    if (!code) printf("%s  step %lld\n", hex, (long long)r.step);
    tp_run_close(&r);
    tp_ctx_free(c);
    return code;
}
