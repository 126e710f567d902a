/* The load of a benchmark: one thread, one epoll, prepared requests out and no more read of an answer than tells it
 * apart. HTTP/1.1 with keep-alive, one query on its way per connection.
 *
 *   load HOST PORT REQUESTS FOLDER closed CONNECTIONS WARM_S SECONDS
 *   load HOST PORT REQUESTS FOLDER open CONNECTIONS DEADLINE_S SCHEDULE
 *
 * In a closed loop each answer lets the next query go. In an open loop queries leave by a schedule that nothing moves,
 * on an idle connection or, when all are taken, on the first that becomes idle; latency counts from the scheduled
 * moment, and whoever's deadline passed before a connection was free is not sent. A connection that the server closed
 * is made again, in an open loop; one that cannot be made is tried again, now and then, for as long as queries wait.
 * What a closed loop says of latencies is said of answers of status 200. "begin" and "end" on standard output frame
 * what counts. What was seen goes into FOLDER: summary.json, arrays of doubles (*.f64), of 16 bit (*.i16), and some
 * whole answers with the number of their question (kept.bin).
 *
 * REQUESTS: for each request its size (32 bits, this machine's order) and its bytes. SCHEDULE: doubles, seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "answers.h"
#include "basics.h"

enum { UNANSWERED = -1, EVENTS = 256, WORDS = 64 };
enum { KEEP_EVERY = 64, KEEP_MOST = 256 };
static const size_t FIRST_ROOM = 1 << 14, MOST_ROOM = 1 << 26;
static const double PATIENCE_S = 5.0, LEAD_S = 0.05, DIAL_AGAIN_S = 0.01;

typedef enum { DEAD, CONNECTING, IDLE, BUSY, DRAINING } State;
/* DRAINING: answered before all of its request was written; it can take the next one when that is done. */

typedef struct {
    int fd;
    State state;
    int wants_write;
    uint32_t question;
    long number;
    double sent_at;
    const char *out;
    size_t out_left;
    char *in;
    size_t room, have;
} Connection;

typedef struct {
    const char *bytes;
    size_t size;
} Request;

static struct {
    struct sockaddr_in address;
    const char *folder;
    Request *requests;
    uint32_t questions;
    int epoll, timer, is_open_loop, is_counting, is_over;
    Connection *connections;
    int count, refused_connections;
    FILE *kept;
    long seen, kept_count;
    char failure[256];
    /* closed loop */
    long asked, statuses[STATUSES];
    double *latencies;
    size_t latencies_count, latencies_room;
    /* open loop */
    double *due, *sent, *ended, *stated, *late;
    int16_t *outcome, *reason;
    long queries, at, waiting_head, waiting_tail, late_count;
    long *waiting;
    Connection **idle, **missing; /* missing: they could not be made */
    int idle_count, missing_count, on_way, most_on_way;
    double began, deadline_s, dial_at;
    char words[WORDS][WORD];
    int words_count;
} load;

static void wake_at(double moment) {
    struct itimerspec when = {0};
    if (moment < 1e-9) moment = 1e-9; /* zero would disarm it */
    when.it_value.tv_sec = (time_t)moment;
    when.it_value.tv_nsec = (long)((moment - (double)(time_t)moment) * 1e9);
    if (timerfd_settime(load.timer, TFD_TIMER_ABSTIME, &when, NULL) < 0) die("timerfd: %s", strerror(errno));
}

static void keep(const Connection *connection, size_t size) {
    uint32_t head[2] = {connection->question, (uint32_t)size};
    if (load.seen++ % KEEP_EVERY || load.kept_count >= KEEP_MOST) return;
    load.kept_count++;
    fwrite(head, sizeof head, 1, load.kept);
    fwrite(connection->in, 1, size, load.kept);
}

