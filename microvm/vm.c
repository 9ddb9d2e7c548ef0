// SPDX-License-Identifier: Apache-2.0
#include "microvm/vm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "devices/devices.h"
#include "devices/disk.h"
#include "devices/mmds.h"
#include "microvm/base/log.h"
#include "microvm/kvm.h"
#include "microvm/lazy.h"
#include "microvm/populate.h"
#include "microvm/save.h"
#include "microvm/vcpu.h"
#include "microvm/zygote.h"

#define RING_ENTRIES 256
#define VM_PAGES_PER_MIB ((1u << 20) / GMEM_PAGE_BYTES)

static void end_record(struct vm *vm)
{
	struct msg_recorded done;
	if (record_take(&vm->record, &vm->mem, &done))
		vm->on_recorded(vm, &done);
}

static void on_record_limit(void *arg) { end_record(arg); }

// vCPU threads wake the loop through notify_fd; here their news is acted on.
static void on_notify(void *arg, uint32_t events)
{
	struct vm *vm = arg;
	uint64_t n;
	(void)events;
	bool ready = vm->times.ready && !vm->ready_told;
	if (read(vm->notify_fd, &n, sizeof n) < 0)
		return;
	vcpu_times(vm);
	if (vm->exit_reason != VM_EXIT_NONE && vm->state != VM_EXITED) {
		vcpus_stop(vm);
		for (unsigned i = 0; i < vm->n_devs; i++)
			vio_quiesce(vm->dev[i]);
		vm->state = VM_EXITED;
		record_fini(&vm->record);
		vm->io_told = vm->io_seen;
		vm->on_change(vm);
	} else if (ready || (vm->io_seen && !vm->io_told)) {
		vm->io_told = vm->io_seen;
		vm->ready_told = vm->times.ready;
		vm->on_change(vm);
		if (ready)
			end_record(vm);
	}
}

int vm_init(struct vm *vm, struct mv_err *err)
{
	vm->kvm_fd = vm->vm_fd = vm->notify_fd = vm->serial.irq_fd = vm->uffd_fd = -1;
	pthread_mutex_init(&vm->run_lock, NULL);
	vm->record.fd = vm->record.uffd_fd = -1;
	pthread_cond_init(&vm->changed, NULL);
	int r = mv_loop_init(&vm->loop);
	if (!r) {
		vm->notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = vm->notify_fd < 0 ? -errno : 0;
	}
	if (!r)
		r = mv_watch_add(&vm->loop, &vm->notify_watch, vm->notify_fd, EPOLLIN, on_notify, vm);
	return r ? mv_fail(err, -r, "cannot set up the event loop: %s", strerror(-r)) : 0;
}

static void notify(struct vm *vm)
{
	uint64_t one = 1;
	ssize_t ignored = write(vm->notify_fd, &one, sizeof one);
	(void)ignored;
}

void vm_ready(struct vm *vm)
{
	if (vm->times.ready)
		return;
	vm->times.ready = mv_now_ns();
	notify(vm);
}

void vm_request_exit(struct vm *vm, enum vm_exit reason, const char *detail)
{
	if (vm->exit_reason != VM_EXIT_NONE)
		return;
	__atomic_store_n(&vm->exit_reason, reason, __ATOMIC_RELAXED); // vCPU threads look without the lock
	snprintf(vm->exit_detail, sizeof vm->exit_detail, "%s", detail);
	notify(vm);
}

void vm_mmio(struct vm *vm, uint64_t gpa_, void *data, uint32_t len, bool is_write)
{
	uint64_t base = arch_device_gpa(0);
	uint64_t slot = (gpa_ - base) / VIO_MMIO_BYTES; // wraps to a huge number below base
	if (slot >= vm->n_devs) {
		if (!arch_mmio(vm, gpa_, data, len, is_write) && !is_write)
			memset(data, 0xff, len);
	} else if (is_write)
		vio_mmio_write(vm->dev[slot], (gpa_ - base) % VIO_MMIO_BYTES, data, len);
	else
		vio_mmio_read(vm->dev[slot], (gpa_ - base) % VIO_MMIO_BYTES, data, len);
}

