// SPDX-License-Identifier: Apache-2.0
// The tiny guest at work, for tests of what a VM's snapshots have of its memory: it is written by the guest
// itself, by devices and by the VMM. With THAW_VMM and THAW_GUEST (paths) from the environment.
#pragma once
#include "tests/t.h"

#include <sys/stat.h>

#include "microvm/base/util.h"
#include "tests/microvm/t_vmm.h"

enum { T_MEM_MIB = 32, T_MEM_BYTES = T_MEM_MIB << 20, T_MEM_PAGE = 4096 };
// Pages that a guest at work writes besides those it is told to: stack, data, rings, tables.
enum { FEW = 40 };

static inline const char *t_program(const char *variable, const char *otherwise)
{
	const char *path = getenv(variable);
	return path ? path : otherwise;
}
static inline const char *t_vmm_path(void) { return t_program("THAW_VMM", "build/bin/thaw-vmm"); }
static inline const char *t_guest_path(void) { return t_program("THAW_GUEST", "build/tests/guest/tiny"); }

static inline void need_kvm(void)
{
	if (!access("/dev/kvm", R_OK | W_OK))
		return;
	print_message("# SKIP no access to /dev/kvm\n");
	skip();
}

static inline void config(struct vmcfg *c, bool track)
{
	t_tiny_config(c);
	c->mem_mib = T_MEM_MIB;
	c->track_dirty = track;
	c->n_drives = 1;
	snprintf(c->drive[0].id, sizeof c->drive[0].id, "disk");
	snprintf(c->drive[0].path, sizeof c->drive[0].path, "/disk");
}

static inline void machine_fds(struct vm_fds *f)
{
	uint64_t seed = 6;
	uint8_t block[8192];
	for (size_t i = 0; i < sizeof block; i++)
		block[i] = (uint8_t)('a' + t_rand(&seed) % 26);
	vm_fds_init(f);
	f->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f->drive[0] = t_file();
	assert_int_equal(write(f->drive[0], block, sizeof block), sizeof block);
}

static inline void boot(struct t_vmm *v, const struct vmcfg *c)
{
	struct vm_fds f;
	machine_fds(&f);
	f.kernel = open(t_guest_path(), O_RDONLY | O_CLOEXEC);
	assert_int_equal(t_vmm_start(v, t_vmm_path()), 0);
	assert_int_equal(t_vmm_setup(v, MSG_BOOT, c, &f, true), 0);
	assert_int_equal(t_vmm_expect(v, "READY\n", 10000), 0);
}

static inline void ask(struct t_vmm *v, const char *command)
{
	char line[600];
	assert_int_equal(t_vmm_ask(v, command, line, sizeof line), 0);
	assert_memory_equal(line, "OK", 2);
}

static inline void order(struct t_vmm *v, uint16_t type)
{
	assert_int_equal(t_vmm_call(v, type, NULL, NULL, NULL, 0, 10000), 0);
}

// By the guest's user and kernel mode, by virtio-rng and by virtio-blk's io_uring.
static inline void work(struct t_vmm *v, unsigned round)
{
	char command[100];
	snprintf(command, sizeof command, "fill %u 20 %u", 100 + round * 300, round + 1);
	ask(v, command);
	snprintf(command, sizeof command, "touch 50 w %u", round + 1);
	ask(v, command);
	snprintf(command, sizeof command, "store round %u", round);
	ask(v, command);
	ask(v, "rand 64");
	snprintf(command, sizeof command, "blk p %u %u", round % 16, 2000 + round % 3);
	ask(v, command);
}

static inline void close_both(const int fds[2])
{
	close(fds[0]);
	close(fds[1]);
}

static inline void restore(struct t_vmm *v, const struct vmcfg *c, int state_fd, int memory_fd)
{
	struct vm_fds f;
	machine_fds(&f);
	f.state = dup(state_fd);
	f.memory = dup(memory_fd);
	assert_int_equal(t_vmm_setup(v, MSG_RESTORE, c, &f, true), 0);
	assert_int_equal(t_vmm_expect(v, "RESTORED\n", 10000), 0);
}
