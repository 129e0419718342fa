/* Load for one HTTP/1.1 server on one address, in an open or a closed loop; prints each request's times and fate as
 * JSON: [due, sent, done, fate], in seconds since the start.
 *
 * Open loop (-r): requests are due at times fixed beforehand, whatever the server does, and latency counts from then:
 * a server that stalls is charged for all that waited meanwhile. Closed loop (no -r): each connection sends its next
 * request when the last is answered. One thread and epoll; the pool grows while no connection is free, and what the
 * server closes is dialled again at once.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
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

#define MAX_HEAD 8192
#define MAX_HEADERS 16
#define MAX_BODIES 256
#define SWEEP_SECONDS 0.1

/* What became of a request, where it is not the status of an answer. */
enum { UNSENT = 0, CONNECT_ERROR = -1, BROKEN = -2, TIMED_OUT = -3 };

typedef struct {
    double due, sent, done; /* seconds since the start */
    int fate;
} Request;

typedef enum { CLOSED, DIALLING, IDLE, BUSY } State;

typedef struct Connection {
    int fd;
    State state;
    int request;             /* its index while BUSY */
    size_t written;          /* bytes of it that the kernel has taken */
    char head[MAX_HEAD + 1]; /* of the answer, up to its end */
    size_t head_length;
    bool is_head_complete, must_close;
    int status;
    long long unread; /* bytes of the body still to come; -1: until the server closes */
    struct Connection *next_idle;
} Connection;

typedef struct {
    char *bytes;
    size_t length;
} Message;

static double rate, timeout_seconds = 30, start;
static int total, most_connections = 64, pool_size, dialling, in_work, dials, next_request;
static bool is_poisson;
static unsigned short seed[3] = {0x330e, 1, 0};
static Message messages[MAX_BODIES];
static int message_count;
static Request *requests;
static Connection *pool;
static Connection *first_idle, *last_idle; /* used in turn, so that every connection works */
static struct sockaddr_in address;
static int poll_fd;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9 - start;
}

/* --- connections */

static void finish(int index, int fate) {
    requests[index].fate = fate;
    requests[index].done = now();
    in_work--;
}

static void push_idle(Connection *connection) {
    connection->state = IDLE;
    connection->next_idle = NULL;
    if (last_idle)
        last_idle->next_idle = connection;
    else
        first_idle = connection;
    last_idle = connection;
}

static Connection *pop_idle(void) {
    Connection *connection = first_idle;
    if (connection) {
        first_idle = connection->next_idle;
        if (!first_idle)
            last_idle = NULL;
    }
    return connection;
}

static void remove_idle(Connection *gone) {
    Connection *connection, *waiting = first_idle;
    first_idle = last_idle = NULL;
    while ((connection = waiting)) {
        waiting = connection->next_idle;
        if (connection != gone)
            push_idle(connection);
    }
}

static bool dial(Connection *connection) {
    int on = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connection->fd < 0)
        fail("socket: %s; is the limit of open files (ulimit -n) too low?", strerror(errno));
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    dials++;
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        close(connection->fd);
        connection->state = CLOSED;
        return false;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = connection};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, connection->fd, &event);
    connection->state = DIALLING;
    dialling++;
    return true;
}

static void hang_up(Connection *connection) {
    if (connection->state == IDLE)
        remove_idle(connection);
    if (connection->state == DIALLING)
        dialling--;
    close(connection->fd);
    connection->state = CLOSED;
}

static void redial(Connection *connection) {
    hang_up(connection);
    if (next_request < total)
        dial(connection);
}

/* Fail the oldest request that waits for a connection: there is none to be had. */
static void lose_waiting(void) {
    if (next_request < total && requests[next_request].due <= now()) {
        in_work++;
        requests[next_request].sent = now();
        finish(next_request++, CONNECT_ERROR);
    }
}

static Connection *closed_slot(void) {
    for (int i = 0; i < pool_size; i++)
        if (pool[i].state == CLOSED)
            return &pool[i];
    return pool_size < most_connections ? &pool[pool_size++] : NULL;
}

/* --- requests and answers */

static void end_answer(Connection *connection) {
    bool is_whole = connection->written == messages[connection->request % message_count].length;
    finish(connection->request, connection->status);
    if (connection->must_close || !is_whole)
        redial(connection);
    else
        push_idle(connection);
}

static void break_off(Connection *connection) {
    if (connection->state == BUSY)
        finish(connection->request, BROKEN);
    redial(connection);
}

