/* The head's logits on Hopper, ended where they are made (ops/matmul/gemm_sm90.h): a row's sums,
 * and the logits' gradient where the row is known, come straight out of the product's registers.
 *
 * So a row's sums run in another order than those of whole rows of logits (lce_rows_cuda.h): each
 * thread takes a quarter of a row of a tile of LCE90_COLS entries, then four threads and then tiles
 * merge. They do not depend on which other rows there are. Decoding has the other order; where its
 * bits are asked for (ctx->as_decoded) nobody calls this. */
#ifndef TP_LCE_SM90_H
#define TP_LCE_SM90_H
#include "ops/linear_cross_entropy/lce_plan_cuda.h"
#include "ops/linear_cross_entropy/lce_rows_cuda.h"

/* Raw logits of tokens row0.. go to `to`, rows ld floats apart (NULL: they are not wanted), their
 * rows' sums to p->sums90. */
tp_status lce90_logits(const tp_call *k, const lce_plan *p, int64_t row0, int64_t rows, float *to,
                       int64_t ld);
/* Loss and statistics of these rows, and for TRAIN the coefficients of their gradient, from
 * p->sums90. */
tp_status lce90_join(const tp_call *k, const lce_plan *p, lce_job job, int64_t rows,
                     const lce_rows_args &a);
/* The gradient of the logits of tokens row0.. and entries v0..v0+nv-1 by the tokens' coefficients;
 * rows of `to` are ld floats apart. */
tp_status lce90_grad(const tp_call *k, const lce_plan *p, int64_t row0, int64_t rows, int64_t v0,
                     int64_t nv, void *to, int64_t ld);
#endif