int vm_wire_kicks(struct vm *vm, unsigned slot, struct mv_err *err)
{
	const struct vio_dev *d = vm->dev[slot];
	int r = 0;
	for (unsigned q = 0; r >= 0 && q < d->n_queues; q++)
		if (!(d->by_exit >> q & 1))
			r = kvm_ioeventfd(vm->vm_fd, d->kick_fd[q], arch_device_gpa(slot) + VIO_NOTIFY_OFFSET,
					  q, err);
	return r < 0 ? r : 0;
}

// Puts a device into the next slot and wires it.
static int add_device(struct vm *vm, struct vio_dev *d, struct mv_err *err)
{
	unsigned slot = vm->n_devs;
	if (slot == VM_MAX_DEVICES) {
		vio_free(d);
		return mv_fail(err, E2BIG, "more than %u devices", VM_MAX_DEVICES);
	}
	vm->dev[vm->n_devs++] = d;
	int r = kvm_irqfd(vm->vm_fd, d->irq_fd, arch_device_gsi(slot), err);
	return r < 0 ? r : vm_wire_kicks(vm, slot, err);
}

static int new_drive(struct vm *vm, struct vm_fds *f, uint32_t i, struct vio_dev **ret_dev,
		     struct mv_err *err)
{
	const struct vmcfg_drive *drive = &vm->cfg.drive[i];
	struct disk_files files = { .read_only = drive->read_only,
				    .keep = drive->layer == VMCFG_LAYER_KEPT,
				    .direct = drive->direct };
	files.base_fd = MV_TAKE_FD(f->drive[i]);
	while (files.n_layers < VMCFG_MAX_LAYERS && f->layer[i][files.n_layers] >= 0) {
		files.layer_fd[files.n_layers] = MV_TAKE_FD(f->layer[i][files.n_layers]);
		files.n_layers++;
	}
	struct vio_blk_options options = { .serial = drive->serial[0] ? drive->serial : drive->id,
					   .block_bytes = drive->block_size,
					   .n_queues = drive->queues,
					   .unsafe = drive->cache == VMCFG_CACHE_UNSAFE,
					   .rate = drive->rate };
	return vio_blk_new(&vm->mem, &vm->loop, vm->ring, drive->id, &options, &files, ret_dev, err);
}

// A clone's is its own: it is in no snapshot.
static void give_metadata(struct vm *vm)
{
	static const char none[] = "{}\n";
	unsigned slot = vm->cfg.n_drives + vm->cfg.n_nets;
	if (vm->mmds)
		mmds_set_document(vm->mmds, vm->metadata, vm->n_metadata);
	if (!vm->cfg.vsock.present || slot >= vm->n_devs)
		return;
	if (vm->metadata)
		vio_vsock_set_metadata(vm->dev[slot], vm->metadata, vm->n_metadata);
	else
		vio_vsock_set_metadata(vm->dev[slot], none, sizeof none - 1);
}

int vm_set_metadata(struct vm *vm, const uint8_t *bytes, uint32_t len, struct mv_err *err)
{
	_Static_assert(MSG_METADATA_BYTES == VSOCK_METADATA_MAX_BYTES, "one limit");
	uint8_t *copy = malloc(len ? len : 1);
	if (!copy)
		return mv_fail(err, ENOMEM, "out of memory");
	memcpy(copy, bytes, len);
	uint8_t *old = MV_TAKE_AS(vm->metadata, copy);
	vm->n_metadata = len;
	give_metadata(vm);
	free(old);
	return 0;
}

static void on_ready_port(void *arg) { vm_ready(arg); }

static void on_balloon_stats(void *arg)
{
	struct vm *vm = arg;
	vm->on_balloon(vm);
}

static int add_balloon(struct vm *vm, struct mv_err *err)
{
	const struct vmcfg_balloon *b = &vm->cfg.balloon;
	const struct vio_balloon_config config = { .target_pages = b->target_mib * VM_PAGES_PER_MIB,
						   .stats_interval_s = b->stats_interval_s,
						   .deflate_on_oom = b->deflate_on_oom,
						   .reporting = b->free_page_reporting,
						   .hinting = b->free_page_hinting };
	struct vio_dev *d;
	int r = vio_balloon_new(&vm->mem, &vm->loop, &config, &d, err);
	if (r)
		return mv_wrap(err, "balloon");
	vio_balloon_on_stats(d, on_balloon_stats, vm);
	r = add_device(vm, d, err);
	if (!r)
		vm->balloon = d;
	return r;
}

