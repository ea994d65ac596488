/* What the commands share: how they end, how they speak, how they find a config and a run. */
#ifndef TP_CLI_H
#define TP_CLI_H
#include "cli/trainer.h"
#include "data/checkpoint.h"
#include "data/corpus.h"
#include "data/tokenizer.h"
#include "infer/infer.h"
#include <argp.h>
#include <stdio.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE_ = 2, EXIT_INTERRUPTED = 130 };

/* One command: its entry in `tapir --help`, and its main. argv[0] is "tapir NAME". */
typedef struct tp_command {
    const char *name, *about;
    int (*run)(int argc, char **argv);
} tp_command;
extern const tp_command tp_commands[]; /* terminated by .name = NULL */

int cmd_prepare(int argc, char **argv);
int cmd_train(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_tape(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_ops(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_import(int argc, char **argv);
int cmd_hash(int argc, char **argv);
int cmd_plot(int argc, char **argv);
int cmd_routes(int argc, char **argv);
int cmd_task(int argc, char **argv);
int cmd_grpo(int argc, char **argv);
int cmd_replay(int argc, char **argv);
int cmd_version(int argc, char **argv);

/* ---- ending --------------------------------------------------------------------------------- */
/* "tapir train: " and the sentence on stderr, any progress line cleared; the exit code. */
int tp_say(const char *command, const char *fmt, ...) TP_PRINTF(2, 3); /* usage error: 2 */
int tp_say_failure(const char *command, tp_ctx *c, tp_status st); /* 1, or 130 if interrupted */
/* The same for one of many ranks, by its number; silent where another rank says it. m: or NULL */
int tp_say_rank_failure(const char *command, tp_ctx *c, const tp_comm *m, tp_status st);

/* ---- signals -------------------------------------------------------------------------------- */
/* SIGINT, SIGTERM and SIGHUP ask the work to end after what it is doing; a second one ends it now.
 * Under nohup SIGHUP does nothing. */
void tp_catch_signals(void);
void tp_catch_signals_in_steps(void); /* and the first one says so on a terminal: steps are long */
bool tp_interrupted(void);

/* ---- the terminal --------------------------------------------------------------------------- */
bool tp_is_terminal(int fd);
/* A line that is written over: on a terminal at most ten times a second, else only when `lasting`.
 * A lasting line stays and the next one starts below it. */
void tp_progress(bool lasting, const char *fmt, ...) TP_PRINTF(2, 3);
void tp_progress_clear(void);
void tp_progress_off(void); /* no lines from here on: another rank speaks */
const char *tp_duration(char out[32], double seconds); /* "1:02:03", "4:05", "12 s"; "3.5 years" */
const char *tp_count(char out[32], double n);          /* "124.4M" */

/* ---- configs -------------------------------------------------------------------------------- */
/* Reads the first word as the file and the others as key=value; resolves. Returns 0 and a ctx with
 * the config's device, seed and threads, or an exit code, the failure told, and *c NULL. */
int tp_read_config(const char *command, tp_config *cfg, char *const words[], int n); /* no ctx */
int tp_open_config(const char *command, tp_config *cfg, tp_ctx **c, char *const words[], int n);
/* One line that names those of `keys` (as tp_config_given has them) that were given a value, though
 * the command does not read them. */
void tp_warn_unused(const char *command, const tp_config *cfg, const char *const keys[]);

/* What an option says, in [lo, hi], or a usage error that names it. */
double tp_number_arg(const struct argp_state *s, const char *name, const char *text, double lo,
                     double hi);
int64_t tp_integer_arg(const struct argp_state *s, const char *name, const char *text, int64_t lo,
                       int64_t hi);
enum { TP_MOST_THREADS = 1024 };
#define TP_MOST_SEED (INT64_C(1) << 52)
/* For commands without a config: what --device says (else a usage error), and a ctx of it. */
tp_device tp_device_arg(const struct argp_state *s, const char *arg);
int tp_open_device(const char *command, tp_ctx **c, tp_device device, int64_t threads);

/* Joins the other ranks that mpirun or srun started (alone: a *comm of one). threads: 0 then means
 * this rank's share of the cores, so the ctx is made anew. Exit code as tp_open_config. */
int tp_open_ranks(const char *command, const tp_config *cfg, tp_ctx **c, tp_comm **comm);

/* Settles model.*: from model.init_from, or model.vocab = 0 from the corpus or tokenizer. */
tp_status tp_config_vocab(tp_ctx *c, tp_config *cfg);
void tp_plan_print(FILE *f, const tp_config *cfg, const tp_plan *p);

/* ---- ops ------------------------------------------------------------------------------------ */
/* The comment at the head of the file that an op stands in: how its formulas come about. */
typedef struct tp_derivation {
    const char *op, *text;
} tp_derivation;
extern const tp_derivation tp_derivations[];  /* written by cmake; terminated by .op = NULL */
const char *tp_derivation_of(const char *op); /* "" if there is none */

/* ---- runs
 * -----------------------------------------------------------------------------------------------
 */
typedef struct tp_run {
    tp_ctx *c;
    tp_checkpoint_reader *from;
    tp_config cfg;
    tp_tokenizer *tokenizer;
    tp_trainer trainer; /* the model, its weights loaded */
    int64_t step;
} tp_run;
/* Opens a run's folder (its newest checkpoint), or a checkpoint file. best: DIR's best.h5. */
tp_status tp_run_open(tp_run *r, tp_ctx *c, const char *path, bool best);
/* Config and tokenizer only. */
tp_status tp_run_peek(tp_run *r, tp_ctx *c, const char *path, bool best);
tp_status tp_run_texts(tp_run *r); /* these two of r->from, which is open */
void tp_run_close(tp_run *r);
/* Opens a run, does fn, closes it, says what failed. Exit code. */
typedef struct tp_run_args {
    char *path;
    bool best;
    tp_device device;
    int64_t threads; /* 0: all cores */
} tp_run_args;
int tp_with_run(const char *command, const tp_run_args *a, tp_status (*fn)(tp_run *r));
/* How such commands are told which checkpoint, device and threads; for the others' own options:
 * ARGP_ERR_UNKNOWN. */
#define TP_RUN_OPTIONS                                                                             \
    {"best", 'b', NULL, 0, "Use the checkpoint with the best validation loss", 0},                 \
        {"device", 'd', "NAME", 0, "cpu, or cuda for a GPU (cpu)", 0}, {                           \
        "threads", 'j', "N", 0, "Threads (all cores)", 0                                           \
    }
error_t tp_run_option(tp_run_args *a, int key, const char *arg, struct argp_state *s);
/* The same for how tokens are chosen: temperature t, top-k k, top-p p, min-p m, penalty r. */
error_t tp_sampling_option(tp_sampling *how, int key, const char *arg, struct argp_state *s);
/* Parameter NAME is under/NAME of the file: "weights" are the model's. */
tp_status tp_load_weights(tp_ctx *c, tp_checkpoint_reader *from, tp_params *p, const char *under);
tp_status tp_save_weights(tp_ctx *c, tp_checkpoint_writer *w, const tp_params *p,
                          const char *under);
/* *name: of the first parameter with a NaN or an infinity in it; NULL: all are finite. */
tp_status tp_weights_finite(tp_ctx *c, const tp_params *p, const char **name);
/* Everything is saved, but of a run that ends in NaN nobody must hear that it is done: refuses last
 * updates that were skipped, and weights that are no numbers. `what`: "step", of which `done` are.
 */
tp_status tp_ends_finite(tp_trainer *t, const char *what, int64_t done);
#define TP_ADVICE_ON_NAN "(a lower learning rate or a longer warm-up may help)"
/* Ranks hold a part each of the optimizer's state; in a checkpoint it is whole, so that any number
 * of ranks can go on from it. Saved by all ranks together, written where w is not NULL. *whole: one
 * buffer for all tensors, for the caller to free if this failed and the ranks are closed: the
 * communicator may still write to it. */
tp_status tp_save_optimizer(tp_trainer *t, tp_checkpoint_writer *w, void **whole);
tp_status tp_load_optimizer(tp_trainer *t, tp_checkpoint_reader *from, void **whole);
tp_status tp_make_folder(tp_ctx *c, const char *path); /* with those above it */
/* One process at a time trains in a run's folder: refuses where another does. *out holds the lock
 * until it is closed, or the process ends; NULL where the file system has none. */
tp_status tp_lock_folder(FILE **out, tp_ctx *c, const char *dir);
/* Refuses to begin where a run has left metrics or checkpoints: its newest checkpoint may be of a
 * later step than any of the new run, and would be taken for that one's. */
tp_status tp_holds_no_run(tp_ctx *c, const char *dir);
tp_status tp_write_text(tp_ctx *c, const char *path, const char *text);
/* Refuses a checkpoint to go on from that is of the other program, or past run.steps. */
tp_status tp_can_go_on(tp_ctx *c, const tp_checkpoint_reader *from, const tp_config *now,
                       bool grpo);
/* Refuses, with the first key that differs, a checkpoint of a run with another config; what only
 * watches a run, or splits it, may differ. */
tp_status tp_same_config(tp_ctx *c, tp_checkpoint_reader *from, const tp_config *now);
/* Refuses a checkpoint whose text `what` ("tokenizer") is another. */
tp_status tp_same_text(tp_ctx *c, tp_checkpoint_reader *from, const tp_config *now,
                       const char *what, const char *text);
/* The first "key: value" in which two texts of configs differ. */
void tp_config_difference(const char *a, const char *b, char *out, size_t cap);

/* ---- evaluating ----------------------------------------------------------------------------- */
typedef struct tp_eval_result {
    double nll;         /* nats, summed over the targets */
    double loss, bpb;   /* nats per target; bits per byte of their text */
    double loss_causal; /* of a model with routed blocks, with causal decisions; else NaN */
    int64_t targets, bytes;
    double seconds;
} tp_eval_result;
/* The source once, in order (or its first max_batches batches); TP_EINTERRUPT after a signal. */
struct tp_source;
tp_status tp_evaluate(tp_trainer *t, const struct tp_source *s, int64_t max_batches, bool progress,
                      tp_eval_result *out);
/* "1.2345 bits per byte", or that there are none: no target stands for text. */
enum { TP_BITS_TEXT = 40 };
const char *tp_bits(char out[TP_BITS_TEXT], const tp_eval_result *e);
tp_status tp_same_tokenizer(tp_ctx *c, const tp_tokenizer *t, const tp_corpus *co);

/* Peak single-precision FLOP/s of this machine on this many threads, from a loop of independent
 * fused multiply-adds in registers (about 0.2 s). */
double tp_measure_peak(tp_ctx *c, const tp_config *cfg);
double tp_peak_rss_mb(void);
#endif
