/* cache_write_: rows put into a key-value cache by number. */
#ifndef TP_CACHE_WRITE_H
#define TP_CACHE_WRITE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* pool (P,page,H,D) float; rows (B,T,H,D) of the same type, any strides; slots i32 (B,T):
 *   pool[slot / page, slot % page] = rows[b,t]   for slot = slots[b,t] >= 0
 * in place. A slot of -1 leaves its row out. No two rows may have one slot: parts of either
 * may stay. A slot beyond the pool is refused. No gradient. */
tp_status tp_cache_write_(tp_ctx *c, tp_tensor *pool, tp_tensor *rows, tp_tensor *slots);
#ifdef __cplusplus
}
#endif
#endif
