/* crew: engines side by side, each on a thread of its own.
 *
 * A pass over few short rows has too little work in it to be shared out op by op: threads would
 * mostly wait for each other, and every op would read what the other core wrote. So where the
 * weights are small enough for each core to read them all, samples are shared out instead, and each
 * thread decodes its own without waiting for anybody. A sample's bits depend on its prompt and
 * draws alone (engine.h), so they are those of one engine. */
#ifndef TP_CREW_H
#define TP_CREW_H
#include "infer/engine.h"
#ifdef __cplusplus
extern "C" {
#endif

/* How many threads of c do better with work of their own than with parts of ops: all, but 1 where c
 * is no CPU, and for weights of more than 16 MiB. */
int tp_threads_apart(const tp_ctx *c, const tp_model *m);

typedef struct tp_crew tp_crew;
/* As tp_engine_new, with as many engines as there are threads apart, if each has 16 of opts->lanes,
 * which they share like opts->pages; one engine alone uses all of c's threads within its ops. */
tp_status tp_crew_new(tp_crew **out, tp_ctx *c, tp_model *m, const tp_engine_opts *opts);
void tp_crew_free(tp_crew *w);
/* As tp_engine_run. Calls come from any thread, but one at a time, and in no certain order. */
tp_status tp_crew_run(tp_crew *w, const tp_request *requests, int64_t n,
                      const tp_engine_calls *calls);
int tp_crew_engines(const tp_crew *w);
tp_engine_stats tp_crew_get_stats(const tp_crew *w); /* sums over the engines */
#ifdef __cplusplus
}
#endif
#endif