int vm_balloon_set(struct vm *vm, const struct msg_balloon_set *set, struct mv_err *err)
{
	if (!vm->balloon)
		return mv_fail(err, ENODEV, "there is no balloon");
	int r = set->has_target ? vio_balloon_set_target(vm->balloon, set->target_mib * VM_PAGES_PER_MIB, err)
				: 0;
	return r || !set->has_interval ? r
				       : vio_balloon_set_interval(vm->balloon, set->stats_interval_s, err);
}

int vm_balloon_hint(struct vm *vm, uint32_t wait_ms, vio_balloon_hinted_fn *done, void *arg,
		    struct mv_err *err)
{
	if (!vm->balloon)
		return mv_fail(err, ENODEV, "there is no balloon");
	if (vm->state != VM_RUNNING)
		return mv_fail(err, EBUSY, "the VM is %s", vm_state_name(vm->state));
	return vio_balloon_hint(vm->balloon, wait_ms, done, arg, err);
}

int vm_balloon_stop_hint(struct vm *vm, struct mv_err *err)
{
	if (!vm->balloon)
		return mv_fail(err, ENODEV, "there is no balloon");
	vio_balloon_stop_hint(vm->balloon);
	return 0;
}

void vm_balloon_info(const struct vm *vm, struct msg_balloon *ret_info)
{
	_Static_assert(MSG_BALLOON_N_STATS == VIO_BALLOON_N_STATS, "one list of statistics");
	struct vio_balloon_info i;
	*ret_info = (struct msg_balloon){ 0 };
	if (!vm->balloon)
		return;
	vio_balloon_info(vm->balloon, &i);
	*ret_info = (struct msg_balloon){ .present = true,
					  .target_pages = i.target_pages,
					  .actual_pages = i.actual_pages,
					  .stats_interval_s = i.stats_interval_s,
					  .freed_pages = i.freed_pages,
					  .hinted_pages = i.hinted_pages,
					  .n_stats = MSG_BALLOON_N_STATS };
	memcpy(ret_info->stat, i.stat, sizeof i.stat);
}

static int add_console(struct vm *vm, struct vm_fds *f, struct mv_err *err)
{
	_Static_assert((int)VMCFG_MAX_CONSOLES == VIO_CONSOLE_MAX_PORTS, "one limit");
	struct vio_console_port port[VMCFG_MAX_CONSOLES];
	struct vio_dev *d;
	for (uint32_t i = 0; i < vm->cfg.n_consoles; i++) {
		port[i].name = vm->cfg.console[i].id;
		port[i].tty = vm->cfg.console[i].tty;
		port[i].listen_fd = MV_TAKE_FD(f->console[i]);
	}
	int r = vio_console_new(&vm->mem, &vm->loop, port, vm->cfg.n_consoles, &d, err);
	return r ? mv_wrap(err, "consoles") : add_device(vm, d, err);
}

static int add_pmems(struct vm *vm, struct vm_fds *f, struct mv_err *err)
{
	struct vio_dev *d;
	int r = 0;
	for (uint32_t i = 0; !r && i < vm->cfg.n_pmems; i++) {
		struct vio_pmem_config c = { .name = vm->cfg.pmem[i].id,
					     .read_only = vm->cfg.pmem[i].read_only,
					     .other_file = vm->cfg.pmem[i].other_file,
					     .gpa = vm->mem.file[i].gpa,
					     .size_bytes = vm->mem.file[i].size_bytes };
		c.fd = MV_TAKE_FD(f->pmem[i]);
		r = vio_pmem_new(&vm->mem, &vm->loop, vm->ring, &c, &d, err);
		r = r ? mv_wrap(err, "pmem %s", c.name) : add_device(vm, d, err);
		r = r ? r : vio_pmem_set_rate(d, &vm->cfg.pmem[i].rate, err);
	}
	return r;
}

static int add_mmds(struct vm *vm, struct mv_err *err)
{
	struct mmds_config config = { .tokens = vm->cfg.metadata.version == VMCFG_METADATA_V2,
				      .imds_compat = vm->cfg.metadata.imds_compat };
	vmcfg_metadata_address(&vm->cfg, config.address);
	vm->mmds = mmds_new(&config);
	if (!vm->mmds)
		return mv_fail(err, ENOMEM, "out of memory");
	give_metadata(vm);
	return 0;
}

