// SPDX-License-Identifier: Apache-2.0
#include "api/spawner.h"

#include "api/spawn.h"
#include "api/vm.h"
#include "microvm/base/util.h"

static void run(struct worker_job *job)
{
	struct spawn_job *j = MV_CONTAINER(job, struct spawn_job, job);
	if (spawn_vmm(j->s->vmm_path, j->theirs, j->cgroup_fd, &j->pidfd, &j->pid, &j->err))
		j->pid = 0;
}

static void done(struct worker_job *job)
{
	struct spawn_job *j = MV_CONTAINER(job, struct spawn_job, job);
	struct server *s = j->s;
	mv_close(&j->theirs);
	j->done(j);
	if (!s->spawner.n_jobs)
		vm_reap_strays(s); // which waited: it can't tell these processes from strays
}

int spawner_init(struct server *s, struct mv_err *err) { return worker_init(&s->spawner, &s->loop, err); }

void spawner_fini(struct server *s) { worker_fini(&s->spawner); }

void spawner_start(struct spawn_job *j)
{
	j->job = (struct worker_job){ .run = run, .done = done };
	j->pid = 0;
	j->pidfd = -1;
	j->err = (struct mv_err){ 0 };
	worker_add(&j->s->spawner, &j->job);
}
