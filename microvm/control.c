// SPDX-License-Identifier: Apache-2.0
#include "microvm/control.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/devices.h"
#include "microvm/base/log.h"
#include "microvm/base/scratch.h"
#include "microvm/kvm.h"

// Console output is answered this long after its first byte, so that a line is one answer.
#define SETUP_BYTES (192u << 10) // what a VM that is made is decoded from, and into, at a time
#define CONSOLE_GATHER_NS (2u * 1000 * 1000)

static void reply(struct control *c, uint64_t id, struct msg_reply *r, int code, const struct mv_err *err)
{
	r->code = (uint32_t)-code;
	r->state = c->vm->state;
	r->times = c->vm->times;
	if (code)
		mv_strcpy(r->text, sizeof r->text, err->msg);
	int sent = msg_send(c->fd, MSG_REPLY, id, &msg_reply_table, r, NULL, 0);
	if (sent)
		mv_log(MV_ERROR, "cannot answer the daemon: %s", strerror(-sent));
}

static void reply_empty(struct control *c, uint64_t id, int code, const struct mv_err *err)
{
	MV_FREE struct msg_reply *r = calloc(1, sizeof *r);
	if (r)
		reply(c, id, r, code, err);
}

static void on_change(struct vm *vm)
{
	struct control *c = vm->owner;
	MV_FREE struct msg_event *e = calloc(1, sizeof *e);
	if (!e)
		return;
	e->state = vm->state;
	e->reason = vm->exit_reason;
	e->times = vm->times;
	mv_strcpy(e->detail, sizeof e->detail, vm->exit_detail);
	if (vm->state == VM_EXITED) {
		uint64_t kept = MSG_CONSOLE_BYTES, end = vm->serial.out_total;
		uint64_t from = end > kept ? end - kept : 0;
		e->console_end = end;
		e->n_data = serial_output(&vm->serial, &from, e->data, MSG_CONSOLE_BYTES);
		mv_loop_stop(&vm->loop);
	}
	if (c->orphan.waits)
		return; // who adopts it asks for all of this
	int r = msg_send(c->fd, MSG_EVENT, 0, &msg_event_table, e, NULL, 0);
	if (r)
		mv_log(MV_ERROR, "cannot tell the daemon: %s", strerror(-r));
}

static void on_hinted(void *arg, const struct mv_err *err)
{
	struct control *c = arg;
	MV_FREE struct msg_reply *rep = calloc(1, sizeof *rep);
	uint64_t id = c->hint_id;
	c->hint_id = 0;
	if (!id || !rep)
		return;
	vm_balloon_info(c->vm, &rep->balloon);
	reply(c, id, rep, err ? -err->code : 0, err);
}

// Answered by on_hinted().
static int do_hint(struct control *c, const struct msg *m, struct mv_err *err)
{
	struct msg_balloon_hint h;
	int r = mv_state_load(&msg_balloon_hint_table, m->body, m->body_len, &h, err);
	r = r ? r : vm_balloon_hint(c->vm, h.wait_ms, on_hinted, c, err);
	if (!r)
		c->hint_id = m->id;
	return r;
}

static int on_lazy(struct vm *vm, const struct msg_lazy *lazy)
{
	const struct control *c = vm->owner;
	return msg_send(c->fd, MSG_LAZY, 0, &msg_lazy_table, lazy, &vm->uffd_fd, 1);
}

static void on_recorded(struct vm *vm, const struct msg_recorded *done)
{
	const struct control *c = vm->owner;
	if (c->orphan.ever)
		return; // the file was another daemon's
	int r = msg_send(c->fd, MSG_RECORDED, 0, &msg_recorded_table, done, NULL, 0);
	if (r)
		mv_log(MV_ERROR, "cannot tell the daemon: %s", strerror(-r));
}

static void on_balloon(struct vm *vm)
{
	const struct control *c = vm->owner;
	struct msg_balloon b;
	if (c->orphan.waits)
		return; // who adopts it asks
	vm_balloon_info(vm, &b);
	int r = msg_send(c->fd, MSG_BALLOON_STATS, 0, &msg_balloon_table, &b, NULL, 0);
	if (r)
		mv_log_limited(MV_WARN, "cannot tell the daemon of the balloon: %s", strerror(-r));
}

static void on_parked(struct vm *vm)
{
	const struct control *c = vm->owner;
	if (c->orphan.waits)
		return; // park_tell_again()
	int r = msg_send(c->fd, MSG_PARKING, 0, &msg_parking_table, &vm->park.stats, NULL, 0);
	if (r)
		mv_log_limited(MV_WARN, "cannot tell the daemon of parking: %s", strerror(-r));
}

