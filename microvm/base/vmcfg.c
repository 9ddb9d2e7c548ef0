// SPDX-License-Identifier: Apache-2.0
#include "microvm/base/vmcfg.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "microvm/base/gmem.h"

static const struct mv_field bucket_fields[] = {
	MV_INT(struct vmcfg_bucket, size, 1, MV_U64, 0, VMCFG_MAX_TOKENS),
	MV_INT(struct vmcfg_bucket, burst, 2, MV_U64, 0, VMCFG_MAX_TOKENS),
	MV_INT(struct vmcfg_bucket, refill_ms, 3, MV_U64, 0, VMCFG_MAX_REFILL_MS),
};
static MV_DEFINE_TABLE(bucket_table, struct vmcfg_bucket, bucket_fields);

static const struct mv_field rate_fields[] = {
	MV_SUB(struct vmcfg_rate, bandwidth, 1, bucket_table),
	MV_SUB(struct vmcfg_rate, ops, 2, bucket_table),
};
MV_DEFINE_TABLE(vmcfg_rate_table, struct vmcfg_rate, rate_fields);

static const struct mv_field drive_fields[] = {
	MV_STRING(struct vmcfg_drive, id, 1),
	MV_STRING(struct vmcfg_drive, path, 2),
	MV_STRING(struct vmcfg_drive, serial, 3),
	MV_FLAG(struct vmcfg_drive, read_only, 4),
	MV_OPT_INT(struct vmcfg_drive, layer, 5, MV_U32, VMCFG_LAYER_NONE, VMCFG_LAYER_KEPT),
	MV_OPT_STRING(struct vmcfg_drive, layer_path, 6),
	MV_OPT_SUB(struct vmcfg_drive, rate, MV_TAG_SKIP + 7, vmcfg_rate_table),
	MV_OPT_INT(struct vmcfg_drive, block_size, MV_TAG_SKIP + 8, MV_U32, 0, 4096),
	MV_OPT_INT(struct vmcfg_drive, cache, MV_TAG_SKIP + 9, MV_U32, VMCFG_CACHE_WRITEBACK,
		   VMCFG_CACHE_UNSAFE),
	MV_OPT_FLAG(struct vmcfg_drive, direct, MV_TAG_SKIP + 10),
	MV_OPT_INT(struct vmcfg_drive, queues, MV_TAG_SKIP + 11, MV_U32, 0, VMCFG_MAX_BLK_QUEUES),
};
static MV_DEFINE_TABLE(drive_table, struct vmcfg_drive, drive_fields);

static const struct mv_field forward_fields[] = {
	MV_INT(struct vmcfg_forward, host_port, 1, MV_U32, 1, UINT16_MAX),
	MV_INT(struct vmcfg_forward, guest_port, 2, MV_U32, 1, UINT16_MAX),
	MV_INT(struct vmcfg_forward, protocol, 3, MV_U32, VMCFG_TCP, VMCFG_UDP),
	MV_STRING(struct vmcfg_forward, host_address, 4),
};
static MV_DEFINE_TABLE(forward_table, struct vmcfg_forward, forward_fields);

static const struct mv_field user_fields[] = {
	MV_FLAG(struct vmcfg_user, present, 1),
	MV_FLAG(struct vmcfg_user, host_loopback, 2),
	MV_ARRAY(struct vmcfg_user, forward, n_forwards, 3, forward_table),
};
static MV_DEFINE_TABLE(user_table, struct vmcfg_user, user_fields);

static const struct mv_field net_fields[] = {
	MV_STRING(struct vmcfg_net, id, 1),
	MV_STRING(struct vmcfg_net, tap, 2),
	MV_RAW(struct vmcfg_net, mac, 3),
	MV_OPT_STRING(struct vmcfg_net, socket, MV_TAG_SKIP + 4),
	MV_OPT_SUB(struct vmcfg_net, user, MV_TAG_SKIP + 5, user_table),
	MV_OPT_INT(struct vmcfg_net, mtu, MV_TAG_SKIP + 6, MV_U32, 0, UINT16_MAX),
	MV_OPT_INT(struct vmcfg_net, queues, MV_TAG_SKIP + 7, MV_U32, 0, VMCFG_MAX_PAIRS),
	MV_OPT_SUB(struct vmcfg_net, rx_rate, MV_TAG_SKIP + 8, vmcfg_rate_table),
	MV_OPT_SUB(struct vmcfg_net, tx_rate, MV_TAG_SKIP + 9, vmcfg_rate_table),
};
MV_DEFINE_TABLE(vmcfg_net_table, struct vmcfg_net, net_fields);

