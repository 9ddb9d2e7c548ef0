// SPDX-License-Identifier: Apache-2.0
// One VM: its parts and its life.
//
//          vm_boot / vm_restore            vm_run             guest ends, KVM fails
//   (new) ---------------------> CREATED ----------> RUNNING -----------------> EXITED
//                                    \               |     ^                       ^
//                                     \      vm_pause|     |vm_run                 |
//                                      `-----------> PAUSED'------- vm_end --------'
//
// Threads: the loop (main thread) and one per vCPU. Everything here but a vCPU's own
// run area is touched only with vm->loop's lock held. A vCPU asks for the end of the VM
// with vm_request_exit(); the loop carries it out.
// Trust: guest memory, exits and registers are hostile; the configuration was checked.
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "devices/serial.h"
#include "devices/virtio.h"
#include "microvm/arch/arch.h"
#include "microvm/base/gmem.h"
#include "microvm/base/loop.h"
#include "microvm/base/msg.h"
#include "microvm/base/ring.h"
#include "microvm/base/vmcfg.h"
#include "microvm/dirty.h"
#include "microvm/park.h"
#include "microvm/ready.h"
#include "microvm/record.h"

#define VM_MAX_DEVICES 16

struct vm_seed;

struct vcpu {
	struct vm *vm;
	unsigned index;
	int fd;
	struct kvm_run *run;
	size_t run_bytes;
	pthread_t thread;
	char *stack; // of the thread
	bool has_thread;
	bool takes_claim; // that of a shell comes to the thread that is to run it
	bool stopped;     // not in KVM_RUN and its last exit is completed
	// When its thread first went into KVM_RUN and came back; atomic. vcpu_times() tells others.
	uint64_t entered_ns, left_ns;
	struct msg_exits exits; // counted by its thread; read by others, relaxed
};

struct vm {
	struct vmcfg cfg;
	struct gmem mem;
	struct dirty dirty;
	struct mv_loop loop;
	struct mv_ring *ring;
	int kvm_fd, vm_fd;
	struct vcpu vcpu[VMCFG_MAX_VCPUS];
	unsigned n_vcpus;
	struct vio_dev
		*dev[VM_MAX_DEVICES]; // in slot order: drives, nets, vsock, rng, balloon, console, pmems
	unsigned n_devs;
	struct vio_dev *balloon; // among them, or NULL
	struct serial serial;
	struct arch_vm arch;

	enum vm_state state;
	bool run_vcpus, end_vcpus; // what the vCPU threads are to do
	// Of the two above and of `stopped`, taken inside loop.lock or alone: a vCPU that is to run
	// does not wait for whoever told it.
	pthread_mutex_t run_lock;
	pthread_cond_t changed;

	// Set by vCPU threads, told to the owner by the loop.
	int notify_fd;
	struct mv_watch notify_watch;
	enum vm_exit exit_reason;
	char exit_detail[128];
	struct msg_times times;
	bool io_seen, io_told;
	bool warm;                    // vm_warm() was called
	bool shell;                   // restored in advance, not yet claimed
	bool resumed;                 // arch_vm_resume() was called in advance
	const struct vm_seed *seed;   // of a forked process: memory and state are there (zygote.h)
	struct ready_text ready_text; // of cfg.ready.console
	bool ready_told;
	// Lazily loaded memory; uffd_fd -1: it is not. Kept until the process ends (lazy.h).
	int uffd_fd;
	bool lazy;                                                  // asked for
	int (*on_lazy)(struct vm *vm, const struct msg_lazy *lazy); // gives the userfaultfd away
	uint8_t *metadata; // for the guest, by vsock or mmds; NULL: an empty object
	uint32_t n_metadata;
	struct mmds *mmds;             // the metadata service of its nets, or NULL
	char snapshot_id[MV_UUID_LEN]; // restored from; for its working set
	struct record record;
	struct park park;
	void (*on_parked)(struct vm *vm); // vm->park has news; called by the loop, lock held
	void (*on_recorded)(struct vm *vm, const struct msg_recorded *done); // called by the loop, lock held
	void (*on_balloon)(struct vm *vm);                                   // new statistics; likewise
	void (*on_change)(struct vm *vm); // state or times changed; called by the loop, lock held
	void *owner;
};

// An empty VM with its loop, in memory that is zeros. The caller holds no lock yet.
int vm_init(struct vm *vm, struct mv_err *err);