static int do_park(struct control *c, const struct msg *m, struct mv_err *err)
{
	struct msg_park p;
	int r = mv_state_load(&msg_park_table, m->body, m->body_len, &p, err);
	return r ? r : park_set(c->vm, p.idle_ms, err);
}

static int do_balloon(struct control *c, const struct msg *m, struct msg_reply *rep, struct mv_err *err)
{
	struct msg_balloon_set set = { 0 };
	int r = m->type == MSG_BALLOON_SET
			? mv_state_load(&msg_balloon_set_table, m->body, m->body_len, &set, err)
			: 0;
	r = r ? r : vm_balloon_set(c->vm, &set, err);
	vm_balloon_info(c->vm, &rep->balloon);
	return r;
}

static void answer_reader(struct control *c, struct console_reader *rd)
{
	MV_FREE struct msg_reply *r = calloc(1, sizeof *r);
	if (!r)
		return;
	rd->waiting = false;
	r->console_offset = rd->offset;
	r->n_data = serial_output(&c->vm->serial, &r->console_offset, r->data, rd->max_bytes);
	r->console_end = c->vm->serial.out_total;
	reply(c, rd->id, r, 0, NULL);
}

// Answers every reader that has output or whose time is up; waits for the next deadline.
static void answer_readers(struct control *c)
{
	uint64_t now = mv_now_ns(), next = UINT64_MAX;
	c->gathering = false;
	for (int i = 0; i < CONTROL_READERS; i++) {
		struct console_reader *rd = &c->reader[i];
		if (!rd->waiting)
			continue;
		if (c->vm->serial.out_total > rd->offset || rd->deadline_ns <= now)
			answer_reader(c, rd);
		else if (rd->deadline_ns < next)
			next = rd->deadline_ns;
	}
	if (next != UINT64_MAX)
		mv_timer_arm(&c->timer, next - now);
}

static void on_timer(void *arg) { answer_readers(arg); }

// Runs in a vCPU's thread, lock held: the marker is looked for, and a timer is set by the first byte. A guest
// that never stops printing must not put it off.
static void on_output(void *arg, uint8_t byte)
{
	struct control *c = arg;
	if (ready_text_byte(&c->vm->ready_text, byte))
		vm_ready(c->vm);
	if (c->gathering)
		return;
	for (int i = 0; i < CONTROL_READERS; i++)
		if (c->reader[i].waiting) {
			c->gathering = true;
			mv_timer_arm(&c->timer, CONSOLE_GATHER_NS);
			return;
		}
}

static int do_console_read(struct control *c, const struct msg *m, struct mv_err *err)
{
	struct msg_console_read q;
	int r = mv_state_load(&msg_console_read_table, m->body, m->body_len, &q, err);
	if (r)
		return r;
	for (int i = 0; i < CONTROL_READERS; i++) {
		struct console_reader *rd = &c->reader[i];
		if (rd->waiting)
			continue;
		*rd = (struct console_reader){ .waiting = true,
					       .id = m->id,
					       .offset = q.offset,
					       .max_bytes = q.max_bytes,
					       .deadline_ns = mv_now_ns() + q.wait_ms * 1000000ull };
		answer_readers(c);
		return 0;
	}
	return mv_fail(err, EBUSY, "%d readers wait for this console already", CONTROL_READERS);
}

static int do_console_write(struct control *c, const struct msg *m, struct mv_err *err)
{
	MV_FREE struct msg_bytes *b = malloc(sizeof *b);
	if (!b)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = mv_state_load(&msg_bytes_table, m->body, m->body_len, b, err);
	if (r)
		return r;
	if (c->vm->state != VM_RUNNING && c->vm->state != VM_PAUSED)
		return mv_fail(err, EBUSY, "the VM is %s", vm_state_name(c->vm->state));
	// All or nothing: half a line is worse than an error.
	if (b->n_data > SERIAL_RX_BYTES - c->vm->serial.n_rx)
		return mv_fail(err, ENOSPC, "the guest has %u bytes of input unread; room for %u more",
			       c->vm->serial.n_rx, SERIAL_RX_BYTES - c->vm->serial.n_rx);
	serial_input(&c->vm->serial, b->data, b->n_data);
	return 0;
}

// The guest runs already, in the thread that took the message.
static void answer_claim(void *arg)
{
	struct control *c = arg;
	if (c->claim_id)
		reply_empty(c, c->claim_id, 0, NULL);
	c->claim_id = 0;
}

