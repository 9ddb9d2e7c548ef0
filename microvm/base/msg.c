// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/msg.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

static const struct mv_field times_fields[] = {
	MV_INT(struct msg_times, process_start, 1, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_times, request, 2, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_times, kvm_ready, 3, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_times, loaded, 4, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_times, running, 5, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_times, first_exit, 6, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_times, first_io, 7, MV_U64, 0, UINT64_MAX),
	MV_OPT_INT(struct msg_times, ready, 8, MV_U64, 0, UINT64_MAX),
};
static MV_DEFINE_TABLE(times_table, struct msg_times, times_fields);

static const struct mv_field setup_fields[] = {
	MV_SUB(struct msg_setup, cfg, 1, vmcfg_table),
	MV_RAW(struct msg_setup, fd_mask, 2),
	MV_FLAG(struct msg_setup, run, 3),
	MV_FLAG(struct msg_setup, lazy, 4),
	MV_FLAG(struct msg_setup, shell, 5),
	MV_OPT_INT(struct msg_setup, record_limit_ms, 6, MV_U32, 0, MSG_RECORD_MAX_MS),
	MV_OPT_STRING(struct msg_setup, snapshot_id, 7),
	MV_INT(struct msg_setup, orphan_s, 20, MV_U32, 0, MSG_MAX_ORPHAN_S),
};
MV_DEFINE_TABLE(msg_setup_table, struct msg_setup, setup_fields);

static const struct mv_field claim_fields[] = {
	MV_STRING(struct msg_claim, name, 1),
	MV_RAW(struct msg_claim, fd_mask, 2),
	MV_SUB(struct msg_claim, vsock, 3, vmcfg_vsock_table),
	MV_FLAG(struct msg_claim, run, 4),
	MV_ARRAY(struct msg_claim, net, n_nets, 5, vmcfg_net_table),
};
MV_DEFINE_TABLE(msg_claim_table, struct msg_claim, claim_fields);

static const struct mv_field metadata_fields[] = {
	MV_VAR(struct msg_metadata, data, n_data, 1),
};
MV_DEFINE_TABLE(msg_metadata_table, struct msg_metadata, metadata_fields);

static const struct mv_field adopt_fields[] = {
	MV_STRING(struct msg_adopt, id, 1),
	MV_FLAG(struct msg_adopt, end, 2),
	MV_INT(struct msg_adopt, orphan_s, 3, MV_U32, 0, MSG_MAX_ORPHAN_S),
};
MV_DEFINE_TABLE(msg_adopt_table, struct msg_adopt, adopt_fields);

static const struct mv_field net_set_fields[] = {
	MV_INT(struct msg_net_set, index, 1, MV_U32, 0, VMCFG_MAX_NETS - 1),
	MV_FLAG(struct msg_net_set, link_up, 2),
	MV_SUB(struct msg_net_set, rx_rate, 3, vmcfg_rate_table),
	MV_SUB(struct msg_net_set, tx_rate, 4, vmcfg_rate_table),
};
MV_DEFINE_TABLE(msg_net_set_table, struct msg_net_set, net_set_fields);
static const struct mv_field drive_set_fields[] = {
	MV_INT(struct msg_drive_set, index, 1, MV_U32, 0, VMCFG_MAX_DRIVES - 1),
	MV_FLAG(struct msg_drive_set, reread_size, 2),
	MV_INT(struct msg_drive_set, size_bytes, 3, MV_U64, 0, INT64_MAX),
	MV_SUB(struct msg_drive_set, rate, 4, vmcfg_rate_table),
	MV_OPT_FLAG(struct msg_drive_set, new_file, 5),
};
MV_DEFINE_TABLE(msg_drive_set_table, struct msg_drive_set, drive_set_fields);
static const struct mv_field pmem_set_fields[] = {
	MV_INT(struct msg_pmem_set, index, 1, MV_U32, 0, VMCFG_MAX_PMEMS - 1),
	MV_SUB(struct msg_pmem_set, rate, 2, vmcfg_rate_table),
};
MV_DEFINE_TABLE(msg_pmem_set_table, struct msg_pmem_set, pmem_set_fields);

static const struct mv_field snapshot_fields[] = {
	MV_OPT_INT(struct msg_snapshot, lz4, 1, MV_U32, 0, 2),
	MV_OPT_INT(struct msg_snapshot, incremental, 2, MV_U32, 0, 1),
	MV_OPT_INT(struct msg_snapshot, confirmed, 3, MV_U32, 0, 1),
	MV_OPT_INT(struct msg_snapshot, copy_layers, 4, MV_U32, 0, 1),
	MV_OPT_INT(struct msg_snapshot, progress, 5, MV_U32, 0, 1),
};
MV_DEFINE_TABLE(msg_snapshot_table, struct msg_snapshot, snapshot_fields);

