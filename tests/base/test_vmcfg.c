// SPDX-License-Identifier: Apache-2.0
#include "tests/t.h"

#include <errno.h>
#include <sys/mman.h>

#include "microvm/base/gmem.h"
#include "microvm/base/util.h"
#include "microvm/base/vmcfg.h"

static void fill(struct vmcfg *c)
{
	*c = (struct vmcfg){
		.vcpus = 2, .mem_mib = 128, .n_drives = 2, .n_nets = 2, .rng = true, .track_dirty = true
	};
	strcpy(c->name, "vm1");
	mv_uuid(c->id);
	strcpy(c->kernel, "/boot/vmlinux");
	strcpy(c->cmdline, "console=ttyS0");
	for (uint32_t i = 0; i < 2; i++) {
		snprintf(c->drive[i].id, sizeof c->drive[i].id, "disk%u", i);
		strcpy(c->drive[i].path, "/tmp/disk");
		snprintf(c->net[i].id, sizeof c->net[i].id, "net%u", i);
		snprintf(c->net[i].tap, sizeof c->net[i].tap, "tap%u", i);
		c->net[i].mac[0] = 2;
	}
	c->drive[0].rate = (struct vmcfg_rate){ { 10 << 20, 1, 100 }, { 1000, 0, 1000 } };
	c->vsock = (struct vmcfg_vsock){ .present = true, .cid = 3, .path = "/tmp/vsock" };
}

static void round_trip(void **state)
{
	struct vmcfg *c = malloc(sizeof *c), *d = malloc(sizeof *d);
	struct mv_err err = { 0 };
	MV_BUF b = { 0 };
	(void)state;
	fill(c);
	c->metadata = (struct vmcfg_metadata){ true, "169.254.7.7", VMCFG_METADATA_V1, true, { "net0" }, 1 };
	assert_int_equal(vmcfg_check(c, &err), 0);
	mv_state_save(&vmcfg_table, c, &b);
	assert_false(b.failed);
	assert_int_equal(mv_state_load(&vmcfg_table, b.p, b.len, d, &err), 0);
	assert_memory_equal(c, d, sizeof *c);
	free(c);
	free(d);
}

#define A16 "aaaaaaaaaaaaaaaa"
#define A64 A16 A16 A16 A16 // as long as a name may be

static void names(void **state)
{
	static const char *const ok[] = { "a", "0", "A.b_c-9", A64 };
	static const char *const bad[] = { "",    ".",   "..",  ".a",  "-a",       "_a",
					   "a/b", "a b", "a\n", "a%s", "\xc3\xa4", A64 "a" };
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(ok); i++)
		assert_true(vmcfg_name_ok(ok[i]));
	for (size_t i = 0; i < MV_ARRAY_LEN(bad); i++)
		assert_false(vmcfg_name_ok(bad[i]));
}

#define BAD(change, why)                                                                                     \
	do {                                                                                                 \
		fill(c);                                                                                     \
		change;                                                                                      \
		assert_int_equal(vmcfg_check(c, &err), -EINVAL);                                             \
		assert_message(err, why);                                                                    \
		assert_int_equal(vmcfg_check(c, NULL), -EINVAL);                                             \
	} while (0)

static void use_socket(struct vmcfg_net *n, const char *path)
{
	n->tap[0] = 0;
	strcpy(n->socket, path);
}

static void use_forwards(struct vmcfg_net *n, uint32_t protocol, const char *address, bool twice)
{
	n->tap[0] = 0;
	n->user = (struct vmcfg_user){ .present = true, .n_forwards = twice ? 2 : 1 };
	for (uint32_t i = 0; i < n->user.n_forwards; i++) {
		n->user.forward[i] = (struct vmcfg_forward){ 8080, 80, protocol, "" };
		strcpy(n->user.forward[i].host_address, address);
	}
}

// net NULL: all.
static void use_metadata(struct vmcfg *c, const char *address, const char *net)
{
	c->metadata = (struct vmcfg_metadata){ .present = true, .n_nets = net != NULL };
	strcpy(c->metadata.address, address);
	strcpy(c->metadata.net[0], net ? net : "");
}