static const struct mv_field vsock_fields[] = {
	MV_FLAG(struct vmcfg_vsock, present, 1),
	MV_INT(struct vmcfg_vsock, cid, 2, MV_U32, 0, UINT32_MAX - 1),
	MV_STRING(struct vmcfg_vsock, path, 3),
};
MV_DEFINE_TABLE(vmcfg_vsock_table, struct vmcfg_vsock, vsock_fields);

const char *const vmcfg_metadata_versions[] = { "v2", "v1", NULL };

static const struct mv_field metadata_fields[] = {
	MV_FLAG(struct vmcfg_metadata, present, 1),
	MV_STRING(struct vmcfg_metadata, address, 2),
	MV_INT(struct vmcfg_metadata, version, 3, MV_U32, VMCFG_METADATA_V2, VMCFG_METADATA_V1),
	MV_FLAG(struct vmcfg_metadata, imds_compat, 4),
	{ .name = "net",
	  .tag = 5,
	  .type = MV_STR,
	  .offset = MV_OFF(struct vmcfg_metadata, net),
	  .size = VMCFG_NAME_LEN,
	  .max_count = VMCFG_MAX_NETS,
	  .count_offset = MV_OFF(struct vmcfg_metadata, n_nets) },
};
static MV_DEFINE_TABLE(metadata_table, struct vmcfg_metadata, metadata_fields);

const char *const vmcfg_huge_pages[] = { "none", "thp", "2M", "1G", NULL };

const char *const vmcfg_cpu_templates[] = { "host", "x86-64-v2", "x86-64-v3", "armv8-a", "armv8.2-a", NULL };

const char *const vmcfg_cpu_registers[] = { "eax", "ebx", "ecx", "edx", NULL };

static const struct mv_field cpuid_fields[] = {
	MV_INT(struct vmcfg_cpuid, leaf, 1, MV_U32, 0, UINT32_MAX),
	MV_INT(struct vmcfg_cpuid, subleaf, 2, MV_U32, 0, UINT32_MAX),
	MV_INT(struct vmcfg_cpuid, reg, 3, MV_U32, VMCFG_EAX, VMCFG_EDX),
	MV_INT(struct vmcfg_cpuid, clear, 4, MV_U32, 0, UINT32_MAX),
	MV_INT(struct vmcfg_cpuid, set, 5, MV_U32, 0, UINT32_MAX),
};
static MV_DEFINE_TABLE(cpuid_table, struct vmcfg_cpuid, cpuid_fields);

static const struct mv_field msr_fields[] = {
	MV_INT(struct vmcfg_msr, index, 1, MV_U32, 0, UINT32_MAX),
	MV_INT(struct vmcfg_msr, clear, 2, MV_U64, 0, UINT64_MAX),
	MV_INT(struct vmcfg_msr, set, 3, MV_U64, 0, UINT64_MAX),
};
static MV_DEFINE_TABLE(msr_table, struct vmcfg_msr, msr_fields);

static const struct mv_field cpu_fields[] = {
	MV_FLAG(struct vmcfg_cpu, present, 1),
	MV_INT(struct vmcfg_cpu, template, 2, MV_U32, VMCFG_CPU_HOST, VMCFG_CPU_ARM8_2),
	{ .name = "disable",
	  .tag = 3,
	  .type = MV_STR,
	  .offset = MV_OFF(struct vmcfg_cpu, disable),
	  .size = VMCFG_FEATURE_LEN,
	  .max_count = VMCFG_MAX_DISABLE,
	  .count_offset = MV_OFF(struct vmcfg_cpu, n_disable) },
	MV_ARRAY(struct vmcfg_cpu, cpuid, n_cpuid, MV_TAG_SKIP + 4, cpuid_table),
	MV_ARRAY(struct vmcfg_cpu, msr, n_msrs, MV_TAG_SKIP + 5, msr_table),
};
static MV_DEFINE_TABLE(cpu_table, struct vmcfg_cpu, cpu_fields);

