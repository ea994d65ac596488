/* tapir: one program, a word for what to do. */
#include "cli/cli.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const tp_command tp_commands[] = {
    {"prepare", "turn text into a corpus of tokens", cmd_prepare},
    {"train", "train a model as a config says; --resume goes on", cmd_train},
    {"grpo", "reinforce a model with rewards, as a config says; --resume goes on", cmd_grpo},
    {"replay", "recompute a step of grpo from its recorded completions", cmd_replay},
    {"generate", "write text with a trained model", cmd_generate},
    {"chat", "talk with a model that was fine-tuned on conversations", cmd_chat},
    {"eval", "loss, perplexity and bits per byte of a run on a corpus", cmd_eval},
    {"tape", "print the recorded computation, forward and backward", cmd_tape},
    {"plan", "parameters, FLOPs and memory of a config, before running it", cmd_plan},
    {"ops", "the operations and their kernels", cmd_ops},
    {"bench", "measure training steps on this machine", cmd_bench},
    {"plot", "curves of runs as a picture, from their metrics", cmd_plot},
    {"routes", "which tokens the routed layers of a run take, as a picture", cmd_routes},
    {"task", "items of a task with checkable answers, as JSON lines", cmd_task},
    {"import", "a model of Hugging Face's transformers as a run", cmd_import},
    {"export", "a run as a folder that Hugging Face's transformers loads", cmd_export},
    {"hash", "the sha256 of a run's weights", cmd_hash},
    {"version", "the version and what it was built with", cmd_version},
    {NULL, NULL, NULL},
};

static void usage(FILE *f) {
    fputs("Usage: tapir COMMAND [ARGUMENTS…]\n\n", f);
    for (const tp_command *k = tp_commands; k->name; k++)
        fprintf(f, "  %-10s %s\n", k->name, k->about);
    fputs("\n`tapir COMMAND --help` explains a command. A first run, from a clean machine: "
          "./quickstart.sh\n",
          f);
}

/* The command that differs from `word` in the fewest letters, if few. */
static const char *nearest(const char *word) {
    const char *best = NULL;
    size_t best_d = 3, n = strlen(word);
    if (n > 32) return NULL;
    for (const tp_command *k = tp_commands; k->name; k++) {
        size_t row[40], m = strlen(k->name);
        for (size_t j = 0; j <= m; j++) row[j] = j;
        for (size_t i = 1; i <= n; i++) {
            size_t diagonal = row[0];
            row[0] = i;
            for (size_t j = 1; j <= m; j++) {
                size_t cost = diagonal + (word[i - 1] != k->name[j - 1]);
                diagonal = row[j];
                if (row[j] + 1 < cost) cost = row[j] + 1;
                if (row[j - 1] + 1 < cost) cost = row[j - 1] + 1;
                row[j] = cost;
            }
        }
        if (row[m] < best_d) {
            best_d = row[m];
            best = k->name;
        }
    }
    return best;
}

/* What was printed may still be on its way, and a disk that is full says so only now. */
static int printed(const char *command, int code) {
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    if (code == EXIT_DONE && errno != EPIPE) /* a reader who has read enough is none */
        tp_say(command, "cannot write to standard output: %s", strerror(errno ? errno : EIO));
    return code ? code : EXIT_FAILED;
}

int main(int argc, char **argv) {
    argp_err_exit_status = EXIT_USAGE_;
    if (argc < 2) {
        usage(stderr);
        return EXIT_USAGE_;
    }
    const char *word = argv[1];
    if (!strcmp(word, "help") && argc == 3) { /* help train: train --help */
        static char asked[] = "--help";
        word = argv[2];
        argv[2] = asked;
    }
    if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help")) {
        usage(stdout);
        return printed("tapir", EXIT_DONE);
    }
    if (!strcmp(word, "--version") || !strcmp(word, "-V")) word = "version";
    for (const tp_command *k = tp_commands; k->name; k++) {
        if (strcmp(word, k->name)) continue;
        char name[64];
        snprintf(name, sizeof name, "tapir %s", k->name);
        argv[1] = name;
        return printed(name, k->run(argc - 1, argv + 1));
    }
    const char *hint = nearest(word);
    fprintf(stderr, "tapir: there is no command \"%s\"%s%s%s tapir --help lists them\n", word,
            hint ? "; did you mean \"" : ";", hint ? hint : "", hint ? "\"?" : "");
    return EXIT_USAGE_;
}