static void metadata_service(void **state)
{
	static const uint8_t usual[] = { 169, 254, 169, 254 }, other[] = { 169, 254, 1, 0 };
	struct vmcfg *c = malloc(sizeof *c);
	uint8_t address[4];
	(void)state;
	fill(c);
	assert_false(vmcfg_net_metadata(c, 0));
	use_metadata(c, "", "net1");
	assert_true(!vmcfg_net_metadata(c, 0) && vmcfg_net_metadata(c, 1));
	c->net[1].tap[0] = 0;
	assert_true(!vmcfg_net_alone(&c->net[0]) && vmcfg_net_alone(&c->net[1]));
	assert_int_equal(vmcfg_check(c, NULL), 0);
	vmcfg_metadata_address(c, address);
	assert_memory_equal(address, usual, 4);
	use_metadata(c, "169.254.1.0", NULL);
	assert_true(vmcfg_net_metadata(c, 0) && vmcfg_net_metadata(c, 1));
	assert_int_equal(vmcfg_check(c, NULL), 0);
	vmcfg_metadata_address(c, address);
	assert_memory_equal(address, other, 4);
	free(c);
}

static void each_problem_has_its_message(void **state)
{
	struct vmcfg *c = malloc(sizeof *c);
	struct mv_err err;
	(void)state;
	BAD(c->name[0] = 0, "name \"\"");
	BAD(strcpy(c->name, "../x"), "name \"../x\"");
	BAD(c->vcpus = 0, "vcpus: 0 is not within 1..32");
	BAD(c->vcpus = 33, "vcpus: 33");
	BAD(c->mem_mib = 0, "memory_mib: 0");
	BAD(c->mem_mib = 3, "memory_mib: 3");
	BAD(c->mem_mib = VMCFG_MAX_MEM_MIB + 1, "memory_mib: ");
	BAD(c->drive[1].id[0] = 0, "drive \"\"");
	BAD(c->drive[0].path[0] = 0, "drive disk0: path is missing");
	BAD(strcpy(c->drive[1].id, "disk0"), "drive disk0: there twice");
	BAD(c->drive[1].rate.ops.size = 1, "drive disk1: rate_limit: ops needs a size and a refill_time_ms");
	BAD(c->drive[1].rate.bandwidth.refill_ms = 1, "drive disk1: rate_limit: bandwidth needs");
	BAD(c->drive[1].rate.bandwidth.burst = 1, "drive disk1: rate_limit: bandwidth needs");
	BAD(c->drive[0].queues = 3, "drive disk0: queues: 3 is more than the VM has vCPUs (2)");
	BAD(c->drive[0].block_size = 1024, "drive disk0: block_size is 512 or 4096");
	BAD((c->drive[0].direct = true, c->drive[0].layer = VMCFG_LAYER_EPHEMERAL), "can't be direct");
	BAD((c->drive[0].cache = VMCFG_CACHE_UNSAFE, c->drive[0].layer = VMCFG_LAYER_KEPT,
	     strcpy(c->drive[0].layer_path, "/l")),
	    "can't have cache unsafe");
	BAD(c->drive[0].rate.ops = ((struct vmcfg_bucket){ 1, 1ULL << 51, 1 }), "are at most");
	BAD(strcpy(c->net[1].id, "a/b"), "net \"a/b\"");
	BAD(strcpy(c->net[1].id, "net0"), "id, tap or socket there twice");
	BAD(strcpy(c->net[1].tap, "tap0"), "id, tap or socket there twice");
	BAD(c->net[0].tap[0] = 0, "net net0: give exactly one of tap, socket and user");
	BAD((c->net[0].tap[0] = 0, use_metadata(c, "", "net1")), "net net0: give exactly one of tap");
	BAD(use_metadata(c, "169.254.0.1", "net0"),
	    "metadata_service: address \"169.254.0.1\" is not within");
	BAD(use_metadata(c, "169.254.255.1", "net0"), "is not within 169.254.1.0 to 169.254.254.255");
	BAD(use_metadata(c, "10.0.2.2", "net0"), "\"10.0.2.2\" is not within");
	BAD(use_metadata(c, "169.254.1", "net0"), "\"169.254.1\" is not within");
	BAD(use_metadata(c, "", "net2"), "metadata_service: nets: the VM has no net \"net2\"");
	BAD((use_metadata(c, "", NULL), c->n_nets = 0), "metadata_service: the VM has no net");
	BAD((use_metadata(c, "", NULL), c->metadata.version = 2), "metadata_service: unknown version 2");
	BAD(strcpy(c->net[0].socket, "/s"), "net net0: give exactly one of");
	BAD(c->net[1].user.present = true, "net net1: give exactly one of");
	BAD(use_socket(&c->net[0], "s"), "net net0: socket must be an absolute path");
	BAD((use_socket(&c->net[0], "/s"), use_socket(&c->net[1], "/s")), "socket there twice");
	BAD(use_forwards(&c->net[0], VMCFG_UDP, "", false), "needs host_loopback");
	BAD(use_forwards(&c->net[0], VMCFG_TCP, "", true), "net net0: host_port 8080 is forwarded twice");
	BAD(use_forwards(&c->net[0], VMCFG_TCP, "localhost", false), "\"localhost\" is not an IPv4 address");
	BAD(use_forwards(&c->net[0], VMCFG_TCP, "127.0.0.1/1", false), "is not an IPv4 address");
	BAD(c->net[0].mtu = 67, "net net0: mtu: 67 is not within 68..65535");
	BAD(c->net[0].mtu = 65536, "net net0: mtu: 65536");
	BAD((use_forwards(&c->net[0], VMCFG_TCP, "", false), c->net[0].user.n_forwards = 0,
	     c->net[0].mtu = 1400),
	    "no mtu but 1500");
	BAD(c->net[0].queues = 9, "net net0: queues: up to 8");
	BAD((use_socket(&c->net[0], "/s"), c->net[0].queues = 2),
	    "net net0: queues: up to 8, and more than one");
	BAD(c->net[1].rx_rate.ops.size = 1, "net net1: rate_limit: ops needs");
	BAD(c->net[1].tx_rate.bandwidth.refill_ms = 1, "net net1: rate_limit: bandwidth needs");
	BAD(strcpy(c->net[0].tap, "tap%d"), "tap must be");
	BAD(strcpy(c->net[0].tap, "a/b"), "tap must be");
	BAD(c->net[0].mac[0] = 1, "unicast");
	BAD(c->net[0].mac[0] = 0, "unicast");
	BAD(c->vsock.cid = 2, "vsock: cid must be 3 or more");
	BAD(c->huge_pages = GMEM_1G + 1, "huge_pages: unknown kind 4");
	BAD((c->huge_pages = GMEM_2M, c->track_dirty = false, c->mem_mib = 513),
	    "513 is not a multiple of 2");
	BAD((c->huge_pages = GMEM_1G, c->track_dirty = false, c->mem_mib = 512),
	    "512 is not a multiple of 1024");
	BAD((c->huge_pages = GMEM_THP, c->track_dirty = true), "not with track_dirty");
	BAD((c->huge_pages = GMEM_2M, c->track_dirty = false, c->balloon.present = true),
	    "not with a balloon");
	fill(c);
	c->huge_pages = GMEM_THP;
	c->track_dirty = false;
	c->balloon.present = true;
	assert_int_equal(vmcfg_check(c, &err), 0);
	fill(c);
	c->vsock = (struct vmcfg_vsock){ 0 };
	assert_int_equal(vmcfg_check(c, &err), 0);
	free(c);
}