static int add_net(struct vm *vm, struct vm_fds *f, uint32_t i, struct mv_err *err)
{
	const struct vmcfg_net *net = &vm->cfg.net[i];
	const struct vio_net_options o = { .name = net->id,
					   .mac = net->mac,
					   .kind = net->tap[0]            ? VIO_NET_TAP
						   : vmcfg_net_alone(net) ? VIO_NET_NONE
									  : VIO_NET_STREAM,
					   .n_pairs = vmcfg_net_pairs(net),
					   .mtu = (uint16_t)net->mtu };
	struct vio_dev *d;
	_Static_assert(VIO_NET_MAX_PAIRS == VMCFG_MAX_PAIRS, "one limit");
	int r = vio_net_new_with(&vm->mem, &vm->loop, &o, f->tap[i], &d, err);
	r = r ? mv_wrap(err, "net %s", net->id) : add_device(vm, d, err);
	r = r ? r : vio_net_set_limits(d, &net->rx_rate, &net->tx_rate, err);
	return r || !vmcfg_net_metadata(&vm->cfg, i) ? r : vio_net_set_mmds(d, vm->mmds, err);
}

static int add_devices(struct vm *vm, struct vm_fds *f, struct mv_err *err)
{
	const struct vmcfg *c = &vm->cfg;
	struct vio_dev *d = NULL;
	int r = 0;

	if (c->n_drives || c->n_pmems)
		r = mv_ring_new(&vm->loop, RING_ENTRIES, false, &vm->ring, err);
	for (uint32_t i = 0; !r && i < c->n_drives; i++) {
		r = new_drive(vm, f, i, &d, err);
		r = r ? mv_wrap(err, "drive %s", c->drive[i].id) : add_device(vm, d, err);
	}
	if (!r && c->metadata.present)
		r = add_mmds(vm, err);
	for (uint32_t i = 0; !r && i < c->n_nets; i++)
		r = add_net(vm, f, i, err);
	if (!r && c->vsock.present) {
		r = vio_vsock_new(&vm->mem, &vm->loop, c->vsock.cid, MV_TAKE_FD(f->vsock), c->vsock.path, &d,
				  err);
		if (!r && c->ready.vsock_port)
			vio_vsock_watch_port(d, c->ready.vsock_port, on_ready_port, vm);
		r = r ? mv_wrap(err, "vsock") : add_device(vm, d, err);
		give_metadata(vm);
	}
	if (!r && c->rng) {
		r = vio_rng_new(&vm->mem, &vm->loop, &d, err);
		r = r ? mv_wrap(err, "rng") : add_device(vm, d, err);
		r = r ? r : vio_rng_set_limit(d, &c->rng_rate, err);
	}
	if (!r && c->balloon.present)
		r = add_balloon(vm, err);
	if (!r && c->n_consoles)
		r = add_console(vm, f, err);
	r = r ? r : add_pmems(vm, f, err);
	return r;
}

// A shell gets its taps when it is claimed.
static int check_fds(const struct vm *vm, const struct vmcfg *c, const struct vm_fds *f, struct mv_err *err)
{
	bool ok = f->kvm >= 0 && (!c->vsock.present || f->vsock >= 0);
	for (uint32_t i = 0; i < c->n_drives; i++)
		ok = ok && f->drive[i] >= 0 &&
		     (c->drive[i].layer == VMCFG_LAYER_NONE) == (f->layer[i][0] < 0);
	for (uint32_t i = 0; i < c->n_nets; i++)
		for (unsigned q = 0; q < vmcfg_net_pairs(&c->net[i]); q++)
			ok = ok && (f->tap[i][q] >= 0 || vmcfg_net_alone(&c->net[i]) ||
				    (vm->shell && c->net[i].tap[0]));
	for (uint32_t i = 0; i < c->n_consoles; i++)
		ok = ok && f->console[i] >= 0;
	for (uint32_t i = 0; i < c->n_pmems; i++)
		ok = ok && f->pmem[i] >= 0;
	return ok ? 0 : mv_fail(err, EBADF, "a descriptor that the configuration needs was not passed");
}

// Before anything touches the memory: a touch waits for whoever got the userfaultfd.
static int watch_memory(struct vm *vm, const struct vm_fds *f, struct mv_err *err)
{
	struct msg_lazy lazy;
	if (f->handler >= 0)
		return lazy_register_with_handler(&vm->mem, f->uffd, f->handler, &vm->uffd_fd, err);
	int r = -EINVAL;
	if (f->record >= 0)
		r = lazy_register(&vm->mem, f->uffd, LAZY_EXACT, &vm->uffd_fd, &lazy, err);
	if (r == -EINVAL)
		r = lazy_register(&vm->mem, f->uffd, 0, &vm->uffd_fd, &lazy, err);
	if (!r && (r = vm->on_lazy(vm, &lazy)))
		mv_fail(err, -r, "cannot give the userfaultfd away: %s", strerror(-r));
	return r;
}