static int word_of(const char *word) {
    for (int n = 0; n < load.words_count; n++)
        if (!strcmp(load.words[n], word)) return n;
    if (load.words_count == WORDS) return WORDS - 1;
    snprintf(load.words[load.words_count], WORD, "%s", word);
    return load.words_count++;
}

/* Connections */

static void watch(Connection *connection, int operation, int wants_write) {
    struct epoll_event event = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0), .data.ptr = connection};
    connection->wants_write = wants_write;
    if (epoll_ctl(load.epoll, operation, connection->fd, &event) < 0) die("epoll_ctl: %s", strerror(errno));
}

static void hang_up(Connection *connection) {
    if (connection->fd >= 0) close(connection->fd);
    connection->fd = -1;
    connection->state = DEAD;
    connection->out_left = connection->have = 0;
}

static int dial(Connection *connection) {
    int one = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) return -1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int made = connect(connection->fd, (struct sockaddr *)&load.address, sizeof load.address);
    if (made < 0 && errno != EINPROGRESS) {
        hang_up(connection);
        return -1;
    }
    connection->state = CONNECTING;
    connection->out_left = connection->have = 0;
    watch(connection, EPOLL_CTL_ADD, 1);
    return 0;
}

/* It could not be made. */
static void refused(Connection *connection) {
    load.refused_connections++;
    hang_up(connection);
    if (load.is_open_loop) load.missing[load.missing_count++] = connection;
}

static void redial(Connection *connection) {
    hang_up(connection);
    if (dial(connection) < 0) refused(connection);
}

static void next(Connection *connection, double now);
static void lost(Connection *connection, const char *why);

static void write_more(Connection *connection) {
    while (connection->out_left) {
        ssize_t wrote = send(connection->fd, connection->out, connection->out_left, MSG_NOSIGNAL);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0 && errno == EAGAIN) break;
        if (wrote < 0) {
            if (connection->state == DRAINING) { /* it has its answer, and the server wants no more of it */
                lost(connection, strerror(errno));
                return;
            }
            /* What the server said before it closed is read first. */
            connection->out_left = 0;
            break;
        }
        connection->out += wrote;
        connection->out_left -= (size_t)wrote;
    }
    if (!!connection->out_left != connection->wants_write) watch(connection, EPOLL_CTL_MOD, !!connection->out_left);
}

static void ask(Connection *connection, long number, double now) {
    connection->question = (uint32_t)(number % load.questions);
    connection->number = number;
    connection->sent_at = now;
    connection->state = BUSY;
    connection->out = load.requests[connection->question].bytes;
    connection->out_left = load.requests[connection->question].size;
    write_more(connection);
}

static void fail(const char *why) {
    if (!load.failure[0]) snprintf(load.failure, sizeof load.failure, "%s", why);
    load.is_over = 1;
}

/* An answer, or that there is none any more. Returns whether the connection may go on. */
static int answered(Connection *connection, const Answer *answer, double now) {
    if (!load.is_open_loop) {
        if (load.is_counting) {
            load.statuses[answer->status]++;
            if (answer->status != OK) return 1; /* what failed has no latency that counts */
            if (load.latencies_count == load.latencies_room) {
                load.latencies_room = load.latencies_room ? 2 * load.latencies_room : 1 << 16;
                load.latencies = realloc(load.latencies, load.latencies_room * sizeof *load.latencies);
                if (!load.latencies) die("no memory for latencies");
            }
            load.latencies[load.latencies_count++] = now - connection->sent_at;
            keep(connection, answer->size);
        }
        return 1;
    }
    load.on_way--;
    load.outcome[connection->number] = (int16_t)answer->status;
    load.ended[connection->number] = now - load.began;
    if (answer->status == OK) keep(connection, answer->size);
    if (answer->status > 0 && answer->status != OK) {
        load.reason[connection->number] = (int16_t)word_of(answer->reason);
        load.stated[connection->number] = answer->stated_s;
    }
    return !answer->closes;
}

