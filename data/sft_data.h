/* The examples of a file, shared by the files that read it and that make rows of it. */
#ifndef TP_SFT_DATA_H
#define TP_SFT_DATA_H
#include "data/sft.h"
#include <stdlib.h>

struct tp_sft_data {
    tp_sft_info info;
    int64_t T;
    int64_t *offset;   /* (examples+1) into ids */
    int32_t *ids;      /* (tokens) */
    uint8_t *trained;  /* (tokens) 1: the model learns to write it */
    int32_t *id_bytes; /* (vocab) bytes of text that an id stands for */
};
#endif