// Files that the guest has as memory: mapped with it, as their slots come before the interrupt controllers.
static int map_pmems(struct vm *vm, const struct vm_fds *f, struct mv_err *err)
{
	_Static_assert((int)VMCFG_MAX_PMEMS == GMEM_MAX_FILES, "one limit");
	vm->mem.n_files = 0; // a forked process has its parent's, which it did not inherit
	for (uint32_t i = 0; i < vm->cfg.n_pmems; i++) {
		uint64_t bytes;
		int r = vio_pmem_check(f->pmem[i], &bytes, err);
		r = r ? r
		      : gmem_map_file(&vm->mem, arch_file_gpa(&vm->mem), bytes, f->pmem[i],
				      vm->cfg.pmem[i].read_only ? ARCH_READ_ONLY_FILE : GMEM_WRITABLE, err);
		if (r)
			return mv_wrap(err, "pmem %s", vm->cfg.pmem[i].id);
	}
	return 0;
}

// The memory of a forked process is where it was.
static int map_memory(struct vm *vm, int memory_fd, struct mv_err *err)
{
	if (vm->seed) {
		if (vm->seed->mem.total_bytes != (uint64_t)vm->cfg.mem_mib << 20)
			return mv_fail(err, EINVAL, "the forked VM has another size of memory");
		vm->mem = vm->seed->mem;
		return 0;
	}
	vm->mem.pages = vm->cfg.huge_pages;
	int r = arch_mem_layout(&vm->mem, vm->cfg.mem_mib);
	if (r < 0)
		return mv_fail(err, -r, "%u MiB of memory do not fit the machine", vm->cfg.mem_mib);
	return gmem_map(&vm->mem, memory_fd, err);
}

// What every machine has, whatever it is to be: interrupt controllers, a first CPU, the serial port.
static int make_core(struct vm *vm, struct mv_err *err)
{
	int r = arch_vm_init(vm, err);
	if (r || (r = vcpu_open(vm, 0, err)))
		return r;
	r = serial_init(&vm->serial);
	return r ? mv_fail(err, -r, "serial port: %s", strerror(-r)) : 0;
}

int vm_make_kvm(struct vm *vm, int kvm_fd, struct mv_err *err)
{
	vm->kvm_fd = kvm_fd;
	vm->vm_fd = kvm_create_vm(kvm_fd, err);
	if (vm->vm_fd >= 0)
		return 0;
	mv_close(&vm->kvm_fd);
	return -err->code;
}

int vm_warm(struct vm *vm, int kvm_fd, struct mv_err *err)
{
	int r = vm_make_kvm(vm, kvm_fd, err);
	r = r ? r : make_core(vm, err);
	r = r ? r : kvm_settle(vm->vm_fd, err);
	r = r ? r : vcpus_start(vm, err);
	if (!r)
		arch_vm_warm(vm);
	vm->warm = !r;
	return r;
}

// Everything up to the point where a kernel or a saved state is loaded. The order of the
// KVM calls matters: memory slots before the interrupt controllers and eventfds, or long after them
// (vm_warm()).
static int make_machine(struct vm *vm, const struct vmcfg *cfg, struct vm_fds *f, int memory_fd,
			struct mv_err *err)
{
	int r = vmcfg_check(cfg, err);
	if (!r)
		r = check_fds(vm, cfg, f, err);
	// Huge pages are a copy: nothing is loaded on demand, and page tables don't tell what was touched.
	if (!r && cfg->huge_pages && (vm->lazy || f->record >= 0))
		r = mv_fail(err, EINVAL, "huge_pages: not with lazily loaded memory, nor with a record");
	if (r)
		return r;
	vmcfg_copy(&vm->cfg, cfg);
	ready_text_init(&vm->ready_text, cfg->ready.console);
	if (vm->vm_fd < 0 && (r = vm_make_kvm(vm, MV_TAKE_FD(f->kvm), err)))
		return r;
	if ((r = map_memory(vm, memory_fd, err)) || (r = map_pmems(vm, f, err)) ||
	    (vm->lazy && (r = watch_memory(vm, f, err))))
		return r;
	record_prepare(&vm->record, MV_TAKE_FD(f->record), &vm->mem, vm->lazy, f->uffd);
	r = dirty_init(&vm->dirty, &vm->mem, cfg->track_dirty, vm->mem.from_file, err);
	vm->dirty.forked = vm->seed != NULL;
	if (r || (r = kvm_set_memory(vm->vm_fd, &vm->mem, cfg->track_dirty, err)) ||
	    (!vm->warm && (r = make_core(vm, err))))
		return r;
	for (unsigned i = 1; i < cfg->vcpus; i++)
		if ((r = vcpu_open(vm, i, err)))
			return r;
	if ((r = arch_vcpus_made(vm, err)) ||
	    (r = kvm_irqfd(vm->vm_fd, vm->serial.irq_fd, arch_serial_gsi(), err)) < 0 ||
	    (r = add_devices(vm, f, err)))
		return r;
	vm->times.kvm_ready = mv_now_ns();
	return 0;
}