static const struct mv_field ready_fields[] = {
	MV_FLAG(struct vmcfg_ready, present, 1),
	MV_OPT_STRING(struct vmcfg_ready, console, 2),
	MV_OPT_INT(struct vmcfg_ready, vsock_port, 3, MV_U32, 0, UINT32_MAX - 1),
};
static MV_DEFINE_TABLE(ready_table, struct vmcfg_ready, ready_fields);

static const struct mv_field balloon_fields[] = {
	MV_FLAG(struct vmcfg_balloon, present, 1),
	MV_FLAG(struct vmcfg_balloon, deflate_on_oom, 2),
	MV_FLAG(struct vmcfg_balloon, free_page_reporting, 3),
	MV_INT(struct vmcfg_balloon, target_mib, 4, MV_U32, 0, VMCFG_MAX_MEM_MIB),
	MV_INT(struct vmcfg_balloon, stats_interval_s, 5, MV_U32, 0, VMCFG_MAX_INTERVAL_S),
	MV_OPT_FLAG(struct vmcfg_balloon, free_page_hinting, MV_TAG_SKIP + 6),
};
static MV_DEFINE_TABLE(balloon_table, struct vmcfg_balloon, balloon_fields);

static const struct mv_field console_fields[] = {
	MV_STRING(struct vmcfg_console, id, 1),
	MV_STRING(struct vmcfg_console, path, 2),
	MV_FLAG(struct vmcfg_console, tty, 3),
};
static MV_DEFINE_TABLE(console_table, struct vmcfg_console, console_fields);

static const struct mv_field pmem_fields[] = {
	MV_STRING(struct vmcfg_pmem, id, 1),
	MV_STRING(struct vmcfg_pmem, path, 2),
	MV_FLAG(struct vmcfg_pmem, read_only, 3),
	MV_FLAG(struct vmcfg_pmem, other_file, 4),
	MV_OPT_SUB(struct vmcfg_pmem, rate, MV_TAG_SKIP + 5, vmcfg_rate_table),
};
static MV_DEFINE_TABLE(pmem_table, struct vmcfg_pmem, pmem_fields);

static const struct mv_field vmcfg_fields[] = {
	MV_STRING(struct vmcfg, name, 1),
	MV_STRING(struct vmcfg, id, 2),
	MV_INT(struct vmcfg, vcpus, 3, MV_U32, 1, VMCFG_MAX_VCPUS),
	MV_INT(struct vmcfg, mem_mib, 4, MV_U32, VMCFG_MIN_MEM_MIB, VMCFG_MAX_MEM_MIB),
	MV_INT(struct vmcfg, discovery, 5, MV_U32, VMCFG_ACPI, VMCFG_ACPI_AND_CMDLINE),
	MV_STRING(struct vmcfg, kernel, 6),
	MV_STRING(struct vmcfg, initrd, 7),
	MV_STRING(struct vmcfg, cmdline, 8),
	MV_ARRAY(struct vmcfg, drive, n_drives, 9, drive_table),
	MV_ARRAY(struct vmcfg, net, n_nets, 10, vmcfg_net_table),
	MV_SUB(struct vmcfg, vsock, 11, vmcfg_vsock_table),
	MV_FLAG(struct vmcfg, rng, 12),
	MV_INT(struct vmcfg, boot, 13, MV_U32, VMCFG_BOOT_AUTO, VMCFG_BOOT_LINUX64),
	MV_OPT_SUB(struct vmcfg, cpu, MV_TAG_SKIP + 14, cpu_table), // its effect is in the saved vCPUs
	MV_OPT_FLAG(struct vmcfg, track_dirty, MV_TAG_SKIP + 15),
	MV_OPT_SUB(struct vmcfg, ready, MV_TAG_SKIP + 16, ready_table),
	MV_OPT_SUB(struct vmcfg, balloon, MV_TAG_SKIP + 30, balloon_table),
	MV_ARRAY(struct vmcfg, console, n_consoles, MV_TAG_SKIP + 31, console_table),
	MV_ARRAY(struct vmcfg, pmem, n_pmems, MV_TAG_SKIP + 32, pmem_table),
	MV_OPT_INT(struct vmcfg, huge_pages, MV_TAG_SKIP + 33, MV_U32, GMEM_4K, GMEM_1G),
	MV_OPT_SUB(struct vmcfg, metadata, MV_TAG_SKIP + 34, metadata_table),
	MV_OPT_SUB(struct vmcfg, rng_rate, MV_TAG_SKIP + 35, vmcfg_rate_table),
};
MV_DEFINE_TABLE(vmcfg_table, struct vmcfg, vmcfg_fields);

