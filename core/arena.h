/* A bump allocator: chunks are kept across resets, so a steady step asks the system for nothing. */
#ifndef TP_ARENA_H
#define TP_ARENA_H
#include "core/core.h"
typedef struct tp_arena tp_arena;
tp_arena *tp_arena_new(tp_ctx *c);
void *tp_arena_take(tp_arena *a, tp_ctx *c, size_t bytes); /* 16-byte aligned, zeroed */
void tp_arena_reset(tp_arena *a);
void tp_arena_free(tp_arena *a);
#endif