int vm_boot(struct vm *vm, const struct vmcfg *cfg, struct vm_fds *f, struct mv_err *err)
{
	int r = f->kernel < 0 || vm->seed ? mv_fail(err, EBADF, "no kernel was passed")
					  : make_machine(vm, cfg, f, -1, err);
	if (!r)
		r = arch_boot(vm, f->kernel, f->initrd, err);
	if (!r)
		r = vcpus_start(vm, err);
	vm_fds_close(f);
	if (r)
		return r;
	vm->times.loaded = mv_now_ns();
	vm->state = VM_CREATED;
	return 0;
}

int vm_restore(struct vm *vm, const struct vmcfg *cfg, struct vm_fds *f, struct mv_err *err)
{
	struct saved_vm saved = { 0 };
	int r;
	if (vm->seed)
		r = saved_vm_parse(vm->seed->state, vm->seed->state_bytes, cfg, &saved, err);
	else if (f->state < 0 || (f->memory < 0) == (f->handler < 0)) // of a file or a page handler
		r = mv_fail(err, EBADF, "no snapshot files were passed");
	else
		r = saved_vm_read(f->state, cfg, &saved, err);
	if (!r)
		r = make_machine(vm, cfg, f, f->memory, err);
	if (!r && f->working_set >= 0)
		populate(&vm->mem, f->working_set, vm->snapshot_id, vm->lazy);
	if (!r)
		r = saved_vm_load(vm, &saved, err);
	if (!r)
		r = vcpus_start(vm, err);
	saved_vm_fini(&saved);
	vm_fds_close(f);
	if (r)
		return r;
	vm->times.loaded = mv_now_ns();
	vm->state = VM_PAUSED;
	return 0;
}

int vm_claim(struct vm *vm, const struct msg_claim *claim, struct vm_fds *fds, struct mv_err *err)
{
	struct vmcfg *c = &vm->cfg;
	int r = 0;
	memcpy(c->name, claim->name, sizeof c->name);
	for (uint32_t i = 0; !r && i < c->n_nets && i < claim->n_nets; i++) {
		for (unsigned q = 0; c->net[i].tap[0] && q < vmcfg_net_pairs(&c->net[i]); q++)
			if (fds->tap[i][q] < 0)
				return mv_fail(err, EBADF, "net %s: no tap was passed", c->net[i].id);
		c->net[i] = claim->net[i];
		r = vio_net_claim(vm->dev[c->n_drives + i], c->net[i].mac, fds->tap[i], err);
		r = r ? r
		      : vio_net_set_limits(vm->dev[c->n_drives + i], &c->net[i].rx_rate, &c->net[i].tx_rate,
					   err);
	}
	if (!r && c->vsock.present) {
		c->vsock = claim->vsock;
		c->vsock.present = true;
		r = vio_vsock_claim(vm->dev[c->n_drives + c->n_nets], c->vsock.cid, MV_TAKE_FD(fds->vsock),
				    c->vsock.path, err);
	}
	return r ? r : vmcfg_check(c, err);
}