static void descriptors(void **state)
{
	struct vm_fds f, g;
	int list[VM_FDS_MAX];
	vm_fd_mask mask;
	(void)state;
	vm_fds_init(&f);
	assert_int_equal(vm_fds_pack(&f, list, &mask), 0);
	assert_int_equal(mask.bits[0] | mask.bits[sizeof mask.bits - 1], 0);
	f.kvm = 10;
	f.memory = 11;
	f.drive[7] = 12;
	f.tap[3][0] = 13;
	f.vsock = 14;
	f.layer[7][VMCFG_MAX_LAYERS - 1] = 15;
	assert_int_equal(vm_fds_pack(&f, list, &mask), 6);
	assert_int_equal(vm_fds_unpack(list, 6, mask, &g), 0);
	assert_memory_equal(&f, &g, sizeof f);

	memset(&g, 0, sizeof g);
	const struct vm_fds before = g;
	assert_int_equal(vm_fds_unpack(list, 5, mask, &g), -EPROTO);
	assert_int_equal(vm_fds_unpack(list, 7, mask, &g), -EPROTO);
	for (unsigned i = VM_FDS_MAX; i < 8 * sizeof mask.bits; i++) { // no such descriptor
		mask = (vm_fd_mask){ { 0 } };
		mask.bits[i / 8] = (uint8_t)(1u << i % 8);
		assert_int_equal(vm_fds_unpack(list, 1, mask, &g), -EPROTO);
	}
	memset(&mask, 0xff, sizeof mask);
	assert_int_equal(vm_fds_unpack(list, 0, mask, &g), -EPROTO);
	assert_memory_equal(&g, &before, sizeof g);

	vm_fds_init(&g);
	g.tap[0][0] = dup(1);
	int fd = g.tap[0][0];
	vm_fds_close(&g);
	assert_int_equal(g.tap[0][0], -1);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	vm_fds_close(&g);
}

