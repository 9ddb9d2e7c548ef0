// SPDX-License-Identifier: Apache-2.0
/*
 * Streams whose every byte is checked, over TCP and vsock; the same program in the guest and beside it.
 *
 *   flow serve [-f FILE] ADDRESS        answers each stream in the way that its client asks for
 *   flow echo|up|down [-n STREAMS] [-b BYTES] [-p MS] [-s SECONDS] [-f FILE] ADDRESS
 *
 * echo: each stream sends BYTES (4096), waits until they came back, and MS more (0), and goes on. up: sends,
 * and is told in the end how much came. down: receives. All do so for SECONDS (10) or until SIGTERM, end what
 * is under way, and print "streams N rounds N least N bytes N us N" (least: the rounds of the slowest
 * stream). 0: every byte was right; 1: one was not, a stream broke, or one had nothing for 120 s.
 *
 * ADDRESS is tcp:HOST:PORT, vsock:CID:PORT, or unix:PATH:PORT for a port behind thaw's vsock socket. A server
 * takes any host or CID. FILE gets, twice a second, what would be printed; of a server
 * "open N closed N broken N bytes N". A server ends with status 1 at the first wrong byte.
 *
 * A stream starts with two bytes, mode and seed. Both directions are the same pattern from a place that
 * depends on the seed, so nobody has to keep what is to be sent or compared.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PATTERN = 65521, MAX_STREAMS = 512, STUCK_SECONDS = 120, HELLO = 2 };
#define FOR_EVER UINT64_MAX

struct stream {
	int fd;
	char mode; // 'e', 'u', 'd'; 0: the server waits for the hello
	uint8_t hello[HELLO];
	unsigned n_hello; // bytes of it that came
	uint64_t start;   // place in the pattern
	uint64_t tx, tx_limit, rx, rounds;
	uint64_t count; // up: what the server says in the end
	unsigned n_count;
	bool shut;       // up: all was sent
	uint64_t due_us; // echo: not 0: when the next round begins
	time_t moved;
};

static struct stream streams[MAX_STREAMS];
static struct pollfd polls[MAX_STREAMS + 1];
static unsigned n_streams;
static uint64_t n_closed, n_broken, n_bytes, bytes_per_round = 4096, pause_us;
static bool serving;
static const char *status_file;
static uint8_t pattern[2 * PATTERN];
static volatile sig_atomic_t stopped;

static void on_stop(int sig) { stopped = sig; }

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void die(const char *what, const struct stream *s)
{
	fprintf(stderr, "flow: %s: %s", what, strerror(errno));
	if (s)
		fprintf(stderr, " (stream %td, mode %c, sent %llu, received %llu)", s - streams, s->mode,
			(unsigned long long)s->tx, (unsigned long long)s->rx);
	fputc('\n', stderr);
	exit(1);
}

static void report(uint64_t us)
{
	uint64_t rounds = 0, least = n_streams ? FOR_EVER : 0;
	char tmp[256];
	if (status_file)
		snprintf(tmp, sizeof tmp, "%s.new", status_file);
	FILE *f = status_file ? fopen(tmp, "w") : stdout;
	if (!f)
		die("status file", NULL);
	for (unsigned i = 0; i < n_streams; i++) {
		rounds += streams[i].rounds;
		least = streams[i].rounds < least ? streams[i].rounds : least;
	}
	if (serving)
		fprintf(f, "open %u closed %llu broken %llu bytes %llu\n", n_streams,
			(unsigned long long)n_closed, (unsigned long long)n_broken,
			(unsigned long long)n_bytes);
	else
		fprintf(f, "streams %u rounds %llu least %llu bytes %llu us %llu\n", n_streams,
			(unsigned long long)rounds, (unsigned long long)least, (unsigned long long)n_bytes,
			(unsigned long long)us);
	if (!status_file)
		fflush(f);
	else if (fclose(f) || rename(tmp, status_file))
		die("status file", NULL);
}

union addr {
	struct sockaddr any;
	struct sockaddr_in tcp;
	struct sockaddr_vm vm;
	struct sockaddr_un un;
};

// Fills *a; its size, or 0.
static socklen_t parse_address(const char *text, union addr *a, unsigned *ret_port)
{
	const char *first = strchr(text, ':'), *last = strrchr(text, ':');
	char host[sizeof a->un.sun_path] = "";
	memset(a, 0, sizeof *a);
	if (!first || first == last || (size_t)(last - first) > sizeof host)
		return 0;
	memcpy(host, first + 1, (size_t)(last - first - 1));
	*ret_port = (unsigned)strtoul(last + 1, NULL, 10);
	if (!strncmp(text, "tcp:", 4)) {
		a->tcp =
			(struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)*ret_port) };
		return inet_pton(AF_INET, host, &a->tcp.sin_addr) == 1 ? sizeof a->tcp : 0;
	}
	if (!strncmp(text, "vsock:", 6)) {
		a->vm = (struct sockaddr_vm){ .svm_family = AF_VSOCK,
					      .svm_port = *ret_port,
					      .svm_cid = (unsigned)strtoul(host, NULL, 10) };
		return sizeof a->vm;
	}
	a->un.sun_family = AF_UNIX;
	memcpy(a->un.sun_path, host, sizeof host);
	return strncmp(text, "unix:", 5) ? 0 : sizeof a->un;
}

static void connect_one(struct stream *s, const char *address, char mode, unsigned n)
{
	union addr a;
	unsigned port;
	socklen_t size = parse_address(address, &a, &port);
	int one = 1;
	if (!size)
		die("address", NULL);
	s->fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->fd < 0 || connect(s->fd, &a.any, size))
		die("connect", NULL);
	if (a.any.sa_family == AF_INET)
		setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (a.any.sa_family == AF_UNIX) {
		char c = 0;
		dprintf(s->fd, "CONNECT %u\n", port);
		while (c != '\n')
			if (read(s->fd, &c, 1) != 1)
				die("CONNECT", NULL);
	}
	s->mode = mode;
	s->hello[0] = (uint8_t)mode;
	s->hello[1] = (uint8_t)n;
	s->start = s->hello[1] * 251;
	s->tx_limit = mode == 'u' ? FOR_EVER : mode == 'e' ? bytes_per_round : 0;
	s->moved = time(NULL);
	if (write(s->fd, s->hello, HELLO) != HELLO || fcntl(s->fd, F_SETFL, O_NONBLOCK))
		die("hello", s);
}

// false: the stream is over.
static bool receive_hello(struct stream *s)
{
	ssize_t n = read(s->fd, s->hello + s->n_hello, HELLO - s->n_hello);
	if (n < 0 && errno == EAGAIN)
		return true;
	if (n <= 0)
		return false;
	s->n_hello += (unsigned)n;
	if (s->n_hello < HELLO)
		return true;
	s->mode = (char)s->hello[0];
	s->start = s->hello[1] * 251;
	s->tx_limit = s->mode == 'd' ? FOR_EVER : 0;
	return s->mode == 'e' || s->mode == 'u' || s->mode == 'd';
}

// Reads and compares once. 1: came, 0: nothing now, -1: end or error (errno 0: end).
static int receive(struct stream *s)
{
	static uint8_t buf[PATTERN];
	ssize_t n = read(s->fd, buf, sizeof buf);
	errno = n == 0 ? 0 : errno;
	if (n <= 0)
		return n < 0 && errno == EAGAIN ? 0 : -1;
	if (!serving && s->mode == 'u') { // the server's count
		for (ssize_t i = 0; i < n; i++, s->n_count++)
			s->count |= (uint64_t)buf[i] << (8 * (s->n_count & 7));
		return 1;
	}
	if (memcmp(buf, pattern + (s->start + s->rx) % PATTERN, (size_t)n)) {
		errno = EBADMSG;
		die("WRONG BYTES", s);
	}
	s->rx += (uint64_t)n;
	n_bytes += (uint64_t)n;
	if (serving && s->mode == 'e')
		s->tx_limit = s->rx;
	return 1;
}

static int transmit(struct stream *s)
{
	uint64_t left = s->tx_limit - s->tx;
	ssize_t n = send(s->fd, pattern + (s->start + s->tx) % PATTERN, left < PATTERN ? left : PATTERN,
			 MSG_NOSIGNAL);
	if (n < 0)
		return errno == EAGAIN ? 0 : -1;
	s->tx += (uint64_t)n;
	if (s->mode != 'e')
		n_bytes += (uint64_t)n;
	return 1;
}

// The server's side of an end: a client of "up" that said all is told how much that was.
static bool served(struct stream *s, bool clean)
{
	if (clean && s->mode == 'u')
		for (unsigned i = 0; i < 8; i++)
			if (send(s->fd, &(uint8_t){ (uint8_t)(s->rx >> (8 * i)) }, 1, MSG_NOSIGNAL) != 1)
				clean = false;
	n_closed += clean;
	n_broken += !clean;
	return false;
}

// The client's side after something moved. false: the stream is done.
static bool go_on(struct stream *s, uint64_t now, bool over)
{
	if (s->mode == 'e' && s->rx == s->tx_limit) {
		if (!s->due_us) {
			s->rounds++;
			s->due_us = now + pause_us;
		}
		if (over)
			return false;
		if (now >= s->due_us) {
			s->tx_limit += bytes_per_round;
			s->due_us = 0;
			s->moved = time(NULL);
		}
	}
	if (s->mode == 'u' && over && !s->shut) {
		s->shut = true;
		s->tx_limit = s->tx;
		if (shutdown(s->fd, SHUT_WR))
			die("shutdown", s);
	}
	return !(s->mode == 'd' && over);
}

// One turn of one stream; false: it is done.
static bool turn(struct stream *s, short events, uint64_t now, bool over)
{
	int r = 0;
	if (!s->mode)
		return receive_hello(s) || served(s, false);
	if (events & POLLOUT && s->tx < s->tx_limit)
		r = transmit(s);
	if (r >= 0 && events & (POLLIN | POLLHUP | POLLERR))
		r = receive(s);
	if (r > 0)
		s->moved = time(NULL);
	if (serving)
		return r >= 0 || served(s, !errno);
	if (r < 0 && s->mode == 'u' && s->shut && !errno) {
		if (s->n_count != 8 || s->count != s->tx)
			die("the server has not got all", s);
		return false;
	}
	if (r < 0)
		die("the stream broke", s);
	if (time(NULL) - s->moved > STUCK_SECONDS) {
		errno = ETIMEDOUT;
		die("the stream is stuck", s);
	}
	return go_on(s, now, over);
}

static int listen_on(const char *address)
{
	union addr a;
	unsigned port;
	int one = 1;
	socklen_t size = parse_address(address, &a, &port);
	if (a.any.sa_family == AF_INET)
		a.tcp.sin_addr.s_addr = INADDR_ANY;
	if (a.any.sa_family == AF_VSOCK)
		a.vm.svm_cid = VMADDR_CID_ANY;
	int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (!size || fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
	    bind(fd, &a.any, size) || listen(fd, 128))
		die("listen", NULL);
	return fd;
}

static void accept_all(int fd)
{
	int one = 1, c;
	while (n_streams < MAX_STREAMS && (c = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		streams[n_streams++] = (struct stream){ .fd = c, .moved = time(NULL) };
	}
}

// Until all streams are done, or for ever.
static void run(int listener, uint64_t until_us, bool *done)
{
	uint64_t reported = 0;
	unsigned left = n_streams;
	while (serving || left) {
		uint64_t now = now_us();
		bool over = stopped || now >= until_us;
		for (unsigned i = 0; i < n_streams; i++)
			polls[i] = (struct pollfd){
				.fd = done[i] ? -1 : streams[i].fd,
				.events =
					(short)(POLLIN | (streams[i].tx < streams[i].tx_limit ? POLLOUT : 0))
			};
		polls[n_streams] = (struct pollfd){ .fd = listener, .events = POLLIN };
		if (poll(polls, n_streams + 1, over || pause_us ? 50 : 500) < 0 && errno != EINTR)
			die("poll", NULL);
		bool someone = polls[n_streams].revents;
		for (unsigned i = n_streams; i-- > 0;) {
			short events = polls[i].revents;
			if (done[i] || (serving && !events) || turn(&streams[i], events, now, over))
				continue;
			close(streams[i].fd);
			if (serving) {
				streams[i] = streams[--n_streams];
				polls[i] = polls[n_streams]; // seen already
			} else {
				done[i] = true;
				left--;
			}
		}
		if (someone)
			accept_all(listener);
		if (status_file && now - reported > 500000) {
			report(0);
			reported = now;
		}
	}
}

int main(int argc, char **argv)
{
	static bool done[MAX_STREAMS];
	unsigned n = 1, seconds = 10;
	int opt, listener = -1;
	while ((opt = getopt(argc, argv, "n:b:p:s:f:")) != -1) {
		unsigned long value = opt == 'f' || opt == '?' ? 0 : strtoul(optarg, NULL, 10);
		switch (opt) {
		case 'n': n = (unsigned)value; break;
		case 'b': bytes_per_round = value; break;
		case 'p': pause_us = value * 1000; break;
		case 's': seconds = (unsigned)value; break;
		case 'f': status_file = optarg; break;
		default: return 2;
		}
	}
	if (argc - optind != 2 || !n || n > MAX_STREAMS || !bytes_per_round) {
		fprintf(stderr, "usage: flow serve|echo|up|down [-n STREAMS] [-b BYTES] [-s SECONDS] [-f "
				"FILE] ADDRESS\n");
		return 2;
	}
	uint64_t x = 1;
	for (unsigned i = 0; i < PATTERN; i++) { // Knuth's MMIX generator
		x = x * 6364136223846793005u + 1442695040888963407u;
		pattern[i] = pattern[i + PATTERN] = (uint8_t)(x >> 56);
	}
	signal(SIGPIPE, SIG_IGN);
	const char *mode = argv[optind], *address = argv[optind + 1];
	serving = !strcmp(mode, "serve");
	if (serving) {
		listener = listen_on(address);
	} else {
		signal(SIGTERM, on_stop);
		for (; n_streams < n; n_streams++)
			connect_one(&streams[n_streams], address, mode[0], n_streams);
	}
	uint64_t from = now_us();
	run(listener, serving ? FOR_EVER : from + seconds * 1000000ull, done);
	uint64_t us = now_us() - from;
	if (status_file)
		report(us);
	status_file = NULL;
	report(us);
	return 0;
}
