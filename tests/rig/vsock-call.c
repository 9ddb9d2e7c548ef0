// SPDX-License-Identifier: Apache-2.0
/*
 * The host's side of a guest's vsock, for scripts:
 *
 *   vsock-call [-t SECONDS] [-p PORT] PATH COMMAND        asks the guest's agent
 *   vsock-call [-t SECONDS] [-p PORT] vsock:CID COMMAND   asks it by the host's own vsock (vhost-vsock)
 *   vsock-call [-t SECONDS] -l PATH                       takes one connection
 *
 * The first connects to the Unix socket PATH, says CONNECT PORT (5000), reads
 * "OK <port>", sends COMMAND, prints the answer and ends with its status (the
 * last line ".STATUS"; see agent.c). The second listens on PATH (for a guest
 * that connects out: PATH_PORT) and prints what comes until the end. Status
 * 124: out of time, 125: no connection or a broken one. Default time: 30 s.
 */
#define _GNU_SOURCE
#include <sys/socket.h> // before linux/vm_sockets.h, which needs it

#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

static void late(int sig)
{
	static const char text[] = "vsock-call: out of time\n";
	(void)sig;
	if (write(2, text, sizeof text - 1) < 0)
		_exit(125);
	_exit(124);
}

static int die(const char *what)
{
	fprintf(stderr, "vsock-call: %s\n", what);
	return 125;
}

static int take_one(int s, const struct sockaddr_un *a)
{
	char buf[4096];
	ssize_t n;
	unlink(a->sun_path);
	if (bind(s, (const struct sockaddr *)a, sizeof *a) || listen(s, 1))
		return die("cannot listen");
	int c = accept(s, NULL, NULL);
	if (c < 0)
		return die("cannot accept");
	while ((n = read(c, buf, sizeof buf)) > 0)
		fwrite(buf, 1, (size_t)n, stdout);
	unlink(a->sun_path);
	return n < 0 ? die("the connection broke") : 0;
}

// cid: 0, or of a guest behind vhost-vsock, which needs no CONNECT.
static int ask(int s, const struct sockaddr_un *a, unsigned cid, unsigned port, const char *command)
{
	char *line = NULL;
	size_t size = 0;
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
	FILE *in = fdopen(dup(s), "r");
	if (!in || (cid ? connect(s, (const struct sockaddr *)&vm, sizeof vm)
			: connect(s, (const struct sockaddr *)a, sizeof *a)))
		return die("cannot connect");
	if (!cid)
		dprintf(s, "CONNECT %u\n", port);
	if (!cid && (getline(&line, &size, in) < 0 || strncmp(line, "OK ", 3) != 0))
		return die("refused");
	dprintf(s, "%s\n", command);
	while (getline(&line, &size, in) > 0) {
		if (line[0] == '.')
			return atoi(line + 1);
		fputs(line, stdout);
		fflush(stdout);
	}
	return die("no end of the answer");
}

int main(int argc, char **argv)
{
	int opt, listening = 0;
	unsigned seconds = 30, port = 5000, cid = 0;
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	while ((opt = getopt(argc, argv, "t:p:l")) != -1) {
		if (opt == 't')
			seconds = (unsigned)atoi(optarg);
		else if (opt == 'p')
			port = (unsigned)atoi(optarg);
		else if (opt == 'l')
			listening = 1;
		else
			return 125;
	}
	if (argc - optind != 2 - listening || strlen(argv[optind]) >= sizeof a.sun_path)
		return die("wrong arguments");
	strcpy(a.sun_path, argv[optind]);
	signal(SIGALRM, late);
	signal(SIGPIPE, SIG_IGN);
	alarm(seconds);
	if (!strncmp(a.sun_path, "vsock:", 6))
		cid = (unsigned)atoi(a.sun_path + 6);
	int s = socket(cid ? AF_VSOCK : AF_UNIX, SOCK_STREAM, 0);
	if (s < 0)
		return die("no socket");
	return listening ? take_one(s, &a) : ask(s, &a, cid, port, argv[optind + 1]);
}
