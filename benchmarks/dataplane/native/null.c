/* A server that does nothing: it reads a request to its end and writes one answer, the same to all. It shows how fast a
 * load can go; its answers are no answers.
 *
 *   null PORT ANSWER
 *
 * ANSWER is a file with a whole answer, header and body. Listens on the loopback interface until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ROOM = 1 << 16, EVENTS = 256, MOST_ANSWER = 1 << 16 };

typedef struct {
    int fd;
    size_t have;      /* of a header that is not whole */
    size_t body_left; /* of the request whose header was read */
    int is_in_body;
    char in[ROOM];
} Caller;

static char answer[MOST_ANSWER];
static size_t answer_size;
static char body[ROOM];

static void die(const char *what) {
    perror(what);
    exit(2);
}

static size_t content_length(const char *head, const char *end) {
    for (const char *line = head; line && line < end; line = memchr(line, '\n', (size_t)(end - line))) {
        line += *line == '\n';
        if (end - line > 15 && !strncasecmp(line, "content-length:", 15)) return strtoul(line + 15, NULL, 10);
    }
    return 0;
}

/* Whether the connection lives on; one answer per call at most: a caller has one query on its way. */
static int answer_one(Caller *caller) {
    caller->is_in_body = 0;
    for (size_t at = 0; at < answer_size;) {
        ssize_t wrote = send(caller->fd, answer + at, answer_size - at, MSG_NOSIGNAL);
        if (wrote < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (wrote < 0) return 0;
        at += (size_t)wrote;
    }
    return 1;
}

static int read_body(Caller *caller) {
    while (caller->body_left) {
        ssize_t got = recv(caller->fd, body, caller->body_left < ROOM ? caller->body_left : ROOM, 0);
        if (got < 0 && errno == EAGAIN) return 1;
        if (got <= 0) return 0;
        caller->body_left -= (size_t)got;
    }
    return answer_one(caller);
}

static int read_head(Caller *caller) {
    ssize_t got = recv(caller->fd, caller->in + caller->have, ROOM - caller->have, 0);
    if (got < 0 && errno == EAGAIN) return 1;
    if (got <= 0) return 0;
    caller->have += (size_t)got;
    const char *end = memmem(caller->in, caller->have, "\r\n\r\n", 4);
    if (!end) return caller->have < ROOM;
    size_t head = (size_t)(end - caller->in) + 4, length = content_length(caller->in, end), came = caller->have - head;
    if (came > length) return 0; /* the next request before this one's answer */
    caller->have = 0;
    caller->body_left = length - came;
    caller->is_in_body = 1;
    return read_body(caller);
}

int main(int count, char **words) {
    if (count != 3) {
        fputs("null PORT ANSWER\n", stderr);
        return 2;
    }
    FILE *file = fopen(words[2], "rb");
    if (!file) die(words[2]);
    answer_size = fread(answer, 1, sizeof answer, file);
    fclose(file);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), loop = epoll_create1(EPOLL_CLOEXEC);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&address, sizeof address) < 0 || listen(server, 4096) < 0) die("listen");
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(loop, EPOLL_CTL_ADD, server, &event) < 0) die("epoll_ctl");
    for (;;) {
        int ready = epoll_wait(loop, events, EVENTS, -1);
        for (int n = 0; n < ready; n++) {
            Caller *caller = events[n].data.ptr;
            if (!caller) {
                int fd = accept4(server, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd < 0) continue; /* the caller has gone again */
                if (!(caller = calloc(1, sizeof *caller))) die("calloc");
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                caller->fd = fd;
                event = (struct epoll_event){.events = EPOLLIN, .data.ptr = caller};
                if (epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl");
            } else if (!(caller->is_in_body ? read_body(caller) : read_head(caller))) {
                close(caller->fd);
                free(caller);
            }
        }
    }
}