static int do_device_set(struct control *c, struct msg *m, struct mv_err *err)
{
	union {
		struct msg_net_set net;
		struct msg_drive_set drive;
	} s;
	const bool net = m->type == MSG_NET_SET;
	int r = mv_state_load(net ? &msg_net_set_table : &msg_drive_set_table, m->body, m->body_len, &s, err);
	if (r)
		return r;
	if (net)
		return vm_net_set(c->vm, &s.net, err);
	if (m->n_fds != s.drive.new_file)
		return mv_fail(err, EPROTO, "the descriptors do not fit the message");
	return vm_drive_set(c->vm, &s.drive, s.drive.new_file ? &m->fds[0] : NULL, err);
}

static int do_pmem_set(struct control *c, const struct msg *m, struct mv_err *err)
{
	struct msg_pmem_set s;
	int r = mv_state_load(&msg_pmem_set_table, m->body, m->body_len, &s, err);
	return r ? r : vm_pmem_set(c->vm, &s, err);
}

static int do_metadata(struct control *c, const struct msg *m, struct mv_err *err)
{
	MV_FREE struct msg_metadata *d = malloc(sizeof *d);
	if (!d)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = mv_state_load(&msg_metadata_table, m->body, m->body_len, d, err);
	return r ? r : vm_set_metadata(c->vm, d->data, d->n_data, err);
}

static int do_setup(struct control *c, struct msg *m, struct mv_err *err)
{
	mv_scratch_make(SETUP_BYTES, false);
	MV_SCRATCH struct msg_setup *s = mv_scratch(sizeof *s);
	struct vm_fds fds;
	if (!s)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = mv_state_load(&msg_setup_table, m->body, m->body_len, s, err);
	if (r)
		return r;
	if (c->used)
		return mv_fail(err, EBUSY, "this process has a VM already");
	if (vm_fds_unpack(m->fds, m->n_fds, s->fd_mask, &fds))
		return mv_fail(err, EPROTO, "the descriptors do not fit the message");
	m->n_fds = 0; // they are in fds now
	c->used = true;
	c->orphan.listen_fd = MV_TAKE_FD(fds.orphan);
	c->orphan.timeout_s = s->orphan_s;
	c->vm->times.request = mv_now_ns();
	c->vm->lazy = m->type == MSG_RESTORE && (s->lazy || fds.handler >= 0);
	c->vm->record.limit_ms = s->record_limit_ms;
	memcpy(c->vm->snapshot_id, s->snapshot_id, sizeof s->snapshot_id);
	// A device that waits for a page can't see the daemon go: the pager has then gone with it, and
	// a page handler may be dead as well.
	if (c->vm->lazy)
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	c->vm->shell = s->shell && m->type == MSG_RESTORE;
	r = m->type == MSG_BOOT ? vm_boot(c->vm, &s->cfg, &fds, err) : vm_restore(c->vm, &s->cfg, &fds, err);
	if (r)
		return r;
	c->vm->serial.on_output = on_output;
	c->vm->serial.on_output_arg = c;
	if (c->vm->shell) {
		mv_loop_lend(&c->vm->loop, answer_claim, c);
		arch_vm_resume(c->vm);
		c->vm->resumed = true;
		return 0;
	}
	return s->run ? vm_run(c->vm, err) : 0;
}

static int do_warm(struct control *c, struct msg *m, struct mv_err *err)
{
	const bool whole = m->type == MSG_WARM;
	if (c->used || c->vm->vm_fd >= 0 || m->n_fds != 1)
		return mv_fail(err, EBUSY, "this process has a VM");
	m->n_fds = 0; // taken
	int r = (whole ? vm_warm : vm_make_kvm)(c->vm, m->fds[0], err);
	mv_scratch_make(SETUP_BYTES, true);
	c->used = whole && r; // no good for anything
	return r;
}

static int do_claim(struct control *c, struct msg *m, struct mv_err *err)
{
	struct msg_claim claim;
	struct vm_fds fds;
	uint64_t now = mv_now_ns();
	int r = mv_state_load(&msg_claim_table, m->body, m->body_len, &claim, err);
	if (r)
		return r;
	if (!c->vm->shell || c->vm->state != VM_PAUSED)
		return mv_fail(err, EBUSY, "this VM is nobody's to claim");
	if (vm_fds_unpack(m->fds, m->n_fds, claim.fd_mask, &fds))
		return mv_fail(err, EPROTO, "the descriptors do not fit the message");
	m->n_fds = 0; // they are in fds now
	c->vm->times.request = now;
	r = vm_claim(c->vm, &claim, &fds, err);
	vm_fds_close(&fds);
	c->vm->shell = false;
	r = r || !claim.run ? r : vm_run(c->vm, err);
	mv_loop_return(&c->vm->loop);
	return r;
}

