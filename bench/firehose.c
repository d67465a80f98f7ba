/* A server that streams completions as fast as asked and does nothing else: what a load generator is measured against.
 *
 *     firehose PORT [RATE] [EVENT_BYTES]
 *
 * RATE: events a second of each stream, 0 = as fast as the client reads. One thread, epoll, HTTP/1.1 keep-alive.
 * A POST to /v1/completions or /v1/chat/completions with "stream": true is answered with max_tokens server-sent events
 * of EVENT_BYTES bytes, each one chunk and one write. Each carries the CLOCK_MONOTONIC time of its emission twice, in
 * the places that differ between the events of a real server too:
 *   "token_ids":[M]            µs modulo 2^31, for clients that keep ids and know nothing of it
 *   "text":" DDDDDDDDDDDD"     µs modulo 10^12, for clients that keep text
 * The last event has a finish reason; a usage event (when stream_options asks for it) and [DONE] follow.
 * GET /stats answers {"events","open","streams","now_ns"}; /health, /v1/models and the admin calls of vLLM answer 200.
 * Paced streams begin at a random phase, so that the load is even; a late emission is caught up, never skipped.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 65536, IN_MAX = 4 << 20, OUT_MAX = 8192, BATCH = 512 };

typedef struct {
    int fd, heap_at; /* heap_at: -1 = not waiting for a turn */
    char *in;
    size_t in_len, in_cap;
    char out[OUT_MAX]; /* what the socket has not taken */
    size_t out_len, out_at;
    int64_t due;
    int total, sent, chat, ids, usage, closing;
    long number;
} conn;

static conn *conns[MAX_FD];
static conn *heap[MAX_FD];
static int heap_len, epfd;
static long events_total, streams_total, open_streams;
static int64_t period_ns;
static int event_bytes = 250;
static uint64_t seed = 88172645463325252ULL;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static uint64_t rnd(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed;
}

/* -- the heap of streams by due time ------------------------------------------------------------------------------ */

static void place(conn *c, int at) { heap[at] = c, c->heap_at = at; }

static void up(int i) {
    for (conn *c = heap[i]; ; i = (i - 1) / 2) {
        if (i == 0 || heap[(i - 1) / 2]->due <= c->due) { place(c, i); return; }
        place(heap[(i - 1) / 2], i);
    }
}

static void down(int i) {
    conn *c = heap[i];
    for (int k; (k = 2 * i + 1) < heap_len; i = k) {
        if (k + 1 < heap_len && heap[k + 1]->due < heap[k]->due) k++;
        if (heap[k]->due >= c->due) break;
        place(heap[k], i);
    }
    place(c, i);
}

static void queue(conn *c, int64_t due) {
    c->due = due;
    place(c, heap_len++);
    up(c->heap_at);
}

static void unqueue(conn *c) {
    int i = c->heap_at;
    if (i < 0) return;
    conn *last = heap[--heap_len];
    c->heap_at = -1;
    if (last == c) return;
    place(last, i);
    up(i);
    down(last->heap_at);
}

/* -- sockets ------------------------------------------------------------------------------------------------------- */

static void drop(conn *c) {
    unqueue(c);
    if (c->total) open_streams--;
    close(c->fd);
    conns[c->fd] = NULL;
    free(c->in);
    free(c);
}

static void watch(conn *c, uint32_t what) {
    struct epoll_event e = {.events = what, .data.fd = c->fd};
    epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &e);
}

/* 1: all of it is in the socket; 0: the rest waits for EPOLLOUT; -1: the connection is gone. */
static int put(conn *c, const char *data, size_t n) {
    ssize_t done = c->out_len ? 0 : send(c->fd, data, n, MSG_NOSIGNAL);
    if (done < 0) {
        if (errno != EAGAIN) return -1;
        done = 0;
    }
    if ((size_t)done == n) return 1;
    if (c->out_len + n - done > OUT_MAX) return -1;
    memcpy(c->out + c->out_len, data + done, n - done);
    c->out_len += n - done;
    watch(c, EPOLLIN | EPOLLOUT);
    return 0;
}

/* -- events -------------------------------------------------------------------------------------------------------- */

static int chunked(char *to, const char *body, int n) {
    int head = sprintf(to, "%x\r\n", n);
    memcpy(to + head, body, n);
    memcpy(to + head + n, "\r\n", 2);
    return head + n + 2;
}