static const struct mv_field lazy_region_fields[] = {
	MV_INT(struct msg_lazy_region, hva, 1, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_lazy_region, size_bytes, 2, MV_U64, 1, (uint64_t)VMCFG_MAX_MEM_MIB << 20),
	MV_INT(struct msg_lazy_region, file_offset, 3, MV_U64, 0, (uint64_t)VMCFG_MAX_MEM_MIB << 20),
};
static MV_DEFINE_TABLE(lazy_region_table, struct msg_lazy_region, lazy_region_fields);

static const struct mv_field lazy_fields[] = {
	MV_ARRAY(struct msg_lazy, region, n_regions, 1, lazy_region_table),
};
MV_DEFINE_TABLE(msg_lazy_table, struct msg_lazy, lazy_fields);

static const struct mv_field recorded_fields[] = {
	MV_INT(struct msg_recorded, code, 1, MV_U32, 0, 4095),
	MV_STRING(struct msg_recorded, text, 2),
};
MV_DEFINE_TABLE(msg_recorded_table, struct msg_recorded, recorded_fields);

static const struct mv_field device_query_fields[] = {
	MV_INT(struct msg_device_query, slot, 1, MV_U32, 0, 255),
};
MV_DEFINE_TABLE(msg_device_query_table, struct msg_device_query, device_query_fields);

static const struct mv_field queue_fields[] = {
	MV_INT(struct msg_queue, size, 1, MV_U32, 0, UINT16_MAX),
	MV_INT(struct msg_queue, max_size, 2, MV_U32, 0, UINT16_MAX),
	MV_FLAG(struct msg_queue, ready, 3),
	MV_INT(struct msg_queue, next_avail, 4, MV_U32, 0, UINT16_MAX),
	MV_INT(struct msg_queue, next_used, 5, MV_U32, 0, UINT16_MAX),
	MV_INT(struct msg_queue, kicks_by_event, 6, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_queue, kicks_by_exit, 7, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_queue, again, 8, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_queue, popped, 9, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_queue, used, 10, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_queue, interrupts, 11, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_queue, suppressed, 12, MV_U64, 0, INT64_MAX),
};
static MV_DEFINE_TABLE(queue_table, struct msg_queue, queue_fields);

static const struct mv_field exits_fields[] = {
	MV_INT(struct msg_exits, mmio, 1, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_exits, io, 2, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_exits, hlt, 3, MV_U64, 0, INT64_MAX),
	MV_INT(struct msg_exits, other, 4, MV_U64, 0, INT64_MAX),
};
static MV_DEFINE_TABLE(exits_table, struct msg_exits, exits_fields);

static const struct mv_field device_fields[] = {
	MV_INT(struct msg_device, n_devices, 1, MV_U32, 0, 255),
	MV_STRING(struct msg_device, name, 2),
	MV_INT(struct msg_device, device_id, 3, MV_U32, 0, 63),
	MV_INT(struct msg_device, status, 4, MV_U32, 0, 255),
	MV_INT(struct msg_device, features_offered, 5, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_device, features_acked, 6, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_device, config_interrupts, 7, MV_U64, 0, INT64_MAX),
	MV_ARRAY(struct msg_device, queue, n_queues, 8, queue_table),
	MV_ARRAY(struct msg_device, vcpu, n_vcpus, 9, exits_table),
};
MV_DEFINE_TABLE(msg_device_table, struct msg_device, device_fields);

static const struct mv_field stop_fields[] = {
	MV_INT(struct msg_stop, mode, 1, MV_U32, VM_STOP_POWER_BUTTON, VM_STOP_CTRL_ALT_DEL),
};
MV_DEFINE_TABLE(msg_stop_table, struct msg_stop, stop_fields);

static const struct mv_field console_read_fields[] = {
	MV_INT(struct msg_console_read, offset, 1, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_console_read, max_bytes, 2, MV_U32, 0, MSG_CONSOLE_BYTES),
	MV_INT(struct msg_console_read, wait_ms, 3, MV_U32, 0, 60000),
};
MV_DEFINE_TABLE(msg_console_read_table, struct msg_console_read, console_read_fields);

static const struct mv_field bytes_fields[] = {
	MV_VAR(struct msg_bytes, data, n_data, 1),
};
MV_DEFINE_TABLE(msg_bytes_table, struct msg_bytes, bytes_fields);