static void write_request(Connection *connection) {
    const Message *message = &messages[connection->request % message_count];
    while (connection->written < message->length) {
        ssize_t count = send(connection->fd, message->bytes + connection->written,
                             message->length - connection->written, MSG_NOSIGNAL);
        if (count < 0) {
            /* After EPIPE or ECONNRESET an answer may still be there to read. */
            return;
        }
        connection->written += count;
    }
}

static void start_request(Connection *connection) {
    Request *request = &requests[next_request];
    connection->state = BUSY;
    connection->request = next_request++;
    connection->written = connection->head_length = 0;
    connection->is_head_complete = connection->must_close = false;
    in_work++;
    request->sent = now();
    if (!rate)
        request->due = request->sent;
    write_request(connection);
}

static const char *find_header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':')
            return line + 3 + length + strspn(line + 3 + length, " ");
    return NULL;
}

/* Takes what belongs to the head; false if this cannot be an answer that we understand. */
static bool read_head(Connection *connection, const char **data, size_t *length) {
    size_t room = MAX_HEAD - connection->head_length, before = connection->head_length;
    size_t taken = *length < room ? *length : room;
    memcpy(connection->head + before, *data, taken);
    connection->head[before + taken] = 0;
    connection->head_length += taken;
    char *end = strstr(connection->head + (before < 3 ? 0 : before - 3), "\r\n\r\n");
    if (!end) {
        *length -= taken;
        *data += taken;
        return *length == 0;
    }
    size_t head = end + 4 - connection->head;
    *data += head - before;
    *length -= head - before;
    end[2] = 0;
    if (strncmp(connection->head, "HTTP/1.", 7) || find_header(connection->head, "transfer-encoding"))
        return false;
    const char *size = find_header(connection->head, "content-length");
    const char *reuse = find_header(connection->head, "connection");
    connection->status = atoi(connection->head + 9);
    connection->unread = size ? atoll(size) : -1;
    connection->must_close = !size || (reuse && !strncasecmp(reuse, "close", 5));
    connection->is_head_complete = true;
    return connection->status >= 100;
}

/* False once the connection is no longer in the state in which these bytes were expected. */
static bool take(Connection *connection, const char *data, size_t length) {
    if (connection->state != BUSY)
        return false;
    if (!connection->is_head_complete && !read_head(connection, &data, &length))
        return false;
    if (!connection->is_head_complete || connection->unread < 0)
        return true;
    if ((long long)length > connection->unread)
        return false;
    connection->unread -= length;
    if (connection->unread == 0)
        end_answer(connection);
    return true;
}

/* Edge-triggered: to the end of the answer, and on where the server has closed or spoken out of turn. */
static void read_answer(Connection *connection, bool is_closed) {
    static char data[65536];
    bool is_expected = connection->state == BUSY;
    while (connection->state == BUSY || (connection->state == IDLE && (is_closed || !is_expected))) {
        ssize_t count = recv(connection->fd, data, sizeof data, 0);
        if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (count == 0 && connection->state == BUSY && connection->is_head_complete && connection->unread < 0) {
            end_answer(connection);
            return;
        }
        if (count <= 0 || !take(connection, data, count)) {
            break_off(connection);
            return;
        }
    }
}

static void handle(Connection *connection, uint32_t events) {
    bool is_closed = events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP);
    if (connection->state == DIALLING) {
        if (is_closed) {
            hang_up(connection);
            lose_waiting();
        } else if (events & EPOLLOUT) {
            dialling--;
            push_idle(connection);
        }
    } else if (connection->state != CLOSED) {
        if (connection->state == BUSY)
            write_request(connection);
        if (is_closed || events & EPOLLIN)
            read_answer(connection, is_closed);
    }
}

/* --- the schedule */

/* Whether more requests are due than connections are being made; in a closed loop all are due. */
static bool is_short_of_connections(double time) {
    int newest = next_request + dialling;
    return newest < total && requests[newest].due <= time;
}

static void send_due(double time) {
    while (next_request < total && requests[next_request].due <= time) {
        Connection *connection = pop_idle();
        if (!connection)
            break;
        start_request(connection);
    }
    Connection *slot;
    while (is_short_of_connections(time) && (slot = closed_slot()))
        if (!dial(slot))
            lose_waiting();
}

static void give_up_late(void) {
    double limit = now() - timeout_seconds;
    for (int i = 0; i < pool_size; i++)
        if (pool[i].state == BUSY && requests[pool[i].request].due < limit) {
            finish(pool[i].request, TIMED_OUT);
            redial(&pool[i]);
        }
    while (next_request < total && rate && requests[next_request].due < limit) {
        in_work++;
        requests[next_request].sent = now();
        finish(next_request++, TIMED_OUT);
    }
}