static void lost(Connection *connection, const char *why) {
    State was = connection->state;
    if (!load.is_open_loop) {
        fail(why);
        hang_up(connection);
        return;
    }
    if (was == CONNECTING) {
        refused(connection);
    } else if (was == IDLE) {
        hang_up(connection); /* it is dialled again when its turn comes */
    } else {
        if (was == BUSY) answered(connection, &(Answer){.status = UNANSWERED}, now_s());
        redial(connection);
    }
}

static void read_more(Connection *connection) {
    for (;;) {
        if (connection->have == connection->room) {
            connection->room = connection->room ? 2 * connection->room : FIRST_ROOM;
            if (connection->room > MOST_ROOM) die("an answer of more than %zu bytes", MOST_ROOM);
            connection->in = realloc(connection->in, connection->room);
            if (!connection->in) die("no memory for an answer");
        }
        size_t room = connection->room - connection->have;
        ssize_t got = recv(connection->fd, connection->in + connection->have, room, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            lost(connection, got < 0 ? strerror(errno) : "the server closed the connection");
            return;
        }
        connection->have += (size_t)got;
        if (connection->state != BUSY) {
            lost(connection, "an answer that nobody asked for");
            return;
        }
        Answer answer;
        int is_read = read_header(connection->in, connection->have, &answer);
        if (is_read < 0 || (is_read > 0 && connection->have > answer.size)) {
            lost(connection, is_read < 0 ? "not an answer that states its length" : "more than the answer");
            return;
        }
        if (is_read > 0 && connection->have == answer.size) {
            double now = now_s();
            int goes_on = answered(connection, &answer, now);
            connection->have = 0;
            connection->state = DRAINING;
            if (!goes_on)
                redial(connection);
            else if (!connection->out_left)
                next(connection, now);
            return;
        }
        if ((size_t)got < room) return;
    }
}

static void handle(Connection *connection, uint32_t events) {
    if (connection->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            lost(connection, strerror(error));
        } else if (events & EPOLLOUT) {
            watch(connection, EPOLL_CTL_MOD, 0);
            next(connection, now_s());
        }
        return;
    }
    if (events & EPOLLOUT) {
        write_more(connection);
        if (connection->state == CONNECTING || connection->state == DEAD) return; /* another one in its place */
        if (connection->state == DRAINING && !connection->out_left) next(connection, now_s());
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && connection->state != DEAD) read_more(connection);
}

/* Which query comes next */

static void launch(Connection *connection, long number, double now) {
    load.on_way++;
    if (load.on_way > load.most_on_way) load.most_on_way = load.on_way;
    load.sent[number] = now - load.began;
    load.outcome[number] = UNANSWERED;
    ask(connection, number, now);
}

/* Whoever's deadline has passed waits no more. */
static int is_anyone_waiting(double now) {
    double oldest = now - load.began - load.deadline_s;
    while (load.waiting_head < load.waiting_tail && load.due[load.waiting[load.waiting_head]] < oldest)
        load.waiting_head++;
    return load.waiting_head < load.waiting_tail;
}

static void next(Connection *connection, double now) {
    if (!load.is_open_loop) {
        ask(connection, load.asked++, now);
        return;
    }
    if (is_anyone_waiting(now)) {
        launch(connection, load.waiting[load.waiting_head++], now);
        return;
    }
    connection->state = IDLE;
    load.idle[load.idle_count++] = connection;
}

static void send_due(double now) {
    long first = load.at;
    while (load.at < load.queries && load.due[load.at] <= now - load.began) {
        long number = load.at++;
        Connection *free_one = NULL;
        while (load.idle_count && !free_one) {
            Connection *one = load.idle[--load.idle_count];
            if (one->state == IDLE)
                free_one = one;
            else if (one->state == DEAD)
                redial(one);
        }
        if (free_one)
            launch(free_one, number, now);
        else
            load.waiting[load.waiting_tail++] = number;
    }
    if (load.at > first) load.late[load.late_count++] = now - load.began - load.due[first];
}