static int token(conn *c, char *body) {
    int64_t t = now_ns();
    int last = c->sent + 1 == c->total;
    const char *finish = last ? "\"length\"" : "null";
    const char *kind = c->chat ? "chat.completion.chunk" : "text_completion";
    int n = sprintf(body, "data: {\"id\":\"cmpl-%016lx\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"base\",",
                    c->number, kind);
    long text = t / 1000 % 1000000000000L, id = t / 1000 % (1L << 31);
    if (c->chat)
        n += sprintf(body + n, "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" %012ld\"},", text);
    else
        n += sprintf(body + n, "\"choices\":[{\"index\":0,\"text\":\" %012ld\",\"logprobs\":null,", text);
    n += sprintf(body + n, "\"finish_reason\":%s,\"stop_reason\":null", finish);
    if (c->ids) n += sprintf(body + n, ",\"token_ids\":[%ld]", id);
    if (c->ids && !c->sent) n += sprintf(body + n, ",\"prompt_token_ids\":[1,2,3]");
    n += sprintf(body + n, "}]");
    int fill = event_bytes - n - 12;
    if (fill > 0) n += sprintf(body + n, ",\"pad\":\"%0*d\"", fill, 0);
    return n + sprintf(body + n, "}\n\n");
}

static int usage(conn *c, char *body) {
    const char *kind = c->chat ? "chat.completion.chunk" : "text_completion";
    return sprintf(body,
                   "data: {\"id\":\"cmpl-%016lx\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"base\",\"choices\":[],"
                   "\"usage\":{\"prompt_tokens\":3,\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n",
                   c->number, kind, 3 + c->total, c->total);
}

/* One turn of a stream; 0: it may go on, 1: it has to wait or is over, -1: the connection is gone. */
static int emit(conn *c) {
    static char body[OUT_MAX], wire[OUT_MAX];
    int n = chunked(wire, body, token(c, body));
    int last = ++c->sent == c->total;
    events_total++;
    int done = put(c, wire, n);
    if (done < 0) return -1;
    if (!last) return done ? 0 : 1;
    n = 0;
    if (c->usage) n += chunked(wire + n, body, usage(c, body));
    n += chunked(wire + n, "data: [DONE]\n\n", 14);
    n += sprintf(wire + n, "0\r\n\r\n");
    c->total = 0;
    open_streams--;
    return put(c, wire, n) < 0 ? -1 : 1;
}

/* -- requests ------------------------------------------------------------------------------------------------------ */

static int reply(conn *c, int status, const char *type, const char *body) {
    char out[OUT_MAX];
    int n = snprintf(out, sizeof out, "HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s", status,
                     status == 200 ? "OK" : "Not Found", type, strlen(body), body);
    return put(c, out, n);
}

static int flag(const char *body, const char *key) {
    const char *at = strstr(body, key);
    if (!at) return 0;
    at = strchr(at + strlen(key), ':');
    return at && strncmp(at + 1 + strspn(at + 1, " "), "true", 4) == 0;
}

static int number(const char *body, const char *key, int otherwise) {
    const char *at = strstr(body, key);
    at = at ? strchr(at + strlen(key), ':') : NULL;
    int found = at ? atoi(at + 1) : 0;
    return found > 0 ? found : otherwise;
}

static int complete(conn *c, const char *body, int chat) {
    int tokens = number(body, "\"max_tokens\"", number(body, "\"max_completion_tokens\"", 16));
    if (!flag(body, "\"stream\"")) {
        char out[512];
        snprintf(out, sizeof out,
                 "{\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"base\",\"choices\":[{"
                 "\"index\":0,\"text\":\" x\",\"message\":{\"role\":\"assistant\",\"content\":\" x\"},\"finish_reason\":"
                 "\"length\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":%d,\"total_tokens\":%d}}",
                 tokens, tokens + 3);
        return reply(c, 200, "application/json", out);
    }
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    c->total = tokens, c->sent = 0, c->chat = chat, c->number = streams_total++;
    c->ids = flag(body, "\"return_token_ids\"");
    c->usage = flag(body, "\"include_usage\"");
    open_streams++;
    if (put(c, head, sizeof head - 1) < 0) return -1;
    int64_t now = now_ns();
    queue(c, period_ns ? now + (int64_t)(rnd() % period_ns) : now);
    return 0;
}

static int answer(conn *c, char *head, char *body) {
    char out[512];
    char *path = strchr(head, ' ') + 1;
    if (!strncmp(path, "/v1/completions", 15)) return complete(c, body, 0);
    if (!strncmp(path, "/v1/chat/completions", 20)) return complete(c, body, 1);
    if (!strncmp(path, "/stats", 6)) {
        snprintf(out, sizeof out, "{\"events\":%ld,\"open\":%ld,\"streams\":%ld,\"now_ns\":%ld}", events_total, open_streams,
                 streams_total, now_ns());
        return reply(c, 200, "application/json", out);
    }
    if (!strncmp(path, "/v1/models", 10))
        return reply(c, 200, "application/json",
                     "{\"object\":\"list\",\"data\":[{\"id\":\"base\",\"object\":\"model\",\"created\":1700000000,"
                     "\"owned_by\":\"firehose\",\"root\":\"base\",\"parent\":null,\"max_model_len\":65536}]}");
    if (!strncmp(path, "/metrics", 8)) return reply(c, 200, "text/plain; version=0.0.4", "# nothing to tell\n");
    if (!strncmp(path, "/version", 8)) return reply(c, 200, "application/json", "{\"version\":\"0.32.0\"}");
    if (!strncmp(path, "/health", 7) || !strncmp(path, "/ping", 5)) return reply(c, 200, "application/json", "{}");
    if (strstr(path, "load_lora_adapter")) return reply(c, 200, "text/plain", "Success");
    return reply(c, 404, "application/json", "{\"detail\":\"Not Found\"}");
}

