/* The picture of which tokens the routed blocks of a model take. */
#ifndef TP_CLI_ROUTES_H
#define TP_CLI_ROUTES_H
#include "data/tokenizer.h"
#include "nn/routes.h"
#include <stdio.h>

typedef struct routes_picture {
    const char *title, *subtitle;
    const tp_routes *routes;
    const tp_model_cfg *model;
    const tp_tokenizer *tokenizer;
    const int32_t *ids; /* (routes->tokens) */
} routes_picture;
/* Writes it as SVG: a column for each token, a row for each block, the first at the bottom. NULL,
 * or the reason why it is not written. */
const char *routes_draw(const routes_picture *p, FILE *f);
#endif
