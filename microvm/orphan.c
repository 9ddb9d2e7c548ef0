// SPDX-License-Identifier: Apache-2.0
#include "microvm/orphan.h"

#include <errno.h>
#include <sys/socket.h>

#include "microvm/base/log.h"
#include "microvm/base/util.h"

static void on_late(void *arg)
{
	struct orphan *o = arg;
	mv_log(MV_WARN, "no daemon came for this VM within %u s: it ends", o->timeout_s);
	o->late(o->arg);
}

static void on_connect(void *arg, uint32_t events)
{
	struct orphan *o = arg;
	struct ucred peer;
	socklen_t len = sizeof peer;
	(void)events;
	// cppcheck-suppress nullPointer ; accept(2) allows it
	int fd = accept4(o->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return; // it went again, or comes again
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) || peer.uid != geteuid()) {
		mv_log(MV_ERROR, "another user's process wanted to have this VM");
		close(fd);
		return;
	}
	mv_watch_del(&o->watch);
	o->connected(o->arg, fd);
}

void orphan_init(struct orphan *o, void (*connected)(void *arg, int fd), void (*late)(void *arg), void *arg)
{
	*o = (struct orphan){ .listen_fd = -1, .connected = connected, .late = late, .arg = arg };
}

void orphan_fini(struct orphan *o)
{
	orphan_end(o);
	mv_watch_del(&o->watch);
	mv_close(&o->listen_fd);
}

int orphan_begin(struct orphan *o, struct mv_loop *l)
{
	int listens = 0, r = 0;
	socklen_t len = sizeof listens;
	if (!o->timeout_s || getsockopt(o->listen_fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) || !listens)
		return -ENOENT;
	if (!o->waits) {
		r = mv_timer_init(l, &o->timer, on_late, o);
		r = r ? r : mv_timer_arm(&o->timer, o->timeout_s * 1000000000ull);
	}
	o->waits = !r;
	o->ever = true;
	return r ? r : mv_watch_add(l, &o->watch, o->listen_fd, EPOLLIN, on_connect, o);
}

void orphan_end(struct orphan *o)
{
	if (o->waits)
		mv_timer_fini(&o->timer);
	o->waits = false;
}