bool vmcfg_name_ok(const char *name)
{
	size_t len = strlen(name);
	if (len == 0 || len >= VMCFG_NAME_LEN || !isalnum((unsigned char)name[0]))
		return false;
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("_.-", name[i]))
			return false;
	return true;
}

static int check_id(const char *what, const char *id, struct mv_err *err)
{
	if (vmcfg_name_ok(id))
		return 0;
	return mv_fail(err, EINVAL,
		       "%s \"%s\": use 1 to 64 letters, digits, '_', '.' or '-', starting with a "
		       "letter or digit",
		       what, id);
}

static int check_user(const struct vmcfg_net *n, struct mv_err *err)
{
	const struct vmcfg_user *u = &n->user;
	struct in_addr a;
	for (uint32_t i = 0; i < u->n_forwards; i++) {
		const struct vmcfg_forward *f = &u->forward[i];
		if (f->host_address[0] && inet_pton(AF_INET, f->host_address, &a) != 1)
			return mv_fail(err, EINVAL, "net %s: host_address \"%s\" is not an IPv4 address",
				       n->id, f->host_address);
		// passt sends the guest's answers to the gateway, which then must be the host.
		if (f->protocol == VMCFG_UDP && !u->host_loopback)
			return mv_fail(err, EINVAL, "net %s: a forwarded UDP port needs host_loopback: true",
				       n->id);
		for (uint32_t k = 0; k < i; k++)
			if (u->forward[k].protocol == f->protocol && u->forward[k].host_port == f->host_port)
				return mv_fail(err, EINVAL, "net %s: host_port %u is forwarded twice", n->id,
					       f->host_port);
	}
	return 0;
}

static int check_net(const struct vmcfg *c, uint32_t i, struct mv_err *err)
{
	static const uint8_t zero[6];
	const struct vmcfg_net *n = &c->net[i];
	const int behind = !!n->tap[0] + !!n->socket[0] + n->user.present;
	if (behind > 1 || (!behind && !vmcfg_net_metadata(c, i)))
		return mv_fail(err, EINVAL,
			       "net %s: give exactly one of tap, socket and user; none of them only to one "
			       "that has the metadata_service",
			       n->id);
	if (strchr(n->tap, '/') || strchr(n->tap, '%'))
		return mv_fail(err, EINVAL, "net %s: tap must be the name of a tap (1-15 characters)", n->id);
	if (n->socket[0] && n->socket[0] != '/')
		return mv_fail(err, EINVAL, "net %s: socket must be an absolute path", n->id);
	if (check_user(n, err) || vmcfg_check_rate(&n->rx_rate, "net", n->id, err) ||
	    vmcfg_check_rate(&n->tx_rate, "net", n->id, err))
		return -EINVAL;
	if (n->mtu && (n->mtu < VMCFG_MIN_MTU || n->mtu > UINT16_MAX))
		return mv_fail(err, EINVAL, "net %s: mtu: %u is not within %u..65535", n->id, n->mtu,
			       VMCFG_MIN_MTU);
	if (n->mtu && n->user.present)
		return mv_fail(err, EINVAL, "net %s: a user network has no mtu but 1500", n->id);
	if (n->queues > VMCFG_MAX_PAIRS || (n->queues > 1 && !n->tap[0]))
		return mv_fail(err, EINVAL, "net %s: queues: up to %u, and more than one with a tap only",
			       n->id, VMCFG_MAX_PAIRS);
	if ((n->mac[0] & 1) || !memcmp(n->mac, zero, 6))
		return mv_fail(err, EINVAL, "net %s: mac must be a unicast address", n->id);
	return 0;
}

static int check_bucket(const struct vmcfg_bucket *b, const char *kind, const char *what, const char *id,
			struct mv_err *err)
{
	if (b->size > VMCFG_MAX_TOKENS || b->burst > VMCFG_MAX_TOKENS || b->refill_ms > VMCFG_MAX_REFILL_MS)
		return mv_fail(err, EINVAL,
			       "%s %s: rate_limit: %s: size and one_time_burst are at most %llu, "
			       "refill_time_ms %u",
			       what, id, kind, VMCFG_MAX_TOKENS, VMCFG_MAX_REFILL_MS);
	if (!b->size != !b->refill_ms || (b->burst && !b->size))
		return mv_fail(err, EINVAL, "%s %s: rate_limit: %s needs a size and a refill_time_ms", what,
			       id, kind);
	return 0;
}