static const struct mv_field balloon_set_fields[] = {
	MV_FLAG(struct msg_balloon_set, has_target, 1),
	MV_FLAG(struct msg_balloon_set, has_interval, 2),
	MV_INT(struct msg_balloon_set, target_mib, 3, MV_U32, 0, VMCFG_MAX_MEM_MIB),
	MV_INT(struct msg_balloon_set, stats_interval_s, 4, MV_U32, 0, VMCFG_MAX_INTERVAL_S),
};
MV_DEFINE_TABLE(msg_balloon_set_table, struct msg_balloon_set, balloon_set_fields);

static const struct mv_field balloon_hint_fields[] = {
	MV_INT(struct msg_balloon_hint, wait_ms, 1, MV_U32, 1, MSG_HINT_MAX_MS),
};
MV_DEFINE_TABLE(msg_balloon_hint_table, struct msg_balloon_hint, balloon_hint_fields);

static const struct mv_field park_fields[] = {
	MV_INT(struct msg_park, idle_ms, 1, MV_U32, 0, MSG_MAX_PARK_MS),
};
MV_DEFINE_TABLE(msg_park_table, struct msg_park, park_fields);

static const struct mv_field parking_fields[] = {
	MV_FLAG(struct msg_parking, parked, 1),
	MV_INT(struct msg_parking, parks, 2, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_parking, wakes[PARK_WOKEN_BY_TIMER], 3, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_parking, wakes[PARK_WOKEN_BY_DEVICE], 4, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_parking, wakes[PARK_WOKEN_BY_REQUEST], 5, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_parking, parked_ns, 6, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_parking, wake_ns, 7, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_parking, wake_last_ns, 8, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_parking, wake_max_ns, 9, MV_U64, 0, UINT64_MAX),
};
MV_DEFINE_TABLE(msg_parking_table, struct msg_parking, parking_fields);

const char *const msg_balloon_stat_names[MSG_BALLOON_N_STATS] = {
	// virtio 1.2 section 5.5.6.4
	"swap_in_bytes", "swap_out_bytes",  "major_faults", "minor_faults",        "free_bytes",
	"total_bytes",   "available_bytes", "cache_bytes",  "hugetlb_allocations", "hugetlb_failures",
};

static const struct mv_field balloon_fields[] = {
	MV_FLAG(struct msg_balloon, present, 1),
	MV_INT(struct msg_balloon, target_pages, 2, MV_U32, 0, UINT32_MAX),
	MV_INT(struct msg_balloon, actual_pages, 3, MV_U32, 0, UINT32_MAX),
	MV_INT(struct msg_balloon, stats_interval_s, 4, MV_U32, 0, VMCFG_MAX_INTERVAL_S),
	MV_INT(struct msg_balloon, freed_pages, 5, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_balloon, hinted_pages, 7, MV_U64, 0, UINT64_MAX),
	{ .name = "stat",
	  .tag = 6,
	  .type = MV_U64,
	  .offset = MV_OFF(struct msg_balloon, stat),
	  .size = 8,
	  .max_count = MSG_BALLOON_N_STATS,
	  .count_offset = MV_OFF(struct msg_balloon, n_stats),
	  .max = UINT64_MAX },
};
MV_DEFINE_TABLE(msg_balloon_table, struct msg_balloon, balloon_fields);

static const struct mv_field reply_fields[] = {
	MV_INT(struct msg_reply, code, 1, MV_U32, 0, 4095),
	MV_STRING(struct msg_reply, text, 2),
	MV_INT(struct msg_reply, state, 3, MV_U32, 0, VM_EXITED),
	MV_SUB(struct msg_reply, times, 4, times_table),
	MV_INT(struct msg_reply, state_bytes, 5, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_reply, memory_bytes, 6, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_reply, memory_data_bytes, 7, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_reply, pause_ns, 8, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_reply, console_offset, 9, MV_U64, 0, UINT64_MAX),
	MV_INT(struct msg_reply, console_end, 10, MV_U64, 0, UINT64_MAX),
	MV_VAR(struct msg_reply, data, n_data, 11),
	MV_FLAG(struct msg_reply, layers_frozen, 12),
	MV_INT(struct msg_reply, pid, 13, MV_U32, 0, INT32_MAX),
	MV_INT(struct msg_reply, activity, 14, MV_U64, 0, UINT64_MAX),
	MV_RAW(struct msg_reply, layers, 20),
	MV_ARRAY(struct msg_reply, net, n_nets, 61, msg_net_set_table),
	MV_ARRAY(struct msg_reply, drive, n_drives, 60, msg_drive_set_table),
	MV_SUB(struct msg_reply, balloon, 62, msg_balloon_table),
	MV_ARRAY(struct msg_reply, pmem, n_pmems, 63, msg_pmem_set_table),
};
MV_DEFINE_TABLE(msg_reply_table, struct msg_reply, reply_fields);