/* All complete requests in the buffer (a second one while a stream runs waits for its end). -1: drop the connection. */
static int requests(conn *c) {
    while (!c->total) {
        c->in[c->in_len] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return c->in_len > 65536 ? -1 : 0;
        end[2] = 0;
        char *length = strcasestr(c->in, "\r\ncontent-length:");
        size_t head = end + 4 - c->in, body = length ? strtoul(length + 17, NULL, 10) : 0;
        end[2] = '\r';
        if (head + body > IN_MAX || !strchr(c->in, ' ')) return -1;
        if (c->in_len < head + body) return 0;
        char kept = c->in[head + body];
        c->in[head + body] = 0;
        if (answer(c, c->in, c->in + head) < 0) return -1;
        c->in[head + body] = kept;
        c->in_len -= head + body;
        memmove(c->in, c->in + head + body, c->in_len);
    }
    return 0;
}

static void readable(conn *c) {
    for (;;) {
        if (c->in_cap - c->in_len < 4097) {
            c->in_cap = c->in_cap ? 2 * c->in_cap : 8192;
            if (c->in_cap > 2 * IN_MAX || !(c->in = realloc(c->in, c->in_cap))) { drop(c); return; }
        }
        size_t room = c->in_cap - c->in_len - 1;
        ssize_t n = recv(c->fd, c->in + c->in_len, room, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) { drop(c); return; }
        if (n > 0) c->in_len += n;
        if (n < (ssize_t)room) break;
    }
    if (requests(c) < 0) drop(c);
}

static void writable(conn *c) {
    ssize_t n = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) { drop(c); return; }
    c->out_at += n > 0 ? n : 0;
    if (c->out_at < c->out_len) return;
    c->out_at = c->out_len = 0;
    watch(c, EPOLLIN);
    if (c->total && c->heap_at < 0) queue(c, period_ns ? c->due + period_ns : now_ns());
    else if (!c->total && requests(c) < 0) drop(c);
}

static void greet(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        int yes = 1;
        conn *c = fd < MAX_FD ? calloc(1, sizeof *c) : NULL;
        if (!c) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        c->fd = fd, c->heap_at = -1, conns[fd] = c;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &e);
    }
}

/* Streams whose time has come, one event each. */
static void turns(void) {
    for (int left = BATCH; heap_len && left--;) {
        conn *c = heap[0];
        if (c->due > now_ns()) return;
        unqueue(c);
        int64_t due = c->due;
        int r = emit(c);
        if (r < 0) { drop(c); continue; }
        if (r == 0) queue(c, period_ns ? due + period_ns : now_ns());
        else if (!c->total && !c->out_len && requests(c) < 0) drop(c);
    }
}

static int listening(int port) {
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 8192)) { perror("firehose"); exit(1); }
    getsockname(fd, (struct sockaddr *)&a, &n);
    printf("listening on %d\n", ntohs(a.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 2) { fprintf(stderr, "usage: firehose PORT [RATE] [EVENT_BYTES]\n"); return 64; }
    double rate = argc > 2 ? atof(argv[2]) : 20;
    if (argc > 3) event_bytes = atoi(argv[3]);
    if (event_bytes > 4000) event_bytes = 4000;
    period_ns = rate > 0 ? (int64_t)(1e9 / rate) : 0;
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r), r.rlim_cur = r.rlim_max, setrlimit(RLIMIT_NOFILE, &r);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* ends with whoever started it */
    prctl(PR_SET_TIMERSLACK, 1000UL);
    signal(SIGPIPE, SIG_IGN);
    int listener = listening(atoi(argv[1]));
    epfd = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, found[256];
    epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int64_t wait = heap_len ? heap[0]->due - now_ns() : 1000000000LL;
        if (wait < 0) wait = 0;
        struct timespec t = {wait / 1000000000LL, wait % 1000000000LL};
        int n = epoll_pwait2(epfd, found, 256, &t, NULL);
        for (int i = 0; i < n; i++) {
            int fd = found[i].data.fd;
            if (fd == listener) { greet(listener); continue; }
            conn *c = conns[fd];
            if (c && found[i].events & EPOLLOUT) writable(c);
            c = conns[fd];
            if (c && found[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
        }
        turns();
    }
}