int vmcfg_check_rate(const struct vmcfg_rate *r, const char *what, const char *id, struct mv_err *err)
{
	int e = check_bucket(&r->bandwidth, "bandwidth", what, id, err);
	return e ? e : check_bucket(&r->ops, "ops", what, id, err);
}

static int check_drive(const struct vmcfg_drive *d, struct mv_err *err)
{
	if (!d->path[0])
		return mv_fail(err, EINVAL, "drive %s: path is missing", d->id);
	if (d->read_only && d->layer != VMCFG_LAYER_NONE)
		return mv_fail(err, EINVAL, "drive %s: a read-only drive can have no layer", d->id);
	if (d->layer == VMCFG_LAYER_KEPT && d->layer_path[0] != '/')
		return mv_fail(err, EINVAL, "drive %s: a kept layer needs layer_path, a folder for it",
			       d->id);
	if (d->layer != VMCFG_LAYER_KEPT && d->layer_path[0])
		return mv_fail(err, EINVAL, "drive %s: layer_path is for layer kept only", d->id);
	if (d->direct && d->layer != VMCFG_LAYER_NONE)
		return mv_fail(err, EINVAL, "drive %s: a drive with a layer can't be direct", d->id);
	if (d->cache == VMCFG_CACHE_UNSAFE && d->layer == VMCFG_LAYER_KEPT)
		return mv_fail(err, EINVAL, "drive %s: a kept layer can't have cache unsafe", d->id);
	if (d->block_size && d->block_size != 512 && d->block_size != 4096)
		return mv_fail(err, EINVAL, "drive %s: block_size is 512 or 4096", d->id);
	return vmcfg_check_rate(&d->rate, "drive", d->id, err);
}

static bool same_peer(const struct vmcfg_net *a, const struct vmcfg_net *b)
{
	return (a->tap[0] && !strcmp(a->tap, b->tap)) || (a->socket[0] && !strcmp(a->socket, b->socket));
}

bool vmcfg_net_metadata(const struct vmcfg *c, uint32_t net)
{
	const struct vmcfg_metadata *m = &c->metadata;
	bool there = m->present && !m->n_nets;
	for (uint32_t i = 0; m->present && i < m->n_nets; i++)
		there = there || !strcmp(m->net[i], c->net[net].id);
	return there;
}

void vmcfg_metadata_address(const struct vmcfg *c, uint8_t ret_address[4])
{
	const char *text = c->metadata.address;
	inet_pton(AF_INET, text[0] ? text : VMCFG_METADATA_ADDRESS, ret_address);
}

static int check_metadata(const struct vmcfg *c, struct mv_err *err)
{
	const struct vmcfg_metadata *m = &c->metadata;
	uint8_t a[4];
	if (!m->present)
		return 0;
	// RFC 3927 section 2.1: the first and the last 256 are reserved.
	if (m->address[0] &&
	    (inet_pton(AF_INET, m->address, a) != 1 || a[0] != 169 || a[1] != 254 || a[2] < 1 || a[2] > 254))
		return mv_fail(
			err, EINVAL,
			"metadata_service: address \"%s\" is not within 169.254.1.0 to 169.254.254.255",
			m->address);
	if (m->version > VMCFG_METADATA_V1)
		return mv_fail(err, EINVAL, "metadata_service: unknown version %u", m->version);
	if (!c->n_nets)
		return mv_fail(
			err, EINVAL,
			"metadata_service: the VM has no net; one without tap, socket and user will do");
	for (uint32_t i = 0; i < m->n_nets; i++) {
		bool there = false;
		for (uint32_t k = 0; k < c->n_nets; k++)
			there = there || !strcmp(c->net[k].id, m->net[i]);
		if (!there)
			return mv_fail(err, EINVAL, "metadata_service: nets: the VM has no net \"%s\"",
				       m->net[i]);
	}
	return 0;
}