static void on_snapshot(void *arg, const struct live_snapshot *s, const struct live_result *result)
{
	struct control *c = arg;
	MV_FREE struct msg_reply *rep = calloc(1, sizeof *rep);
	struct mv_err err = { .code = result->code };
	if (!rep)
		return;
	memcpy(err.msg, result->text, sizeof err.msg);
	rep->state_bytes = result->state_bytes;
	rep->memory_bytes = result->memory_bytes;
	rep->memory_data_bytes = result->memory_data_bytes;
	rep->pause_ns = s->pause.ns;
	rep->layers_frozen = s->pause.layers_frozen;
	reply(c, c->snapshot_id, rep, -result->code, &err);
}

// Answered by on_snapshot(), when everything is written.
static int do_snapshot(struct control *c, struct msg *m, struct msg_reply *rep, struct mv_err *err)
{
	struct msg_snapshot s;
	int r = mv_state_load(&msg_snapshot_table, m->body, m->body_len, &s, err);
	if (r)
		return r;
	if (m->n_fds < 2 + s.progress)
		return mv_fail(err, EPROTO, "a snapshot needs %u descriptors", 2 + s.progress);
	r = live_start(&c->snapshot, c->vm, m->fds, m->n_fds, &s, on_snapshot, c, err);
	if (!r)
		c->snapshot_id = m->id;
	else // of this one, not of one that is under way
		rep->layers_frozen = !c->snapshot.pid && c->snapshot.pause.layers_frozen;
	return r;
}

static int do_fork(struct control *c, struct msg *m, struct msg_reply *rep, struct mv_err *err)
{
	struct live_pause pause = { 0 };
	struct zygote *z = c->zygote;
	while (z < c->zygote + CONTROL_ZYGOTES && z->pid)
		z++;
	if (z == c->zygote + CONTROL_ZYGOTES)
		return mv_fail(err, EBUSY, "%d forks of this VM are in progress", CONTROL_ZYGOTES);
	if (m->n_fds < 1)
		return mv_fail(err, EPROTO, "a fork needs a descriptor");
	int r = zygote_start(z, c->vm, m->fds, m->n_fds, &pause, err);
	rep->pause_ns = pause.ns;
	rep->layers_frozen = pause.layers_frozen;
	rep->pid = (uint32_t)z->pid;
	return r;
}

// 1: it ends, and nobody waits for an answer.
static int do_adopt(struct control *c, const struct msg *m, struct msg_reply *rep, struct mv_err *err)
{
	struct vm *vm = c->vm;
	struct msg_adopt a;
	int r = mv_state_load(&msg_adopt_table, m->body, m->body_len, &a, err);
	if (r)
		return r;
	if (!c->orphan.waits || strcmp(a.id, vm->cfg.id))
		return mv_fail(err, EINVAL, "this is VM %s, and not to be adopted", vm->cfg.id);
	if (a.end) {
		mv_log(MV_WARN, "vm %s: unknown to the daemon that came: it ends", vm->cfg.name);
		mv_loop_stop(&vm->loop);
		return 1;
	}
	c->orphan.timeout_s = a.orphan_s;
	orphan_end(&c->orphan);
	park_tell_again(vm);
	vm_balloon_info(vm, &rep->balloon);
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++)
		if (vm->cfg.drive[i].layer != VMCFG_LAYER_NONE)
			rep->layers[i] = (uint8_t)vio_blk_layers(vm->dev[i]);
	for (uint32_t i = 0; i < vm->cfg.n_nets; i++)
		vm_net_get(vm, i, &rep->net[i]);
	rep->n_nets = vm->cfg.n_nets;
	for (uint32_t i = 0; i < vm->cfg.n_drives; i++)
		rep->drive[i] = (struct msg_drive_set){ .index = i, .rate = vm->cfg.drive[i].rate };
	rep->n_drives = vm->cfg.n_drives;
	for (uint32_t i = 0; i < vm->cfg.n_pmems; i++)
		rep->pmem[i] = (struct msg_pmem_set){ .index = i, .rate = vm->cfg.pmem[i].rate };
	rep->n_pmems = vm->cfg.n_pmems;
	return 0;
}

