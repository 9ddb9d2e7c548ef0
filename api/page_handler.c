// SPDX-License-Identifier: Apache-2.0
// thaw-page-handler: loads the memory of restored VMs from one memory file, by Firecracker's
// protocol, for VMs of thaw (clone option page_handler) as for Firecracker's own.
//
// A VM process connects and sends one message: a JSON array of regions with its userfaultfd
// beside it. There is no reply, and the connection is of no use from then on. The VM lives as
// long as its process, which SO_PEERCRED names. One thread, one loop; the work on a
// userfaultfd is in snapshot/page_handler.h. What comes from VM processes is hostile, so it is
// confined (snapshot/sandbox.h) before the first connection is taken.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "api/json.h"
#include "api/listen.h"
#include "microvm/base/log.h"
#include "microvm/base/loop.h"
#include "microvm/base/util.h"
#include "snapshot/page_handler.h"
#include "snapshot/sandbox.h"

enum {
	MAX_VMS = 4096,
	FDS_PER_VM = 3,
	FDS_OF_OURS = 16,
	MAX_MESSAGE_BYTES = 16384,
	MAX_MESSAGE_FDS = 4, // more than the one that is right, to say so
};

struct peer {              // a VM, or what has yet to become one
	int socket, pidfd; // socket -1: its message came
	pid_t pid;
	struct mv_watch socket_watch, uffd_watch, pid_watch;
	struct ph_vm vm;
};

static struct {
	struct mv_loop loop;
	struct ph_source source;
	struct mv_watch listener;
	unsigned n_peers, max_peers;
} h;

static void peer_end(struct peer *p, const char *why)
{
	mv_log(MV_INFO, "VM process %d: %s; %llu faults, %llu pages copied, %llu removed", (int)p->pid, why,
	       (unsigned long long)p->vm.faults, (unsigned long long)p->vm.pages_copied,
	       (unsigned long long)p->vm.pages_removed);
	mv_watch_del(&p->socket_watch);
	mv_watch_del(&p->uffd_watch);
	mv_watch_del(&p->pid_watch);
	mv_close(&p->socket);
	mv_close(&p->pidfd);
	ph_vm_fini(&p->vm);
	free(p);
	if (h.n_peers-- == h.max_peers)
		mv_watch_mod(&h.listener, EPOLLIN);
}

static void on_process_end(void *arg, uint32_t events)
{
	(void)events;
	peer_end(arg, "ended");
}

static void on_uffd(void *arg, uint32_t events)
{
	struct peer *p = arg;
	int r = events & EPOLLERR ? -EINVAL : ph_vm_serve(&p->vm, &h.source); // made blocking: not by us
	if (r)
		peer_end(p, r == -ESRCH ? "ended" : strerror(-r));
}

// --- the message ---

// Older senders lack page_size; page_size_kib is in bytes, too.
static int parse_region(js *o, struct ph_region *ret_region, struct mv_err *err)
{
	int64_t hva = js_int(o, "base_host_virt_addr", -1), size = js_int(o, "size", -1);
	int64_t offset = js_int(o, "offset", -1);
	int64_t page = js_int(o, "page_size", js_int(o, "page_size_kib", mv_host_page_bytes()));
	if (hva < 0 || size < 0 || offset < 0)
		return mv_fail(err, EINVAL, "a region lacks base_host_virt_addr, size or offset");
	if (page != mv_host_page_bytes())
		return mv_fail(err, EINVAL, "pages of %lld bytes; only this host's, of %u, are possible",
			       (long long)page, mv_host_page_bytes());
	*ret_region = (struct ph_region){ (uint64_t)hva, (uint64_t)size, (uint64_t)offset };
	return 0;
}

static int parse_regions(const char *text, size_t len, struct ph_region region[PH_MAX_REGIONS],
			 unsigned *ret_n, struct mv_err *err)
{
	struct api_err e;
	js *list = js_parse(text, len, &e);
	size_t n = js_len(list);
	int r = 0;
	if (!list)
		r = mv_fail(err, EINVAL, "%s", e.msg);
	else if (!n || n > PH_MAX_REGIONS)
		r = mv_fail(err, EINVAL, "not an array of 1 to %u regions", PH_MAX_REGIONS);
	for (size_t i = 0; !r && i < n; i++)
		r = parse_region(js_at(list, i), &region[i], err);
	js_free(list);
	*ret_n = (unsigned)n;
	return r;
}