static void hostile_bytes(void **state)
{
	struct vmcfg *c = malloc(sizeof *c), *d = malloc(sizeof *d);
	uint64_t seed = 8;
	MV_BUF b = { 0 };
	int loaded = 0;
	(void)state;
	fill(c);
	mv_state_save(&vmcfg_table, c, &b);
	for (int i = 0; i < 50000; i++) {
		struct mv_err err = { 0 };
		uint8_t *copy = malloc(b.len);
		memcpy(copy, b.p, b.len);
		t_mutate(copy, b.len, &seed);
		if (!mv_state_load(&vmcfg_table, copy, b.len, d, &err)) {
			loaded++;
			assert_true(d->n_drives <= VMCFG_MAX_DRIVES && d->n_nets <= VMCFG_MAX_NETS);
			int r = vmcfg_check(d, &err);
			assert_true(r == 0 || (r == -EINVAL && err.msg[0]));
		} else
			assert_true(err.code && err.msg[0]);
		free(copy);
	}
	assert_true(loaded > 1000);
	free(c);
	free(d);
}

// The copy is the same configuration, and writes no page that stays zeros.
static void copy(void **state)
{
	enum { PAGE = 4096, PAGES = (sizeof(struct vmcfg) + PAGE - 1) / PAGE };
	static struct vmcfg c;
	unsigned char there[PAGES];
	unsigned n = 0;
	(void)state;
	fill(&c);
	c.n_drives = 0;
	memset(c.drive, 0, sizeof c.drive);
	struct vmcfg *to = mmap(NULL, sizeof *to, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(to, MAP_FAILED);
	vmcfg_copy(to, &c);
	assert_int_equal(mincore(to, sizeof *to, there), 0);
	for (unsigned i = 0; i < PAGES; i++)
		n += there[i] & 1;
	assert_in_range(n, 1, PAGES - sizeof c.drive / PAGE + 1);
	assert_memory_equal(to, &c, sizeof c);
	munmap(to, sizeof *to);
}

// As Linux reads them: "--" as a word of its own, outside of quotes, ends the kernel's.
static void arguments_of_init(void **state)
{
	static const struct {
		const char *text;
		size_t len;
	} all[] = { { "", 0 },
		    { "a=1", 3 },
		    { "a=1 -- b", 3 },
		    { "a  --", 1 },
		    { "-- b", 0 },
		    { "a --b -- c", 5 },
		    { "a-- b", 5 },
		    { "x=\"a -- b\" c", 12 },
		    { "a\t--\tb -- c", 1 },
		    { "x=\"a -- b", 9 },
		    { " -- b", 0 },
		    { "a ", 2 } };
	(void)state;
	for (size_t i = 0; i < MV_ARRAY_LEN(all); i++)
		assert_int_equal(vmcfg_kernel_args_len(all[i].text), all[i].len);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(names),
		cmocka_unit_test(metadata_service),
		cmocka_unit_test(each_problem_has_its_message),
		cmocka_unit_test(descriptors),
		cmocka_unit_test(hostile_bytes),
		cmocka_unit_test(copy),
		cmocka_unit_test(arguments_of_init),
	};
	return cmocka_run_group_tests_name("base/vmcfg", tests, NULL, NULL);
}