int vm_run(struct vm *vm, struct mv_err *err)
{
	if (vm->state != VM_CREATED && vm->state != VM_PAUSED)
		return mv_fail(err, EBUSY, "the VM is %s", vm_state_name(vm->state));
	int r = park_resume(vm, err);
	if (r)
		return r;
	if (vm->state == VM_PAUSED) {
		if (!vm->resumed && !vm->park.parked)
			arch_vm_resume(vm);
		vm->resumed = false;
		for (unsigned i = 0; i < vm->n_devs; i++)
			vio_unquiesce(vm->dev[i]);
	}
	vm->state = VM_RUNNING;
	// The answer is not kept waiting for a vCPU thread to wake up: with few CPUs to choose from
	// the scheduler lets the guest run first, for a millisecond. The thread corrects this.
	if (!vm->times.running)
		vm->times.running = mv_now_ns();
	record_start(&vm->record, &vm->loop, on_record_limit, vm);
	if (!vm->park.parked)
		vcpus_run(vm);
	return 0;
}

int vm_pause(struct vm *vm, struct mv_err *err)
{
	if (vm->state == VM_PAUSED)
		return 0;
	if (vm->state != VM_RUNNING)
		return mv_fail(err, EBUSY, "the VM is %s", vm_state_name(vm->state));
	vcpus_stop(vm);
	for (unsigned i = 0; i < vm->n_devs; i++)
		vio_quiesce(vm->dev[i]);
	vm->state = VM_PAUSED;
	park_pause(vm);
	return 0;
}

int vm_net_set(struct vm *vm, const struct msg_net_set *s, struct mv_err *err)
{
	if (vm->state == VM_EXITED || s->index >= vm->cfg.n_nets || vm->cfg.n_drives + s->index >= vm->n_devs)
		return mv_fail(err, EINVAL, "there is no network device %u", s->index);
	struct vmcfg_net *n = &vm->cfg.net[s->index];
	struct vio_dev *d = vm->dev[vm->cfg.n_drives + s->index];
	int r = vmcfg_check_rate(&s->rx_rate, "net", n->id, err);
	r = r ? r : vmcfg_check_rate(&s->tx_rate, "net", n->id, err);
	r = r ? r : vio_net_set_limits(d, &s->rx_rate, &s->tx_rate, err);
	if (r)
		return r;
	n->rx_rate = s->rx_rate;
	n->tx_rate = s->tx_rate;
	if (vio_net_link_up(d) != s->link_up)
		vio_net_set_link(d, s->link_up);
	return 0;
}

void vm_net_get(const struct vm *vm, uint32_t index, struct msg_net_set *ret_s)
{
	const struct vmcfg_net *n = &vm->cfg.net[index];
	*ret_s = (struct msg_net_set){ .index = index,
				       .link_up = vio_net_link_up(vm->dev[vm->cfg.n_drives + index]),
				       .rx_rate = n->rx_rate,
				       .tx_rate = n->tx_rate };
}

int vm_drive_set(struct vm *vm, const struct msg_drive_set *s, int *new_fd, struct mv_err *err)
{
	if (vm->state == VM_EXITED || s->index >= vm->cfg.n_drives || s->index >= vm->n_devs)
		return mv_fail(err, EINVAL, "there is no drive %u", s->index);
	struct vmcfg_drive *drive = &vm->cfg.drive[s->index];
	int r = vmcfg_check_rate(&s->rate, "drive", drive->id, err);
	if (!r && new_fd)
		r = vio_blk_replace(vm->dev[s->index], MV_TAKE_FD(*new_fd), err);
	if (!r && (s->reread_size || s->size_bytes))
		r = vio_blk_resize(vm->dev[s->index], s->size_bytes, err);
	if (!r)
		r = vio_blk_set_rate(vm->dev[s->index], &s->rate, err);
	if (!r)
		drive->rate = s->rate;
	return r;
}

int vm_pmem_set(struct vm *vm, const struct msg_pmem_set *s, struct mv_err *err)
{
	const uint32_t n = vm->cfg.n_pmems; // the last devices, see add_devices()
	if (vm->state == VM_EXITED || s->index >= n || vm->n_devs < n)
		return mv_fail(err, EINVAL, "there is no pmem device %u", s->index);
	struct vmcfg_pmem *p = &vm->cfg.pmem[s->index];
	int r = vmcfg_check_rate(&s->rate, "pmem", p->id, err);
	r = r ? r : vio_pmem_set_rate(vm->dev[vm->n_devs - n + s->index], &s->rate, err);
	if (!r)
		p->rate = s->rate;
	return r;
}