// All descriptors that came are taken out of the message; *ret_fd is the one that should be there.
static int take_fd(struct msghdr *m, int *ret_fd, struct mv_err *err)
{
	unsigned n = 0;
	int fd;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; at + sizeof fd <= c->cmsg_len - CMSG_LEN(0); at += sizeof fd) {
			memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
			if (n++)
				close(fd);
			else
				*ret_fd = fd;
		}
	}
	if (n == 1 && !(m->msg_flags & MSG_CTRUNC))
		return 0;
	return mv_fail(err, EINVAL, "%s descriptors came with the message instead of one userfaultfd",
		       n ? "several" : "no");
}

static int receive(struct peer *p, struct mv_err *err)
{
	static char text[MAX_MESSAGE_BYTES];
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * MAX_MESSAGE_FDS)];
	struct iovec iov = { text, sizeof text };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
	};
	struct ph_region region[PH_MAX_REGIONS];
	unsigned n_regions;
	MV_FD uffd = -1;
	ssize_t n = recvmsg(p->socket, &m, MSG_CMSG_CLOEXEC);
	if (n <= 0)
		return mv_fail(err, n ? errno : EPIPE, "%s", n ? strerror(errno) : "it sent nothing");
	int r = take_fd(&m, &uffd, err);
	if (!r && n == sizeof text)
		r = mv_fail(err, EMSGSIZE, "%d bytes or more", MAX_MESSAGE_BYTES);
	r = r ? r : parse_regions(text, (size_t)n, region, &n_regions, err);
	r = r ? r : ph_vm_init(&p->vm, &h.source, region, n_regions, uffd, err);
	if (!r)
		(void)MV_TAKE_FD(uffd);
	return r;
}

static void on_message(void *arg, uint32_t events)
{
	struct peer *p = arg;
	struct mv_err err = { 0 };
	uint64_t bytes = 0;
	(void)events;
	int r = receive(p, &err);
	if (r == -EAGAIN || r == -EINTR)
		return;
	if (!r && (r = mv_watch_add(&h.loop, &p->uffd_watch, p->vm.uffd, EPOLLIN, on_uffd, p)))
		mv_fail(&err, -r, "event loop: %s", strerror(-r));
	if (r) {
		mv_log(MV_ERROR, "VM process %d: bad message: %s", (int)p->pid, err.msg);
		peer_end(p, "refused");
		return;
	}
	mv_watch_del(&p->socket_watch);
	mv_close(&p->socket);
	for (unsigned i = 0; i < p->vm.n_regions; i++)
		bytes += p->vm.region[i].size_bytes;
	mv_log(MV_INFO, "VM process %d: %u regions, %llu MiB", (int)p->pid, p->vm.n_regions,
	       (unsigned long long)(bytes >> 20));
}

// --- connections ---

static void on_connection(void *arg, uint32_t events)
{
	struct ucred who = { 0 };
	socklen_t len = sizeof who;
	(void)arg;
	(void)events;
	MV_FD fd = accept4(h.listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len))
		return;
	struct peer *p = calloc(1, sizeof *p);
	if (!p) {
		mv_log(MV_ERROR, "no memory for another VM");
		return;
	}
	p->socket = MV_TAKE_FD(fd);
	p->pid = who.pid;
	p->vm.uffd = -1;
	if (++h.n_peers == h.max_peers)
		mv_watch_mod(&h.listener, 0); // the others wait in the queue
	mv_log(MV_INFO, "VM process %d: connected, user %u, group %u", (int)who.pid, who.uid, who.gid);
	// A process that is not seen from here (another PID namespace) ends with -ESRCH at some time.
	p->pidfd = who.pid > 0 ? (int)syscall(SYS_pidfd_open, who.pid, 0) : -1;
	int r = who.pid > 0 && p->pidfd < 0 ? -errno : 0;
	if (!r && p->pidfd >= 0)
		r = mv_watch_add(&h.loop, &p->pid_watch, p->pidfd, EPOLLIN, on_process_end, p);
	r = r ? r : mv_watch_add(&h.loop, &p->socket_watch, p->socket, EPOLLIN, on_message, p);
	if (r)
		peer_end(p, strerror(-r));
}

static void on_signal(int signal)
{
	(void)signal;
	mv_loop_stop(&h.loop);
}