static void run(void) {
    struct epoll_event events[256];
    double next_sweep = SWEEP_SECONDS;
    while (next_request < total || in_work) {
        double time = now();
        send_due(time);
        double due = next_request < total ? requests[next_request].due : INFINITY;
        /* What is due already waits for a connection, of which epoll tells. */
        double wait = fmax(0, (due > time && due < next_sweep ? due : next_sweep) - now());
        struct timespec limit = {.tv_sec = wait, .tv_nsec = (wait - floor(wait)) * 1e9};
        int count = epoll_pwait2(poll_fd, events, 256, &limit, NULL);
        for (int i = 0; i < count; i++)
            handle(events[i].data.ptr, events[i].events);
        if (now() >= next_sweep) {
            give_up_late();
            next_sweep = now() + SWEEP_SECONDS;
        }
    }
}

static void plan(void) {
    double due = 0;
    requests = calloc(total, sizeof *requests);
    for (int i = 0; i < total && rate; i++) {
        requests[i].due = due;
        due = is_poisson ? due - log(1 - erand48(seed)) / rate : (i + 1) / rate;
    }
}

/* --- start and end */

static Message build_message(const char *path, const char *host, const char *target, char **headers, int count) {
    FILE *file = fopen(path, "rb");
    if (!file)
        fail("%s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *bytes = malloc(size + MAX_HEAD);
    int length = snprintf(bytes, MAX_HEAD, "POST %s HTTP/1.1\r\nhost: %s\r\ncontent-length: %ld\r\n", target, host, size);
    for (int i = 0; i < count && length < MAX_HEAD; i++)
        length += snprintf(bytes + length, MAX_HEAD - length, "%s\r\n", headers[i]);
    if (length + 2 >= MAX_HEAD)
        fail("the headers are longer than %d bytes", MAX_HEAD);
    memcpy(bytes + length, "\r\n", 2);
    if (fread(bytes + length + 2, 1, size, file) != (size_t)size)
        fail("%s cannot be read", path);
    fclose(file);
    return (Message){bytes, length + 2 + size};
}

static void print_result(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f, \"dials\": %d,\n", now(), cpu, dials);
    printf("\"requests\": [");
    for (int i = 0; i < total; i++) {
        const Request *request = &requests[i];
        printf("%s\n[%.6f, %.6f, %.6f, %d]", i ? "," : "", request->due, request->sent, request->done, request->fate);
    }
    printf("]}\n");
}

int main(int count, char **arguments) {
    char *headers[MAX_HEADERS], *bodies[MAX_BODIES], host[64], target[1024] = "/";
    int header_count = 0, option, port;
    while ((option = getopt(count, arguments, "r:n:c:t:s:pH:b:")) != -1) {
        switch (option) {
        case 'r': rate = atof(optarg); break;
        case 'n': total = atoi(optarg); break;
        case 'c': most_connections = atoi(optarg); break;
        case 't': timeout_seconds = atof(optarg); break;
        case 's': seed[1] = atoi(optarg); break;
        case 'p': is_poisson = true; break;
        case 'H':
            if (header_count == MAX_HEADERS)
                fail("more than %d headers", MAX_HEADERS);
            headers[header_count++] = optarg;
            break;
        case 'b':
            if (message_count == MAX_BODIES)
                fail("more than %d bodies", MAX_BODIES);
            bodies[message_count++] = optarg;
            break;
        default: total = 0;
        }
    }
    if (total < 1 || most_connections < 1 || !message_count || optind + 1 != count ||
        sscanf(arguments[optind], "http://%63[^:]:%d%1023s", host, &port, target) < 2)
        fail("usage: %s -n REQUESTS [-r PER_SECOND [-p (Poisson)] [-s SEED]] [-c MOST_CONNECTIONS] [-t TIMEOUT_SECONDS]\n"
             "    [-H 'name: value']… -b BODY_FILE… http://ADDRESS:PORT/PATH",
             arguments[0]);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail("%s is not an IPv4 address", host);
    for (int i = 0; i < message_count; i++)
        messages[i] = build_message(bodies[i], host, target, headers, header_count);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    pool = calloc(most_connections, sizeof *pool);
    poll_fd = epoll_create1(0);
    prctl(PR_SET_TIMERSLACK, 1); /* else every wait is 50 µs longer */
    plan();
    start = now();
    run();
    print_result();
    return 0;
}
