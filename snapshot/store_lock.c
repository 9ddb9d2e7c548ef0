// SPDX-License-Identifier: Apache-2.0
// Theory of operation. A lock of flock() or F_OFD_SETLK belongs to the open file, so a child has it from its
// clone to its exec, close-on-exec or not; when its parent is killed in that time, the next daemon finds the
// store locked by nobody. A lock of F_SETLK belongs to the process, but goes when the process closes any
// descriptor of that file, and daemons open files that clients name. So a thread has the lock's descriptor in
// a table of descriptors of its own (CLONE_FILES undone): a child is given a copy of the table of the thread
// that starts it, and this one starts none.
#include "snapshot/store_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "microvm/base/util.h"

struct store_lock {
	pthread_t thread;
	sem_t told, dropped;
	int root_fd, result;
	struct mv_err err;
};

static int take(int root_fd, struct mv_err *err)
{
	if (unshare(CLONE_FILES))
		return mv_fail(err, errno, "cannot lock it: %s", strerror(errno));
	int fd = openat(root_fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
	if (fd < 0)
		return mv_fail(err, errno, "cannot open the file lock: %s", strerror(errno));
	// What else the table was copied with must not live on here.
	if (dup2(fd, 0) < 0 || close_range(1, ~0u, 0) || flock(0, LOCK_EX | LOCK_NB)) {
		if (errno == EWOULDBLOCK)
			return mv_fail(err, EBUSY,
				       "another daemon uses it; stop that one or choose another folder");
		return mv_fail(err, errno, "cannot lock it: %s", strerror(errno));
	}
	return 0;
}

static void wait_for(sem_t *s)
{
	while (sem_wait(s)) // EINTR
		;
}

static void *hold(void *arg)
{
	struct store_lock *l = arg;
	l->result = take(l->root_fd, &l->err);
	sem_post(&l->told);
	if (!l->result)
		wait_for(&l->dropped);
	close_range(0, ~0u, 0); // a thread is joined before the kernel closes its files
	return NULL;
}

static void end(struct store_lock *l)
{
	sem_post(&l->dropped);
	pthread_join(l->thread, NULL);
	sem_destroy(&l->told);
	sem_destroy(&l->dropped);
	free(l);
}

int store_lock_take(int root_fd, struct store_lock **ret_lock, struct mv_err *err)
{
	struct store_lock *l = calloc(1, sizeof *l);
	if (!l)
		return mv_fail(err, ENOMEM, "out of memory");
	l->root_fd = root_fd;
	sem_init(&l->told, 0, 0);
	sem_init(&l->dropped, 0, 0);
	int r = pthread_create(&l->thread, NULL, hold, l);
	if (r) {
		free(l);
		return mv_fail(err, r, "cannot lock it: no thread: %s", strerror(r));
	}
	wait_for(&l->told);
	r = l->result;
	if (r) {
		if (err)
			*err = l->err;
		end(l);
		return r;
	}
	*ret_lock = l;
	return 0;
}

void store_lock_drop(struct store_lock **lock)
{
	if (*lock)
		end(*lock);
	*lock = NULL;
}