static int is_to_dial(double now) {
    return load.missing_count && is_anyone_waiting(now);
}

/* What could not be made is tried again when somebody waits for it: all of it, and no more than once in a while. */
static void dial_missing(double now) {
    if (now < load.dial_at || !is_to_dial(now)) return;
    load.dial_at = now + DIAL_AGAIN_S;
    int count = load.missing_count;
    load.missing_count = 0;
    for (int n = 0; n < count; n++) redial(load.missing[n]); /* those that fail again take places that were read */
}

static void turn(int timeout_ms) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(load.epoll, events, EVENTS, timeout_ms);
    for (int n = 0; n < count && !load.is_over; n++) {
        uint64_t rings;
        if (events[n].data.ptr)
            handle(events[n].data.ptr, events[n].events);
        else if (read(load.timer, &rings, sizeof rings) < 0 && errno != EAGAIN)
            die("timerfd: %s", strerror(errno));
    }
}

static void until(double moment) {
    wake_at(moment);
    while (now_s() < moment && !load.is_over) turn(-1);
}

/* A connection that is there: this waits, because a benchmark begins when all of them are. */
static void dial_first(Connection *connection) {
    int one = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0 || connect(connection->fd, (struct sockaddr *)&load.address, sizeof load.address) < 0) {
        if (!load.is_open_loop) die("no connection: %s", strerror(errno));
        refused(connection);
        return;
    }
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(connection->fd, F_SETFL, fcntl(connection->fd, F_GETFL) | O_NONBLOCK);
    watch(connection, EPOLL_CTL_ADD, 0);
    if (load.is_open_loop) {
        connection->state = IDLE;
        load.idle[load.idle_count++] = connection;
    }
}

/* Files */

static void read_requests(const char *path) {
    size_t size, at = 0;
    char *data = whole_file(path, &size);
    load.requests = room_for(size / sizeof(uint32_t), sizeof *load.requests);
    while (at + sizeof(uint32_t) <= size) {
        uint32_t length;
        memcpy(&length, data + at, sizeof length);
        at += sizeof length;
        if (length > size - at) die("%s ends within a request", path);
        load.requests[load.questions++] = (Request){data + at, length};
        at += length;
    }
    if (!load.questions) die("%s has no request", path);
}

static FILE *made(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", load.folder, name);
    FILE *file = fopen(path, "wb");
    if (!file) die("%s: %s", path, strerror(errno));
    return file;
}

static void written(const char *name, const void *values, size_t count, size_t size) {
    FILE *file = made(name);
    if (fwrite(values, size, count, file) != count || fclose(file)) die("%s: %s", name, strerror(errno));
}

static void summary(double seconds, double share) {
    double late = 0;
    if (load.late_count) {
        qsort(load.late, (size_t)load.late_count, sizeof *load.late, by_size);
        late = load.late[(long)(0.99 * (double)(load.late_count - 1))];
    }
    FILE *file = made("summary.json");
    fprintf(file, "{\"seconds\": %.9f, \"cpu_share\": %.6f, \"statuses\": {", seconds, share);
    for (int status = 0, count = 0; status < STATUSES; status++)
        if (load.statuses[status]) fprintf(file, "%s\"%d\": %ld", count++ ? ", " : "", status, load.statuses[status]);
    fprintf(file, "}, \"words\": [");
    for (int n = 0; n < load.words_count; n++) fprintf(file, "%s\"%s\"", n ? ", " : "", load.words[n]);
    fprintf(file, "], \"late_p99_s\": %.9f, \"most_connections\": %d, \"refused_connections\": %d, \"failure\": \"%s\"}\n",
            late, load.most_on_way, load.refused_connections, load.failure);
    if (fclose(file)) die("summary.json: %s", strerror(errno));
}

static void tell(const char *word) {
    puts(word);
    fflush(stdout);
}