static int do_devices(struct control *c, const struct msg *m, struct msg_reply *rep, struct mv_err *err)
{
	struct msg_device_query q;
	MV_FREE struct msg_device *d = calloc(1, sizeof *d);
	MV_BUF bytes = { 0 };
	int r = d ? mv_state_load(&msg_device_query_table, m->body, m->body_len, &q, err)
		  : mv_fail(err, ENOMEM, "out of memory");
	if (r)
		return r;
	vm_describe_device(c->vm, q.slot, d);
	mv_state_save(&msg_device_table, d, &bytes);
	if (bytes.failed || bytes.len > sizeof rep->data)
		return mv_fail(err, E2BIG, "device %u does not fit an answer", q.slot);
	memcpy(rep->data, bytes.p, bytes.len);
	rep->n_data = (uint32_t)bytes.len;
	return 0;
}

static int do_stop(struct control *c, const struct msg *m, struct mv_err *err)
{
	struct msg_stop s;
	int r = mv_state_load(&msg_stop_table, m->body, m->body_len, &s, err);
	if (r)
		return r;
	if (c->vm->state != VM_RUNNING)
		return mv_fail(err, EBUSY, "the VM is %s", vm_state_name(c->vm->state));
	if ((r = park_wake(c->vm, PARK_WOKEN_BY_REQUEST, err))) // their interrupts need KVM
		return r;
	return s.mode == VM_STOP_CTRL_ALT_DEL ? arch_ctrl_alt_del(c->vm, err) : arch_power_button(c->vm, err);
}

static void handle(struct control *c, struct msg *m)
{
	struct mv_err err = { 0 };
	int r;
	if (c->orphan.waits && m->type != MSG_ADOPT) {
		reply_empty(c, m->id, mv_fail(&err, EPROTO, "this VM is not adopted yet"), &err);
		return;
	}
	if (m->type == MSG_CLAIM) { // answered later: the room for an answer is a mapping's worth of time
		r = do_claim(c, m, &err);
		if (r)
			reply_empty(c, m->id, r, &err);
		else
			c->claim_id = m->id;
		return;
	}
	MV_FREE struct msg_reply *rep = calloc(1, sizeof *rep);
	if (!rep)
		return;
	switch (m->type) {
	case MSG_BOOT:
	case MSG_RESTORE: r = do_setup(c, m, &err); break;
	case MSG_MAKE_KVM:
	case MSG_WARM: r = do_warm(c, m, &err); break;
	case MSG_NET_SET:
	case MSG_DRIVE_SET: r = do_device_set(c, m, &err); break;
	case MSG_PMEM_SET: r = do_pmem_set(c, m, &err); break;
	case MSG_METADATA: r = do_metadata(c, m, &err); break;
	case MSG_RUN:
		r = c->snapshot.pid && c->snapshot.copies_layers
			    ? mv_fail(&err, EBUSY, "a snapshot copies the VM's layers")
			    : vm_run(c->vm, &err);
		break;
	case MSG_PAUSE: r = vm_pause(c->vm, &err); break;
	case MSG_SNAPSHOT:
		r = do_snapshot(c, m, rep, &err);
		if (!r)
			return;
		break;
	case MSG_BALLOON_SET:
	case MSG_BALLOON_STATS: r = do_balloon(c, m, rep, &err); break;
	case MSG_BALLOON_HINT:
		r = do_hint(c, m, &err);
		if (!r)
			return;
		break;
	case MSG_BALLOON_STOP_HINT: r = vm_balloon_stop_hint(c->vm, &err); break;
	case MSG_FORK: r = do_fork(c, m, rep, &err); break;
	case MSG_PARK: r = do_park(c, m, &err); break;
	case MSG_ADOPT:
		r = do_adopt(c, m, rep, &err);
		if (r > 0)
			return;
		break;
	case MSG_STOP: r = do_stop(c, m, &err); break;
	case MSG_CONSOLE_WRITE: r = do_console_write(c, m, &err); break;
	case MSG_ACTIVITY:
		rep->activity = vm_activity(c->vm);
		r = 0;
		break;
	case MSG_DEVICES: r = do_devices(c, m, rep, &err); break;
	case MSG_CONSOLE_READ:
		r = do_console_read(c, m, &err);
		if (!r)
			return; // answered when there is something
		break;
	default: r = mv_fail(&err, EPROTO, "unknown message %u", m->type);
	}
	reply(c, m->id, rep, r, &err);
	if (m->type == MSG_BOOT || m->type == MSG_RESTORE)
		mv_scratch_drop();
}

