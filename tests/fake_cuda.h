/* CUDA and NCCL pretended in one process, as much as dist/nccl.c calls: what is under way takes a
 * few looks to get done, and what the real ones forbid is counted. A rank is a device. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H
#include <stdbool.h>

void fake_begin(int ranks, int devices); /* forgets all that was */
void fake_be(int rank);                  /* this thread, until it calls cudaSetDevice */
/* The nth call of this function by this rank fails. */
void fake_fail(int rank, const char *function, int nth);
bool fake_failed(void);     /* it came to that */
int fake_left(void);        /* allocations, streams, events, communicators not given back */
const char *fake_sin(void); /* the first forbidden thing; NULL: none */
int fake_groups(void);      /* exchanges that got done */
#endif
