// SPDX-License-Identifier: Apache-2.0
/*
 * The agent inside the rig's Linux guest. It listens on vsock port 5000 and has a
 * child count to /run/counter ten times a second (state that goes on in time).
 * Once both are there it goes into the background; the init then says ready.
 *
 * One line, one command; any number of them on a connection. The answer is the
 * command's output and then a line ".STATUS".
 *
 *   echo TEXT        TEXT
 *   sh COMMAND       run by /bin/sh, both outputs
 *   dial PORT TEXT   connects to the host's PORT, sends TEXT and a newline
 *   fetch PORT       connects to the host's PORT, prints what it says until its end
 */
#define _GNU_SOURCE
#include <sys/socket.h> // before linux/vm_sockets.h, which needs it

#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PORT 5000

static void count(void)
{
	for (unsigned long n = 1;; n++) {
		FILE *f = fopen("/run/counter.new", "w");
		if (f) {
			fprintf(f, "%lu\n", n);
			fclose(f);
			rename("/run/counter.new", "/run/counter");
		}
		usleep(100000);
	}
}

static int shell(int conn, const char *command)
{
	int status = 0;
	pid_t pid = fork();
	if (pid == 0) {
		if (!freopen("/dev/null", "r", stdin) || dup2(conn, 1) < 0 || dup2(conn, 2) < 0)
			_exit(126);
		close(conn);
		signal(SIGCHLD, SIG_DFL);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return 126;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int connect_host(unsigned port)
{
	struct sockaddr_vm to = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port };
	int s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s >= 0 && !connect(s, (struct sockaddr *)&to, sizeof to))
		return s;
	perror("connect to the host");
	if (s >= 0)
		close(s);
	return -1;
}

static int fetch(int conn, const char *args)
{
	char buf[4096];
	ssize_t n = -1;
	int s = connect_host((unsigned)strtoul(args, NULL, 10));
	while (s >= 0 && (n = read(s, buf, sizeof buf)) > 0)
		if (write(conn, buf, (size_t)n) != n)
			break;
	if (s >= 0)
		close(s);
	return n != 0;
}

static int dial(char *args)
{
	char *text = args;
	int s = connect_host((unsigned)strtoul(args, &text, 10));
	if (s < 0)
		return 1;
	dprintf(s, "%s\n", *text ? text + 1 : text);
	close(s);
	return 0;
}

static void serve(int conn)
{
	char *line = NULL;
	size_t size = 0;
	ssize_t n;
	FILE *in = fdopen(dup(conn), "r");
	while (in && (n = getline(&line, &size, in)) > 0) {
		int status = 0;
		line[strcspn(line, "\n")] = 0;
		if (!strncmp(line, "echo ", 5))
			dprintf(conn, "%s\n", line + 5);
		else if (!strncmp(line, "sh ", 3))
			status = shell(conn, line + 3);
		else if (!strncmp(line, "dial ", 5))
			status = dial(line + 5);
		else if (!strncmp(line, "fetch ", 6))
			status = fetch(conn, line + 6);
		else
			status = 127;
		dprintf(conn, ".%d\n", status);
	}
}

int main(void)
{
	struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT };
	if (fork() == 0)
		count();
	int s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s < 0 || bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 16)) {
		perror("agent: vsock");
		return 1;
	}
	if (fork() != 0)
		return 0;
	setsid();
	for (;;) {
		int conn = accept4(s, NULL, NULL, SOCK_CLOEXEC);
		if (conn < 0)
			continue;
		if (fork() == 0) {
			close(s);
			serve(conn);
			_exit(0);
		}
		close(conn);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}
