// SPDX-License-Identifier: Apache-2.0
#include "devices/thread.h"

#include <signal.h>
#include <string.h>

#include "microvm/base/log.h"

static void *thread_main(void *arg)
{
	struct vio_thread *t = arg;
	int r = mv_loop_run(&t->loop);
	if (r)
		mv_log(MV_ERROR, "%s: event loop of a queue: %s", t->dev->name, strerror(-r));
	return NULL;
}

int vio_thread_start(struct vio_thread *t, const struct vio_dev *d, const char *name, struct mv_err *err)
{
	sigset_t all, old;
	if (t->running)
		return 0;
	t->dev = d;
	sigfillset(&all); // signals are for the others
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int r = pthread_create(&t->thread, NULL, thread_main, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return mv_fail(err, r, "%s: cannot start a thread: %s; raise the limit of pids", d->name,
			       strerror(r));
	pthread_setname_np(t->thread, name);
	t->running = true;
	return 0;
}

void vio_thread_stop(struct vio_thread *t)
{
	if (!t->running)
		return;
	mv_loop_stop(&t->loop);
	pthread_join(t->thread, NULL);
	t->running = false;
}