uint64_t vm_activity(const struct vm *vm)
{
	enum { NET = 1, CONSOLE = 3, VSOCK = 19, VSOCK_RX_AND_TX = 2 }; // virtio 1.2 sections 5.1, 5.3, 5.10
	uint64_t n = vm->serial.out_total;
	for (unsigned i = 0; i < vm->n_devs; i++) {
		uint32_t id = vm->dev[i]->ops->device_id;
		unsigned n_queues = id == NET || id == CONSOLE ? vm->dev[i]->n_queues
				    : id == VSOCK              ? VSOCK_RX_AND_TX
							       : 0;
		vio_exclude(vm->dev[i], true);
		for (unsigned q = 0; q < n_queues; q++)
			n += vm->dev[i]->s.queue[q].n.used;
		vio_exclude(vm->dev[i], false);
	}
	return n;
}

void vm_describe_device(const struct vm *vm, uint32_t slot, struct msg_device *ret_device)
{
	_Static_assert(VIO_MAX_QUEUES <= MSG_MAX_QUEUES && VIO_NAME_BYTES <= sizeof ret_device->name,
		       "all of a device can be told");
	struct msg_device *m = ret_device;
	m->n_devices = vm->n_devs;
	m->n_vcpus = slot ? 0 : vm->n_vcpus;
	for (unsigned i = 0; i < m->n_vcpus; i++)
		m->vcpu[i] = vcpu_exits(&vm->vcpu[i]);
	if (slot >= vm->n_devs)
		return;
	struct vio_dev *d = vm->dev[slot];
	memcpy(m->name, d->name, sizeof d->name);
	m->device_id = d->ops->device_id;
	m->status = d->s.status;
	m->features_offered = d->features_offered;
	m->features_acked = d->s.features_acked;
	m->config_interrupts = d->config_interrupts;
	m->n_queues = d->s.n_queue;
	vio_exclude(d, true);
	for (unsigned i = 0; i < m->n_queues; i++) {
		const struct vq *q = &d->s.queue[i];
		const struct vio_kick *k = &d->kick[i];
		m->queue[i] = (struct msg_queue){ .size = q->size,
						  .max_size = d->ops->queue_size_max,
						  .ready = q->ready,
						  .next_avail = q->next_avail,
						  .next_used = q->next_used,
						  .kicks_by_event = vio_kicks_by_event(d, i),
						  .kicks_by_exit = k->by_exit,
						  .again = k->again,
						  .popped = q->n.popped,
						  .used = q->n.used,
						  .interrupts = q->n.interrupts,
						  .suppressed = q->n.suppressed };
	}
	vio_exclude(d, false);
}

void vm_freeze_end(struct vm *vm, bool commit)
{
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++)
		vio_blk_freeze_end(vm->dev[i], commit);
}

int vm_freeze(struct vm *vm, int *fds, unsigned n_fds, struct mv_err *err)
{
	unsigned used = 0;
	int r = 0;
	for (uint32_t i = 0; !r && i < vm->cfg.n_drives; i++) {
		if (vm->cfg.drive[i].layer == VMCFG_LAYER_NONE)
			continue;
		if (used + 2 > n_fds)
			return mv_fail(err, EPROTO, "a descriptor of a layer is missing");
		r = vio_blk_freeze(vm->dev[i], MV_TAKE_FD(fds[used]), MV_TAKE_FD(fds[used + 1]), err);
		used += 2;
	}
	return r;
}

void vm_fini(struct vm *vm)
{
	vcpus_end(vm);
	park_fini(vm);
	for (unsigned i = 0; i < vm->n_devs; i++)
		vio_free(vm->dev[i]);
	vm->n_devs = 0;
	vm->balloon = NULL;
	mmds_free(MV_TAKE(vm->mmds));
	free(MV_TAKE(vm->metadata));
	mv_ring_free(vm->ring);
	vm->ring = NULL;
	serial_fini(&vm->serial);
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		vcpu_close(&vm->vcpu[i]);
	vm->n_vcpus = 0;
	record_fini(&vm->record);
	arch_vm_fini(vm);
	mv_close(&vm->vm_fd);
	mv_close(&vm->kvm_fd);
	dirty_fini(&vm->dirty, &vm->mem);
	gmem_fini(&vm->mem);
	mv_close(&vm->uffd_fd);
	mv_watch_del(&vm->notify_watch);
	mv_close(&vm->notify_fd);
	mv_loop_fini(&vm->loop);
}