static int check_huge_pages(const struct vmcfg *c, struct mv_err *err)
{
	if (!c->huge_pages)
		return 0;
	if (c->huge_pages > GMEM_1G)
		return mv_fail(err, EINVAL, "huge_pages: unknown kind %u", c->huge_pages);
	uint32_t mib = (uint32_t)(gmem_pages_bytes(c->huge_pages) >> 20);
	if (c->track_dirty)
		return mv_fail(
			err, EINVAL,
			"huge_pages: not with track_dirty, since KVM maps pages of 4 KiB to a guest whose "
			"writes it logs");
	if (!gmem_pages_pooled(c->huge_pages))
		return 0;
	if (c->mem_mib % mib)
		return mv_fail(err, EINVAL, "huge_pages: memory_mib: %u is not a multiple of %u", c->mem_mib,
			       mib);
	if (c->balloon.present)
		return mv_fail(
			err, EINVAL,
			"huge_pages: not with a balloon, whose pages of 4 KiB can't be given back out of "
			"one of %u MiB; use thp",
			mib);
	return 0;
}

static int check_cpu(const struct vmcfg_cpu *c, struct mv_err *err)
{
	for (uint32_t i = 0; i < c->n_cpuid; i++)
		if (c->cpuid[i].clear & c->cpuid[i].set)
			return mv_fail(err, EINVAL, "cpu.cpuid: leaf 0x%x, %s: a bit can't be 0 and 1",
				       c->cpuid[i].leaf, vmcfg_cpu_registers[c->cpuid[i].reg]);
	for (uint32_t i = 0; i < c->n_msrs; i++) {
		if (c->msr[i].clear & c->msr[i].set)
			return mv_fail(err, EINVAL, "cpu.msrs: 0x%x: a bit can't be 0 and 1",
				       c->msr[i].index);
		for (uint32_t k = 0; k < i; k++)
			if (c->msr[k].index == c->msr[i].index)
				return mv_fail(err, EINVAL, "cpu.msrs: 0x%x is there twice", c->msr[i].index);
	}
	return 0;
}

int vmcfg_check(const struct vmcfg *c, struct mv_err *err)
{
	int r = check_id("name", c->name, err);
	if (r)
		return r;
	if (c->vcpus < 1 || c->vcpus > VMCFG_MAX_VCPUS)
		return mv_fail(err, EINVAL, "vcpus: %u is not within 1..%u", c->vcpus, VMCFG_MAX_VCPUS);
	if (c->mem_mib < VMCFG_MIN_MEM_MIB || c->mem_mib > VMCFG_MAX_MEM_MIB)
		return mv_fail(err, EINVAL, "memory_mib: %u is not within %u..%u", c->mem_mib,
			       VMCFG_MIN_MEM_MIB, VMCFG_MAX_MEM_MIB);
	for (uint32_t i = 0; i < c->n_drives; i++) {
		if ((r = check_id("drive", c->drive[i].id, err)))
			return r;
		if ((r = check_drive(&c->drive[i], err)))
			return r;
		if (c->drive[i].queues > 1 && c->drive[i].queues > c->vcpus)
			return mv_fail(err, EINVAL, "drive %s: queues: %u is more than the VM has vCPUs (%u)",
				       c->drive[i].id, c->drive[i].queues, c->vcpus);
		for (uint32_t k = 0; k < i; k++)
			if (!strcmp(c->drive[k].id, c->drive[i].id))
				return mv_fail(err, EINVAL, "drive %s: there twice", c->drive[i].id);
	}
	if ((r = check_metadata(c, err)) || (r = vmcfg_check_rate(&c->rng_rate, "rng", "device", err)))
		return r;
	if (!c->rng && (c->rng_rate.bandwidth.size || c->rng_rate.ops.size))
		return mv_fail(err, EINVAL, "rng_rate_limit: the VM has no rng device");
	for (uint32_t i = 0; i < c->n_nets; i++) {
		if ((r = check_id("net", c->net[i].id, err)) || (r = check_net(c, i, err)))
			return r;
		for (uint32_t k = 0; k < i; k++)
			if (!strcmp(c->net[k].id, c->net[i].id) || same_peer(&c->net[k], &c->net[i]))
				return mv_fail(err, EINVAL, "net %s: id, tap or socket there twice",
					       c->net[i].id);
	}
	if (c->vsock.present && c->vsock.cid < 3)
		return mv_fail(err, EINVAL, "vsock: cid must be 3 or more (0 to 2 are reserved)");
	for (uint32_t i = 0; i < c->n_consoles; i++) {
		const struct vmcfg_console *n = &c->console[i];
		if ((r = check_id("console", n->id, err)))
			return r;
		for (uint32_t k = 0; k < i; k++)
			if (!strcmp(c->console[k].id, n->id) ||
			    (n->path[0] && !strcmp(c->console[k].path, n->path)))
				return mv_fail(err, EINVAL, "console %s: id or path there twice", n->id);
	}
	for (uint32_t i = 0; i < c->n_pmems; i++) {
		if ((r = check_id("pmem", c->pmem[i].id, err)) ||
		    (r = vmcfg_check_rate(&c->pmem[i].rate, "pmem", c->pmem[i].id, err)))
			return r;
		if (!c->pmem[i].path[0])
			return mv_fail(err, EINVAL, "pmem %s: path is missing", c->pmem[i].id);
		for (uint32_t k = 0; k < i; k++)
			if (!strcmp(c->pmem[k].id, c->pmem[i].id))
				return mv_fail(err, EINVAL, "pmem %s: there twice", c->pmem[i].id);
	}
	if (c->balloon.target_mib > c->mem_mib)
		return mv_fail(err, EINVAL, "balloon: target_mib: %u is more than the memory of %u MiB",
			       c->balloon.target_mib, c->mem_mib);
	if ((r = check_huge_pages(c, err)) || (r = check_cpu(&c->cpu, err)))
		return r;
	if (c->ready.present && !c->ready.console[0] && !c->ready.vsock_port)
		return mv_fail(err, EINVAL, "ready: give console, vsock_port, or both");
	if (c->ready.vsock_port && !c->vsock.present)
		return mv_fail(err, EINVAL, "ready: vsock_port needs a vsock device");
	return 0;
}

