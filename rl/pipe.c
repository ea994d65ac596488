/* Owns the life of a user's program and the talk with it. */
#include "rl/pipe.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <sys/wait.h>
#include <unistd.h>

struct tp_pipe {
    pid_t pid; /* 0: it has ended and was waited for */
    int in, out;
    char *command;
};

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static tp_status start(tp_pipe *p, tp_ctx *c) {
    int to[2] = {-1, -1}, from[2] = {-1, -1};
    if (pipe(to) || pipe(from)) {
        tp_status st = tp_fail(c, TP_EIO, "cannot make a pipe: %s", strerror(errno));
        for (int i = 0; i < 2; i++) close_fd(&to[i]), close_fd(&from[i]);
        return st;
    }
    p->pid = fork();
    if (p->pid == 0) {
        setpgid(0, 0); /* so that all it starts can be ended with it */
        signal(SIGPIPE, SIG_DFL);
        signal(SIGINT, SIG_IGN); /* Ctrl-C is for the trainer, which then closes the pipe */
        dup2(to[0], 0);
        dup2(from[1], 1);
        for (int i = 0; i < 2; i++) close(to[i]), close(from[i]);
        execl("/bin/sh", "sh", "-c", p->command, (char *)NULL);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    p->in = to[1];
    p->out = from[0];
    fcntl(p->in, F_SETFD, FD_CLOEXEC);
    fcntl(p->out, F_SETFD, FD_CLOEXEC);
    fcntl(p->in, F_SETFL, O_NONBLOCK);
    fcntl(p->out, F_SETFL, O_NONBLOCK);
    if (p->pid < 0) {
        p->pid = 0;
        return tp_fail(c, TP_EIO, "cannot start a program: %s", strerror(errno));
    }
    return TP_OK;
}

tp_status tp_pipe_open(tp_pipe **out, tp_ctx *c, const char *command) {
    *out = NULL;
    tp_pipe *p = tp_calloc(c, 1, sizeof *p);
    if (!p) return tp_error_status(c);
    p->in = p->out = -1;
    tp_status st = (p->command = tp_strdup(c, command)) ? start(p, c) : tp_error_status(c);
    if (st) {
        tp_pipe_close(p);
        return st;
    }
    *out = p;
    return TP_OK;
}

static void end(tp_pipe *p, int *status) {
    struct timespec nap = {0, 10 * 1000 * 1000};
    *status = 0;
    close_fd(&p->in);
    close_fd(&p->out);
    if (p->pid <= 0) return;
    for (int i = 0; i < 100; i++) {
        if (waitpid(p->pid, status, WNOHANG) != 0) {
            kill(-p->pid, SIGKILL); /* what it left behind */
            p->pid = 0;
            return;
        }
        nanosleep(&nap, NULL);
    }
    kill(-p->pid, SIGKILL);
    kill(p->pid, SIGKILL);
    waitpid(p->pid, status, 0);
    p->pid = 0;
}

void tp_pipe_close(tp_pipe *p) {
    int status;
    if (!p) return;
    end(p, &status);
    tp_free(p->command);
    tp_free(p);
}

static tp_status ended(tp_pipe *p, tp_ctx *c) {
    int status;
    end(p, &status);
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
        return tp_fail(c, TP_EIO, "the program \"%s\" was ended by signal %d", p->command,
                       WTERMSIG(status));
    if (WIFEXITED(status))
        return tp_fail(c, TP_EIO, "the program \"%s\" ended with code %d before it had answered",
                       p->command, WEXITSTATUS(status));
    return tp_fail(c, TP_EIO, "the program \"%s\" closed its output before it had answered",
                   p->command);
}

/* What was written before anybody asked would be taken for an answer. */
static tp_status too_much(tp_pipe *p, tp_ctx *c) {
    int status;
    end(p, &status);
    return tp_fail(c, TP_EIO, "the program \"%s\" wrote more than a line for each it was given",
                   p->command);
}

/* poll, for a while, until the time is over. Time in which this process itself did not run (a job
 * may be stopped as a whole, and goes on later) says nothing about the program. */
static int look(struct pollfd fd[2], double *until) {
    enum { WHILE_MS = 500 };
    double begin = tp_now(), left = *until - begin;
    if (left <= 0) return 0;
    int ms = left < 1e-3 * WHILE_MS ? (int)(left * 1000) + 1 : WHILE_MS;
    int ready = poll(fd, 2, ms), error = errno;
    double gap = tp_now() - begin - 1e-3 * ms;
    if (gap > 1) *until += gap;
    errno = error;
    return ready;
}

tp_status tp_pipe_ask(tp_pipe *p, tp_ctx *c, const char *text, size_t n, int64_t lines,
                      double timeout, char **answer) {
    double until = tp_now() + timeout;
    size_t sent = 0, got = 0, cap = 4096;
    char *room = tp_malloc(c, cap);
    tp_status st = room ? TP_OK : tp_error_status(c);
    *answer = NULL;
    if (p->out < 0 && !st) st = tp_fail(c, TP_EIO, "the program \"%s\" has ended", p->command);
    struct pollfd early = {p->out, POLLIN, 0};
    if (!st && poll(&early, 1, 0) > 0 && (early.revents & POLLIN)) st = too_much(p, c);
    for (int64_t seen = 0; (seen < lines || sent < n) && !st;) {
        struct pollfd fd[2] = {{p->out, POLLIN, 0}, {sent < n ? p->in : -1, POLLOUT, 0}};
        int ready = look(fd, &until);
        if (ready < 0 && errno == EINTR) continue;
        if (ready == 0 && tp_now() < until) continue;
        if (ready <= 0) {
            int status;
            end(p, &status);
            st = tp_fail(c, TP_EIO,
                         "the program \"%s\" took more than %g seconds for %lld lines; "
                         "it must write and flush an answer to each as it comes",
                         p->command, timeout, (long long)lines);
            break;
        }
        if (fd[1].revents) {
            ssize_t w = write(p->in, text + sent, n - sent);
            if (w > 0) sent += (size_t)w;
            if (w < 0 && errno != EAGAIN && errno != EINTR) st = ended(p, c);
        }
        if (st || !fd[0].revents) continue;
        if (got + 2 > cap) {
            char *more = tp_realloc(c, room, cap *= 2);
            if (!more) {
                st = tp_error_status(c);
                break;
            }
            room = more;
        }
        ssize_t r = read(p->out, room + got, cap - got - 1);
        if (r < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (r <= 0) {
            st = ended(p, c);
            break;
        }
        for (ssize_t i = 0; i < r; i++) seen += room[got + (size_t)i] == '\n';
        got += (size_t)r;
        bool room_enough = got < 4096 + 512 * (size_t)lines; /* these are numbers */
        if (seen > lines || (seen == lines && room[got - 1] != '\n') || !room_enough)
            st = too_much(p, c);
    }
    if (st) {
        tp_free(room);
        return st;
    }
    room[got] = 0;
    *answer = room;
    return TP_OK;
}