static void closed_loop(double warm_s, double seconds) {
    for (int n = 0; n < load.count; n++) next(&load.connections[n], now_s());
    until(now_s() + warm_s);
    tell("begin");
    double began = now_s(), cpu = cpu_s();
    load.is_counting = 1;
    until(began + seconds);
    load.is_counting = 0;
    double took = now_s() - began, used = cpu_s() - cpu;
    tell("end");
    written("latencies.f64", load.latencies, load.latencies_count, sizeof *load.latencies);
    summary(took, used / took);
}

static void open_loop(double deadline_s) {
    size_t count = (size_t)load.queries;
    load.deadline_s = deadline_s;
    tell("begin");
    double cpu = cpu_s(), first = now_s();
    load.began = first + LEAD_S;
    while (load.at < load.queries) {
        double due = load.began + load.due[load.at], now = now_s();
        wake_at(is_to_dial(now) && load.dial_at < due ? load.dial_at : due);
        turn(now < due ? -1 : 0); /* who is behind reads answers too, or no connection would become free */
        send_due(now_s());
        dial_missing(now_s());
    }
    double took = now_s() - first, used = cpu_s() - cpu, end = now_s() + PATIENCE_S;
    for (double now = now_s(); (load.on_way || is_anyone_waiting(now)) && now < end; now = now_s()) {
        double again = now + DIAL_AGAIN_S; /* deadlines pass, too */
        wake_at(is_anyone_waiting(now) && again < end ? again : end);
        turn(-1);
        dial_missing(now_s());
    }
    tell("end");
    written("sent.f64", load.sent, count, sizeof *load.sent);
    written("ended.f64", load.ended, count, sizeof *load.ended);
    written("stated.f64", load.stated, count, sizeof *load.stated);
    written("outcome.i16", load.outcome, count, sizeof *load.outcome);
    written("reason.i16", load.reason, count, sizeof *load.reason);
    summary(took, used / took);
}

static void read_schedule(const char *path) {
    size_t size;
    load.due = (double *)whole_file(path, &size);
    size_t count = size / sizeof *load.due;
    load.queries = (long)count;
    load.sent = room_for(count, sizeof *load.sent);
    load.ended = room_for(count, sizeof *load.ended);
    load.stated = room_for(count, sizeof *load.stated);
    load.late = room_for(count, sizeof *load.late);
    load.outcome = room_for(count, sizeof *load.outcome);
    load.reason = room_for(count, sizeof *load.reason);
    load.waiting = room_for(count, sizeof *load.waiting);
}

int main(int count, char **words) {
    if (count != 9) die("load HOST PORT REQUESTS FOLDER closed|open CONNECTIONS ... (see load.c)");
    load.address.sin_family = AF_INET;
    load.address.sin_port = htons((uint16_t)atoi(words[2]));
    if (inet_pton(AF_INET, words[1], &load.address.sin_addr) != 1) die("not an IPv4 address: %s", words[1]);
    read_requests(words[3]);
    load.folder = words[4];
    load.is_open_loop = !strcmp(words[5], "open");
    load.count = atoi(words[6]);
    load.epoll = epoll_create1(EPOLL_CLOEXEC);
    load.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(load.epoll, EPOLL_CTL_ADD, load.timer, &event) < 0) die("epoll_ctl: %s", strerror(errno));
    load.connections = room_for((size_t)load.count, sizeof *load.connections);
    load.idle = room_for((size_t)load.count, sizeof(Connection *));
    load.missing = room_for((size_t)load.count, sizeof(Connection *));
    load.kept = made("kept.bin");
    word_of("");
    for (int n = 0; n < load.count; n++) dial_first(&load.connections[n]);
    if (load.is_open_loop) {
        read_schedule(words[8]);
        open_loop(atof(words[7]));
    } else {
        closed_loop(atof(words[7]), atof(words[8]));
    }
    if (fclose(load.kept)) die("kept.bin: %s", strerror(errno));
    return 0;
}
