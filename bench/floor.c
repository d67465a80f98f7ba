/* The least a client can do: receive, count, look at the emission time. What every other client is compared with.
 *
 *     floor PORT STREAMS SECONDS RAMP_S TOKENS
 *
 * STREAMS connections are opened over RAMP_S seconds; each asks for TOKENS tokens again and again. After SECONDS the
 * process prints one line of JSON: events, lag in ms (of reads after the ramp), its own CPU time. One thread, epoll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_MAX = 1 << 20, LAGS_MAX = 8 << 20 };
static const char LAST[] = "data: [DONE]\n\n\r\n0\r\n\r\n";

static char request[1024];
static int request_len, epfd, port;
static long events_total, reads_total, streams_total;
static float *lags; /* ms */
static long lag_count;
static int64_t lag_from;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void ask(int fd) {
    if (send(fd, request, request_len, MSG_NOSIGNAL) != request_len) { perror("floor: send"); exit(1); }
    streams_total++;
}

static void start(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a)) { perror("floor: connect"); exit(1); }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &e);
    ask(fd);
}

/* The emission in the text: µs modulo 10^12. */
#define TEXT "\"text\":\" "
#define US_MODULUS 1000000000000L

static void receive(int fd) {
    static char buffer[READ_MAX + 1];
    ssize_t n = recv(fd, buffer, READ_MAX, MSG_DONTWAIT);
    int64_t now = now_ns();
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { fprintf(stderr, "floor: the server closed a connection\n"); exit(1); }
    buffer[n] = 0;
    reads_total++;
    for (char *at = buffer; (at = strstr(at, TEXT)); at += sizeof TEXT) {
        events_total++;
        int64_t late = (now / 1000 - atoll(at + sizeof TEXT - 1)) % US_MODULUS;
        if (late > US_MODULUS / 2) late -= US_MODULUS;
        if (now > lag_from && lag_count < LAGS_MAX) lags[lag_count++] = late / 1e3f;
    }
    if (n >= 21 && !memcmp(buffer + n - 21, LAST, 21)) ask(fd);
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double at(double q) { return lag_count ? lags[(long)(q * (lag_count - 1))] : -1; }

int main(int argc, char **argv) {
    if (argc < 6) { fprintf(stderr, "usage: floor PORT STREAMS SECONDS RAMP_S TOKENS\n"); return 64; }
    port = atoi(argv[1]);
    int streams = atoi(argv[2]), opened = 0;
    double ramp = atof(argv[4]);
    char body[256];
    int size = snprintf(body, sizeof body,
                        "{\"model\":\"base\",\"prompt\":[1,2,3],\"max_tokens\":%d,\"stream\":true,\"return_token_ids\":true,"
                        "\"ignore_eos\":true,\"stream_options\":{\"include_usage\":true}}", atoi(argv[5]));
    request_len = snprintf(request, sizeof request,
                           "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           "Content-Length: %d\r\n\r\n%s", size, body);
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r), r.rlim_cur = r.rlim_max, setrlimit(RLIMIT_NOFILE, &r);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    lags = malloc(sizeof *lags * LAGS_MAX);
    epfd = epoll_create1(0);
    int64_t begun = now_ns(), end = begun + (int64_t)(atof(argv[3]) * 1e9);
    lag_from = begun + (int64_t)((ramp + 0.5) * 1e9);
    struct epoll_event found[256];
    for (int64_t now; (now = now_ns()) < end;) {
        int due = ramp > 0 ? (int)((now - begun) / 1e9 / ramp * streams) + 1 : streams;
        for (int k = 0; opened < streams && opened < due && k < 16; k++, opened++) start();
        int n = epoll_wait(epfd, found, 256, opened < streams ? 1 : 100);
        for (int i = 0; i < n; i++) receive(found[i].data.fd);
    }
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double cpu = u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
    qsort(lags, lag_count, sizeof *lags, by_value);
    printf("{\"events\":%ld,\"reads\":%ld,\"streams\":%ld,\"cpu_s\":%.6f,\"lag_p50_ms\":%.4f,\"lag_p99_ms\":%.4f,"
           "\"lag_max_ms\":%.4f}\n", events_total, reads_total, streams_total, cpu, at(0.5), at(0.99), at(1));
    return 0;
}