static const struct mv_field forked_fields[] = {
	MV_INT(struct msg_forked, code, 1, MV_U32, 0, 4095),
	MV_INT(struct msg_forked, pid, 2, MV_U32, 0, INT32_MAX),
};
MV_DEFINE_TABLE(msg_forked_table, struct msg_forked, forked_fields);

static const struct mv_field event_fields[] = {
	MV_INT(struct msg_event, state, 1, MV_U32, VM_CREATED, VM_EXITED),
	MV_INT(struct msg_event, reason, 2, MV_U32, VM_EXIT_NONE, VM_EXIT_KILLED),
	MV_STRING(struct msg_event, detail, 3),
	MV_SUB(struct msg_event, times, 4, times_table),
	MV_INT(struct msg_event, console_end, 5, MV_U64, 0, UINT64_MAX),
	MV_VAR(struct msg_event, data, n_data, 6),
};
MV_DEFINE_TABLE(msg_event_table, struct msg_event, event_fields);

const char *vm_state_name(unsigned state)
{
	static const char *const names[] = { "unknown", "created", "running", "paused", "exited" };
	return names[state < MV_ARRAY_LEN(names) ? state : 0];
}

const char *vm_exit_name(unsigned exit)
{
	static const char *const names[] = { "none",      "shutdown", "reset",        "triple-fault",
					     "kvm-error", "killed",   "crashed",      "snapshot-corrupt",
					     "ttl",       "idle",     "out-of-memory" };
	_Static_assert(MV_ARRAY_LEN(names) == VM_N_EXITS, "a word for each");
	return names[exit < MV_ARRAY_LEN(names) ? exit : 0];
}

#define MSG_MAGIC 0x57415448u // "HTAW"

struct msg_head {
	le32_t magic;
	le16_t type, zero;
	le64_t id;
	le32_t len, zero2;
};

int msg_send(int socket_fd, uint16_t type, uint64_t id, const struct mv_table *table, const void *obj,
	     const int *fds, unsigned n_fds)
{
	MV_BUF body = { 0 };
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * VM_FDS_MAX)];

	if (n_fds > VM_FDS_MAX)
		return -EINVAL;
	if (table)
		mv_state_save(table, obj, &body);
	if (body.failed)
		return -ENOMEM;
	if (body.len > MSG_MAX_BYTES - sizeof(struct msg_head))
		return -EMSGSIZE;
	struct msg_head h = { .magic = le32_make(MSG_MAGIC),
			      .type = le16_make(type),
			      .id = le64_make(id),
			      .len = le32_make((uint32_t)body.len) };
	struct iovec iov[2] = { { &h, sizeof h }, { body.p, body.len } };
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = body.len ? 2 : 1 };
	if (n_fds) {
		memset(control, 0, sizeof control);
		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	ssize_t n;
	do
		n = sendmsg(socket_fd, &m, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? (errno == ECONNRESET ? -EPIPE : -errno) : 0;
}

int msg_recv(int socket_fd, uint8_t *buf, struct msg *ret_msg)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * VM_FDS_MAX)];
	struct iovec iov = { buf, MSG_MAX_BYTES };
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		// Not sizeof control: its padding has room for one more, which nobody would close.
		.msg_controllen = CMSG_LEN(sizeof(int) * VM_FDS_MAX)
	};
	struct msg got = { 0 };
	struct msg_head h;
	ssize_t n;

	do
		n = recvmsg(socket_fd, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		unsigned k = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		for (unsigned i = 0; i < k && got.n_fds < VM_FDS_MAX; i++)
			memcpy(&got.fds[got.n_fds++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
	}
	bool ok = (size_t)n >= sizeof h && !(m.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
	if (ok) {
		memcpy(&h, buf, sizeof h);
		ok = le32_get(h.magic) == MSG_MAGIC && !le16_get(h.zero) && !le32_get(h.zero2) &&
		     le32_get(h.len) == (size_t)n - sizeof h;
	}
	if (!ok) {
		msg_close_fds(&got);
		return n ? -EPROTO : -EPIPE; // an empty datagram counts as the end
	}
	got.type = le16_get(h.type);
	got.id = le64_get(h.id);
	got.body = buf + sizeof h;
	got.body_len = le32_get(h.len);
	*ret_msg = got;
	return 0;
}

void msg_close_fds(struct msg *m)
{
	for (unsigned i = 0; i < m->n_fds; i++)
		mv_close(&m->fds[i]);
	m->n_fds = 0;
}