static void set_limits(void)
{
	struct rlimit l = { 1024, 1024 };
	getrlimit(RLIMIT_NOFILE, &l);
	l.rlim_cur = l.rlim_max;
	setrlimit(RLIMIT_NOFILE, &l);
	getrlimit(RLIMIT_NOFILE, &l);
	rlim_t n = l.rlim_cur > FDS_OF_OURS ? (l.rlim_cur - FDS_OF_OURS) / FDS_PER_VM : 0;
	h.max_peers = n < 1 ? 1 : n < MAX_VMS ? (unsigned)n : MAX_VMS;
}

// Who is confined can't remove its socket in the end, so a child that knows nothing else does: when it
// is sent a byte. When we are killed it just ends, since then nothing was said. *ret_fd: to speak to it.
static int start_remover(const char *path, int *ret_fd, struct mv_err *err)
{
	int pair[2];
	char byte;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return mv_fail(err, errno, "socketpair: %s", strerror(errno));
	pid_t pid = fork();
	if (!pid) {
		signal(SIGTERM, SIG_IGN); // to the whole group
		signal(SIGINT, SIG_IGN);
		close(pair[0]);
		if (read(pair[1], &byte, 1) == 1)
			unlink(path);
		_exit(0);
	}
	close(pair[1]);
	signal(SIGPIPE, SIG_IGN); // should it be gone
	*ret_fd = pair[0];
	return pid < 0 ? mv_fail(err, errno, "fork: %s", strerror(errno)) : 0;
}

static void remove_socket(int remover_fd)
{
	char byte = 0;
	if (write(remover_fd, &byte, 1) != 1)
		mv_log(MV_WARN, "the socket stays behind: %s", strerror(errno));
	while (read(remover_fd, &byte, 1) < 0 && errno == EINTR) // until it has ended
		;
}

// A table of the JSON library is seeded from a file, once.
static void seed_json(void) { js_free(js_object()); }

static int serve(int listen_fd, struct mv_err *err)
{
	seed_json();
	int r = sandbox_drop_rights(err);
	r = r ? r : sandbox_page_handler(listen_fd, err);
	if (r)
		return r;
	if (sandbox_lacks_filter())
		mv_log(MV_WARN, "no system call filter: %s", sandbox_lacks_filter());
	r = mv_watch_add(&h.loop, &h.listener, listen_fd, EPOLLIN, on_connection, NULL);
	r = r ? r : mv_loop_run(&h.loop);
	return r ? mv_fail(err, -r, "event loop: %s", strerror(-r)) : 0;
}

static int run(const char *socket_path, const char *memory_path, struct mv_err *err)
{
	struct sigaction end = { .sa_handler = on_signal };
	MV_FD fd = -1;
	MV_FD remover_fd = -1;
	int r = start_remover(socket_path, &remover_fd, err); // while there are no descriptors to inherit
	r = r ? r : ph_source_open(memory_path, &h.source, err);
	if (!r && (r = mv_loop_init(&h.loop)))
		mv_fail(err, -r, "event loop: %s", strerror(-r));
	if (!r) // before the socket is there, so that it never stays behind
		r = sigaction(SIGTERM, &end, NULL) || sigaction(SIGINT, &end, NULL)
			    ? mv_fail(err, errno, "signals: %s", strerror(errno))
			    : listen_unix(socket_path, &fd, err);
	if (r)
		return r;
	mv_log(MV_INFO, "%s: %llu MiB, %s; listens on %s", memory_path,
	       (unsigned long long)(h.source.memory_bytes >> 20), h.source.index.entry ? "compressed" : "raw",
	       socket_path);
	r = serve(fd, err);
	remove_socket(remover_fd);
	return r;
}

int main(int argc, char **argv)
{
	struct mv_err err = { 0 };
	if (argc == 2 && !strcmp(argv[1], "--version")) {
		puts("thaw-page-handler " THAW_VERSION);
		return 0;
	}
	bool help = argc == 2 && !strcmp(argv[1], "--help");
	if (argc != 3 || argv[1][0] == '-') {
		fputs("usage: thaw-page-handler SOCKET MEMORY-FILE\n"
		      "Loads the memory of VMs that are restored with this page handler (thaw clone\n"
		      "--page-handler SOCKET, or Firecracker's backend Uffd) from a raw or compressed\n"
		      "memory file. Their guests hang when it ends.\n",
		      help ? stdout : stderr);
		return help ? 0 : 2;
	}
	mv_log_init("thaw-page-handler", MV_INFO);
	set_limits();
	int r = run(argv[1], argv[2], &err);
	if (r)
		mv_log(MV_ERROR, "%s", err.msg);
	return r ? 1 : 0;
}
