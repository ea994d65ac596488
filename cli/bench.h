/* What `tapir bench` can measure, beside training steps (bench.c). */
#ifndef TP_BENCH_H
#define TP_BENCH_H
#include "cli/cli.h"
/* Generation, for the config in words[0] with the key=value words behind it. Exit code. */
int tp_bench_decode(const char *command, char *const words[], int n, bool json);
#endif