void vmcfg_copy(struct vmcfg *ret_zeroed, const struct vmcfg *from)
{
	static const uint8_t zeros[256];
	for (size_t at = 0, n; at < sizeof *from; at += n) {
		n = sizeof *from - at < sizeof zeros ? sizeof *from - at : sizeof zeros;
		if (memcmp((const uint8_t *)from + at, zeros, n))
			memcpy((uint8_t *)ret_zeroed + at, (const uint8_t *)from + at, n);
	}
}

void vm_fds_init(struct vm_fds *f)
{
	memset(f, 0xff, sizeof *f); // every int becomes -1
}

void vm_fds_close(struct vm_fds *f)
{
	int *fd = (int *)f;
	for (size_t i = 0; i < sizeof *f / sizeof *fd; i++)
		mv_close(&fd[i]);
}

_Static_assert(sizeof(struct vm_fds) == VM_FDS_MAX * sizeof(int), "VM_FDS_MAX counts the members");

unsigned vm_fds_pack(const struct vm_fds *f, int ret_list[VM_FDS_MAX], vm_fd_mask *ret_mask)
{
	const int *fd = (const int *)f;
	unsigned n = 0;
	*ret_mask = (vm_fd_mask){ { 0 } };
	for (unsigned i = 0; i < VM_FDS_MAX; i++)
		if (fd[i] >= 0) {
			ret_list[n++] = fd[i];
			ret_mask->bits[i / 8] |= (uint8_t)(1u << i % 8);
		}
	return n;
}

static bool bit(const vm_fd_mask *m, unsigned i) { return m->bits[i / 8] >> i % 8 & 1; }

int vm_fds_unpack(const int *list, unsigned n, vm_fd_mask mask, struct vm_fds *ret_fds)
{
	unsigned set = 0;
	for (unsigned i = 0; i < 8 * sizeof mask.bits; i++) {
		if (bit(&mask, i) && i >= VM_FDS_MAX)
			return -EPROTO;
		set += bit(&mask, i);
	}
	if (set != n)
		return -EPROTO;
	vm_fds_init(ret_fds);
	int *fd = (int *)ret_fds;
	for (unsigned i = 0; i < VM_FDS_MAX; i++)
		if (bit(&mask, i))
			fd[i] = *list++;
	return 0;
}

size_t vmcfg_kernel_args_len(const char *cmdline)
{
	bool quoted = false, begins = true; // a word
	size_t end = 0;                     // behind the last one
	for (size_t i = 0; cmdline[i]; i++) {
		const char c = cmdline[i];
		bool space = !quoted && isspace((unsigned char)c);
		if (begins && !strncmp(cmdline + i, "--", 2) &&
		    (!cmdline[i + 2] || isspace((unsigned char)cmdline[i + 2])))
			return end;
		quoted ^= c == '"';
		begins = space;
		end = space ? end : i + 1;
	}
	return strlen(cmdline);
}