// In advance, for whatever VM this is to be: an empty KVM VM. Takes kvm_fd. What fails here fails again, and
// is told, when the VM is made.
int vm_make_kvm(struct vm *vm, int kvm_fd, struct mv_err *err);

// In advance, for whatever VM this is to be: a KVM VM with what all have, and the first vCPU's thread. Takes
// kvm_fd. Takes some 8 ms, of which most is waiting. After a failure only vm_fini() may follow.
int vm_warm(struct vm *vm, int kvm_fd, struct mv_err *err);

// Makes the machine described by cfg, from a kernel or from a snapshot. Takes all
// descriptors of fds, also on failure. After a failure only vm_fini() may follow.
int vm_boot(struct vm *vm, const struct vmcfg *cfg, struct vm_fds *fds, struct mv_err *err);
int vm_restore(struct vm *vm, const struct vmcfg *cfg, struct vm_fds *fds, struct mv_err *err);

// A VM restored in advance gets its identity, before its first run. Takes from fds what it uses.
int vm_claim(struct vm *vm, const struct msg_claim *claim, struct vm_fds *fds, struct mv_err *err);

// The document that the guest can read, from now on; before the VM is made, too. Takes a copy.
int vm_set_metadata(struct vm *vm, const uint8_t *bytes, uint32_t len, struct mv_err *err);

// Loop lock held. -EBUSY in a state that does not allow it.
int vm_run(struct vm *vm, struct mv_err *err);
int vm_pause(struct vm *vm, struct mv_err *err); // returns when no vCPU runs and devices are quiet

// Connects the notifications of the device in a slot with KVM. Interrupts: kvm_irqfd().
int vm_wire_kicks(struct vm *vm, unsigned slot, struct mv_err *err);

// Freezes the layers of all drives that have some, paused: prepared, then carried out (which
// can't fail) or dropped. fds: two for each such drive, as MSG_SNAPSHOT has them; those
// used are taken and set to -1.
int vm_freeze(struct vm *vm, int *fds, unsigned n_fds, struct mv_err *err);
void vm_freeze_end(struct vm *vm, bool commit);

// Link and rate limits of a network device, made already; what was set last.
int vm_net_set(struct vm *vm, const struct msg_net_set *s, struct mv_err *err);
void vm_net_get(const struct vm *vm, uint32_t index, struct msg_net_set *ret_s);
// File, size and rate limit of a drive, made already, in this order up to the first error. new_fd: NULL, or
// another file, which is taken (and -1 then).
int vm_drive_set(struct vm *vm, const struct msg_drive_set *s, int *new_fd, struct mv_err *err);
// Rate limit of a pmem device, made already.
int vm_pmem_set(struct vm *vm, const struct msg_pmem_set *s, struct mv_err *err);
// Another target or interval of the balloon; -ENODEV: there is none.
int vm_balloon_set(struct vm *vm, const struct msg_balloon_set *set, struct mv_err *err);
// A round of free page hints; -EBUSY also when the VM does not run (vio_balloon_hint()).
int vm_balloon_hint(struct vm *vm, uint32_t wait_ms, void (*done)(void *arg, const struct mv_err *err),
		    void *arg, struct mv_err *err);
int vm_balloon_stop_hint(struct vm *vm, struct mv_err *err);
void vm_balloon_info(const struct vm *vm, struct msg_balloon *ret_info);

// A number that differs from an earlier one when there was something on the console, the net or
// the vsock devices since (MSG_ACTIVITY).
uint64_t vm_activity(const struct vm *vm);

// What MSG_DEVICES tells of the device in a slot; *ret_device is zero before.
void vm_describe_device(const struct vm *vm, uint32_t slot, struct msg_device *ret_device);

// From a vCPU thread or the loop, lock held: the VM is to end for this reason (the first counts).
void vm_request_exit(struct vm *vm, enum vm_exit reason, const char *detail);

// The guest says that it is ready for work: the first time counts. From any thread, lock held.
void vm_ready(struct vm *vm);

// Stops the vCPU threads and frees everything; idempotent. No lock held.
void vm_fini(struct vm *vm);

// A guest access to memory-mapped I/O, lock held; unclaimed reads give all ones.
void vm_mmio(struct vm *vm, uint64_t gpa, void *data, uint32_t len, bool is_write);
