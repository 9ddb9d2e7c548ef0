// SPDX-License-Identifier: Apache-2.0
// A VM process made of a prepared snapshot: what clones that start cold and the shells of pools begin with.
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "api/hugepages.h"
#include "api/ops.h"
#include "api/prepare.h"
#include "api/record.h"
#include "api/vmfds.h"
#include "api/vmjson.h"
#include "microvm/base/gmem.h"

static int open_handler(const struct server *s, const char *path, struct vm_fds *fds, struct api_err *err)
{
	if (!s->has_uffd)
		return api_fail(err, API_NO_USERFAULTFD,
				"page_handler: the daemon can have no userfaultfd on this host");
	if (s->uffd_device_fd >= 0)
		fds->uffd = fcntl(s->uffd_device_fd, F_DUPFD_CLOEXEC, 3);
	return vmfds_open_handler(path, &fds->handler, err);
}

// Recording sees what the guest touches, so nothing is loaded for it.
static int add_working_set(struct vm *vm, const struct prepare *from, struct vm_fds *fds, struct api_err *err)
{
	if (vm->cfg.huge_pages) // all of it is there before the first run
		return 0;
	if (vm->record.limit_ms && vm->page_handler[0])
		return api_fail(err, API_INVALID_VALUE,
				"record: what a page handler gave can't be told from what the guest wrote");
	if (vm->record.limit_ms) {
		if (fds->uffd < 0 && vm->srv->uffd_device_fd >= 0) // to see just the pages that are touched
			fds->uffd = fcntl(vm->srv->uffd_device_fd, F_DUPFD_CLOEXEC, 3);
		return record_begin(vm, &fds->record, err);
	}
	if (vm->populate && !vm->page_handler[0] && from->working_set_fd >= 0)
		fds->working_set = fcntl(from->working_set_fd, F_DUPFD_CLOEXEC, 3);
	return 0;
}

// Huge pages are filled by a copy of all memory.
static int check_huge_pages(const struct vm *vm, const struct prepare *from, struct api_err *err)
{
	if (!vm->cfg.huge_pages)
		return 0;
	if (vm->page_handler[0])
		return api_fail(err, API_INVALID_VALUE,
				"page_handler: it gives pages of 4 KiB; ask for huge_pages none");
	if (vm->record.limit_ms)
		return api_fail(
			err, API_INVALID_VALUE,
			"record: page tables don't tell what a guest with huge pages touched; ask for "
			"huge_pages none");
	if (from->lazy && !lazy_is_complete(from->lazy)) // prepare.h waited for it
		return api_fail(err, API_INTERNAL, "the memory of snapshot %s is not all loaded",
				from->m.name);
	return hugepages_check(&vm->cfg, err);
}

int ops_restore(struct vm *vm, const struct prepare *from, bool run, vm_done_fn *done, void *arg,
		struct api_err *err)
{
	struct vm_fds fds;
	if (check_huge_pages(vm, from, err))
		return -EINVAL;
	memcpy(vm->from_snapshot, from->m.name, sizeof vm->from_snapshot);
	memcpy(vm->from_snapshot_id, from->m.id, sizeof vm->from_snapshot_id);
	int r = ops_open_files(vm, &(struct layer_source){ .snapshot = &from->m }, &fds, err);
	if (r)
		return r;
	fds.state = fcntl(from->state_fd, F_DUPFD_CLOEXEC, 3);
	if (vm->page_handler[0]) {
		if (open_handler(vm->srv, vm->page_handler, &fds, err)) {
			ops_close_files(vm, &fds);
			return -EINVAL;
		}
	} else if (from->lazy) {
		lazy_clone_begin(from->lazy, vm, &fds.memory, &fds.uffd);
		if (vm->cfg.huge_pages) // it copies what is complete, and then needs the template no more
			lazy_clone_end(vm);
	} else {
		fds.memory = fcntl(from->memory_fd, F_DUPFD_CLOEXEC, 3);
	}
	r = add_working_set(vm, from, &fds, err);
	if (!r && fds.state >= 0 && (fds.memory >= 0 || fds.handler >= 0))
		return vm_launch(vm, MSG_RESTORE, run, &fds, done, arg, err);
	ops_close_files(vm, &fds);
	return r ? r : api_fail(err, API_LIMIT_REACHED, "too many open files; raise the daemon's limit");
}