static void on_message(void *arg, uint32_t events);

static void on_connected(void *arg, int fd)
{
	struct control *c = arg;
	const int room = 4 * (int)MSG_MAX_BYTES; // as spawn_socket() gives it
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	c->fd = fd;
	int r = mv_watch_add(&c->vm->loop, &c->watch, fd, EPOLLIN, on_message, c);
	if (r) {
		mv_log(MV_ERROR, "cannot watch the new daemon: %s", strerror(-r));
		mv_loop_stop(&c->vm->loop);
	}
}

static void on_late(void *arg) { mv_loop_stop(&((struct control *)arg)->vm->loop); }

// What was under way, nobody wants any more.
static void abort_all(struct control *c)
{
	live_abort(&c->snapshot);
	for (int i = 0; i < CONTROL_ZYGOTES; i++)
		zygote_abort(&c->zygote[i]);
	memset(c->reader, 0, sizeof c->reader);
	c->claim_id = c->hint_id = 0;
}

// The daemon is gone, or wants this VM gone (then it was killed).
static void on_gone(struct control *c)
{
	struct vm *vm = c->vm;
	bool loaded = vm->state == VM_CREATED || vm->state == VM_RUNNING || vm->state == VM_PAUSED;
	mv_watch_del(&c->watch);
	mv_close(&c->fd);
	abort_all(c);
	// Its memory fills by the daemon's templates, which are gone as well: see do_setup().
	if (!loaded || vm->shell || vm->lazy || vm->uffd_fd >= 0 || orphan_begin(&c->orphan, &vm->loop))
		mv_loop_stop(&vm->loop);
}

static void on_message(void *arg, uint32_t events)
{
	struct control *c = arg;
	struct msg m;
	(void)events;
	int r = msg_recv(c->fd, c->buf, &m);
	if (r == -EAGAIN)
		return;
	if (r && r != -EPIPE)
		mv_log(MV_ERROR, "bad message from the daemon: %s", strerror(-r));
	if (r == -EPIPE || (r && c->orphan.waits)) { // the latter: whoever that is, no daemon
		on_gone(c);
		return;
	}
	if (r) {
		mv_loop_stop(&c->vm->loop);
		return;
	}
	handle(c, &m);
	msg_close_fds(&m);
}

int control_init(struct control *c, struct vm *vm, int fd, uint64_t process_start_ns, struct mv_err *err)
{
	c->vm = vm;
	c->fd = fd;
	c->gathering = c->used = false;
	c->claim_id = c->hint_id = 0;
	memset(c->reader, 0, sizeof c->reader);
	// A forked process has its parent's.
	memset(c->zygote, 0, sizeof c->zygote);
	c->snapshot = (struct live_snapshot){ 0 };
	orphan_init(&c->orphan, on_connected, on_late, c);
	vm->owner = c;
	vm->on_change = on_change;
	vm->on_lazy = on_lazy;
	vm->on_recorded = on_recorded;
	vm->on_balloon = on_balloon;
	vm->on_parked = on_parked;
	vm->times.process_start = process_start_ns;
	int r = mv_timer_init(&vm->loop, &c->timer, on_timer, c);
	if (!r)
		r = mv_watch_add(&vm->loop, &c->watch, fd, EPOLLIN, on_message, c);
	return r ? mv_fail(err, -r, "control socket: %s", strerror(-r)) : 0;
}

void control_fini(struct control *c)
{
	if (c->vm->state == VM_EXITED)
		live_finish(&c->snapshot);
	abort_all(c);
	orphan_fini(&c->orphan);
	mv_watch_del(&c->watch);
	mv_timer_fini(&c->timer);
}

int vmm_serve(uint64_t start_ns, const struct vm_seed *seed)
{
	static struct control control;
	MV_FREE struct vm *vm = calloc(1, sizeof *vm); // fresh pages, also in a forked process
	struct mv_err err = { .msg = "out of memory" };

	if (!vm || vm_init(vm, &err) || control_init(&control, vm, VMM_CONTROL_FD, start_ns, &err)) {
		mv_log(MV_ERROR, "%s", err.msg);
		return 1;
	}
	vm->seed = seed;
	int r = mv_loop_run(&vm->loop);
	control_fini(&control);
	// A vCPU may wait for a page that nobody fills any more; it can't be joined.
	if (vm->uffd_fd >= 0)
		_exit(r ? 1 : 0);
	vm_fini(vm);
	return r ? 1 : 0;
}
