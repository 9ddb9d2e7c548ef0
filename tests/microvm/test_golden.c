// SPDX-License-Identifier: Apache-2.0
// Golden snapshots (tests/golden/FORMAT/NAME/{manifest,state,memory}.gz, of other architectures than x86-64
// in a folder of theirs below FORMAT) must load for ever: every section of every device on any host of the
// architecture, and where CPU and KVM fit they are run.
// With --make FOLDER it takes those instead that are not there (scripts/golden.sh).
#include "tests/t.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "devices/devices.h"
#include "devices/disk.h"
#include "microvm/arch/arch.h"
#include "microvm/cpu_report.h"
#include "microvm/save.h"
#include "microvm/sections.h"
#include "snapshot/format.h"
#include "snapshot/memory_map.h"
#include "snapshot/store.h"
#include "tests/microvm/t_golden.h"
#include "tests/microvm/t_vmm.h"

#define GOLDEN "tests/golden"
#define NONCE "golden nonce"
#define HOST "10.0.2.2" // at the other end of taps
#define VSOCK_PORT "52"
enum { DISK_BYTES = 64 << 10, MEMORY_MIB = 4, ANY_SECTION = -1 };

static const char *const formats[] = { "1.0" };
static const char *const files[] = { "manifest", "state", "memory" };

static bool may_tap;

// A tap with this many queues, up; all of them, or fds[0] is -1.
static void open_tap(int *fds, unsigned n)
{
	struct ifreq ifr = { .ifr_name = "golden%d" };
	bool ok = true;
	for (unsigned i = 0; ok && i < n; i++) { // the first gives it its name
		ifr.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (n > 1 ? IFF_MULTI_QUEUE : 0));
		fds[i] = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
		ok = fds[i] >= 0 && !ioctl(fds[i], TUNSETIFF, &ifr);
	}
	MV_FD s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in address = { .sin_family = AF_INET };
	inet_pton(AF_INET, HOST, &address.sin_addr);
	memcpy(&ifr.ifr_addr, &address, sizeof address);
	ok = ok && !ioctl(s, SIOCSIFADDR, &ifr);
	ifr.ifr_flags = IFF_UP;
	if (!ok || ioctl(s, SIOCSIFFLAGS, &ifr))
		mv_close(&fds[0]);
}

static int listening_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	assert_int_equal(bind(fd, (void *)&a, sizeof a.sun_family), 0); // autobind: an abstract name
	assert_int_equal(listen(fd, 4), 0);
	return fd;
}

static int file_of(off_t bytes)
{
	char path[] = "/tmp/thaw-golden-XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);
	assert_true(fd >= 0 && !unlink(path) && !ftruncate(fd, bytes));
	return fd;
}

// One that starts with this word.
static int pmem_file(uint64_t word)
{
	int fd = file_of(VIO_PMEM_ALIGN);
	assert_int_equal(pwrite(fd, &word, sizeof word, 0), sizeof word);
	return fd;
}

// The descriptors of the devices of a configuration.
static void open_devices(const struct vmcfg *c, struct vm_fds *f)
{
	vm_fds_init(f);
	f->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	for (uint32_t i = 0; i < c->n_drives; i++)
		f->drive[i] = file_of(DISK_BYTES);
	for (uint32_t i = 0; i < c->n_nets; i++)
		open_tap(f->tap[i], vmcfg_net_pairs(&c->net[i]));
	for (uint32_t i = 0; i < c->n_consoles; i++)
		f->console[i] = listening_socket();
	for (uint32_t i = 0; i < c->n_pmems; i++)
		f->pmem[i] = pmem_file(i + 1);
	if (c->vsock.present)
		f->vsock = listening_socket();
}

static const char *program(void) { return getenv("THAW_VMM") ? getenv("THAW_VMM") : "build/bin/thaw-vmm"; }

// What the guest of "devices" does before the snapshot, and after it. NULL: it is OK, whatever follows.
struct talk {
	const char *say, *answer;
};
static const struct talk before[] = {
	{ "blk t 64 4 w", "OK" },
	{ "blk w 100 " NONCE, "OK" },
	{ "net pairs 2", "OK" },
	{ "net arp " HOST, NULL },
	{ "vsock " VSOCK_PORT, "ERR refused" },
	{ "balloon in 0 16", "OK" },
	{ "balloon stats 4096", "OK" },
	{ "port 0 show", "OK one port closed" },
	{ "port 0 read", "ERR nothing" },
	{ "pmem get 0", "OK 1" },
	{ "pmem flush", "OK 0" },
};
static const struct talk after[] = {
	{ "blk t 64 4 w", "OK" },
	{ "net arp " HOST, NULL },
	{ "vsock " VSOCK_PORT, "OK " NONCE },
	{ "balloon target", "OK 256" },
	{ "balloon out 0 16", "OK" },
	{ "balloon stats 8192", "OK" },
	{ "port 1 show", "OK two tty closed" },
	{ "port 0 show", "OK one port open" },
	{ "port 0 write " NONCE, "OK" },
	{ "pmem set 1 77", "OK 77" },
	{ "pmem get 1", "OK 77" },
	{ "pmem flush", "OK 0" },
};

static void talk(struct t_vmm *v, const struct talk *t, size_t n)
{
	char line[200];
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(t_vmm_ask(v, t[i].say, line, sizeof line), 0);
		if (t[i].answer ? strcmp(line, t[i].answer) : strncmp(line, "OK ", 3))
			fail_msg("%s: %s", t[i].say, line);
	}
}

// --- making -----------------------------------------------------------------------------
static void describe(const char *name, struct vmcfg *c)
{
	t_tiny_config(c);
	strcpy(c->name, "golden");
	strcpy(c->kernel, "/golden/tiny");
	c->mem_mib = MEMORY_MIB;
	if (!strcmp(name, "net")) {
		c->n_nets = 1;
		strcpy(c->net[0].id, "eth0");
		strcpy(c->net[0].tap, "golden0");
		memcpy(c->net[0].mac, (uint8_t[]){ 2, 0, 0, 0, 0, 1 }, 6);
		return;
	}
	bool all = !strcmp(name, "devices");
	c->vcpus = all ? 4 : 2;
	c->n_drives = 1;
	c->drive[0].queues = all ? 4 : 0;
	strcpy(c->drive[0].id, "disk");
	strcpy(c->drive[0].path, "/golden/disk");
	c->vsock.present = true;
	c->vsock.cid = 3;
	strcpy(c->vsock.path, "/golden/vsock");
	if (!all)
		return;
	c->n_nets = 1;
	c->net[0] = (struct vmcfg_net){
		.id = "eth0", .tap = "golden0", .mac = { 2, 0, 0, 0, 0, 1 }, .queues = 2
	};
	c->balloon = (struct vmcfg_balloon){
		.present = true, .free_page_reporting = true, .target_mib = 1, .stats_interval_s = 1
	};
	c->n_consoles = 2;
	c->console[0] = (struct vmcfg_console){ .id = "one", .path = "/golden/one" };
	c->console[1] = (struct vmcfg_console){ .id = "two", .path = "/golden/two", .tty = true };
	c->n_pmems = 2;
	c->pmem[0] = (struct vmcfg_pmem){ .id = "file", .path = "/golden/file" };
	c->pmem[1] = (struct vmcfg_pmem){ .id = "fixed", .path = "/golden/fixed", .read_only = true };
}

static void make_one(struct store *store, const char *name)
{
	static struct t_vmm v;
	static struct manifest m;
	struct store_draft draft;
	struct mv_err err;
	struct vm_fds f;
	char line[200];

	memset(&m, 0, sizeof m);
	describe(name, &m.cfg);
	open_devices(&m.cfg, &f);
	f.kernel = open(getenv("THAW_GUEST") ? getenv("THAW_GUEST") : "build/tests/guest/tiny",
			O_RDONLY | O_CLOEXEC);
	assert_int_equal(t_vmm_start(&v, program()), 0);
	assert_int_equal(t_vmm_setup(&v, MSG_BOOT, &m.cfg, &f, true), 0);
	assert_int_equal(t_vmm_expect(&v, "READY\n", 10000), 0);
	assert_int_equal(t_vmm_ask(&v, "store " NONCE, line, sizeof line), 0);
	assert_int_equal(t_vmm_ask(&v, "rand 16", line, sizeof line), 0);
	assert_int_equal(t_vmm_ask(&v, "touch 4 w 7", line, sizeof line), 0);
	if (m.cfg.n_pmems)
		talk(&v, before, MV_ARRAY_LEN(before));
	assert_int_equal(store_begin(store, name, &draft, &err), 0);
	int fds[] = { draft.state_fd, draft.memory_fd };
	assert_int_equal(t_vmm_call(&v, MSG_SNAPSHOT, NULL, NULL, fds, 2, 10000), 0);
	t_vmm_end(&v);
	strcpy(m.parent, "golden");
	strcpy(m.thaw_version, THAW_VERSION);
	mv_uuid(m.id);
	m.created_unix_ns = (uint64_t)time(NULL) * 1000000000u;
	m.arch = ARCH_MANIFEST_ID;
	if (store_commit(store, &draft, &m, &err))
		fail_msg("%s", err.msg);
}

static int make(const char *folder)
{
	char root[64], command[800], path[200];
	struct store store;
	struct mv_err err;
	int r = 0;
	t_tmpdir(root);
	assert_int_equal(store_open(&store, root, &err), 0);
	for (const char *const *name = t_golden.names; *name; name++) {
		snprintf(path, sizeof path, "%s/%s%s", folder, t_golden.folder, *name);
		if (!access(path, F_OK))
			continue; // never replaced
		make_one(&store, *name);
		for (size_t k = 0; k < MV_ARRAY_LEN(files); k++) {
			snprintf(command, sizeof command,
				 "mkdir -p '%s' && gzip -9nc '%s/snapshots/%s/%s' >'%s/%s.gz'", path, root,
				 *name, files[k], path, files[k]);
			r |= system(command);
		}
	}
	store_close(&store);
	t_remove_tree(root);
	return r ? 1 : 0;
}

// --- loading ----------------------------------------------------------------------------
struct golden {
	char root[64];
	struct store store;
	struct manifest m;
	int state_fd, memory_fd;
	uint8_t *payload;
	size_t len;
};

static void unpack(const char *from, const char *to)
{
	char command[500];
	snprintf(command, sizeof command, "gzip -dc '%s.gz' >'%s'", from, to);
	assert_int_equal(system(command), 0);
}

static void open_golden(struct golden *g, const char *format, const char *name)
{
	char from[200], to[200];
	struct mv_err err = { 0 };
	t_tmpdir(g->root);
	assert_int_equal(store_open(&g->store, g->root, &err), 0);
	snprintf(to, sizeof to, "%s/snapshots/%s", g->root, name);
	assert_int_equal(mkdir(to, 0700), 0);
	for (size_t k = 0; k < MV_ARRAY_LEN(files); k++) {
		snprintf(from, sizeof from, GOLDEN "/%s/%s%s/%s", format, t_golden.folder, name, files[k]);
		snprintf(to, sizeof to, "%s/snapshots/%s/%s", g->root, name, files[k]);
		unpack(from, to);
	}
	if (store_show(&g->store, name, &g->m, &err) ||
	    store_files(&g->store, &g->m, true, &g->state_fd, &g->memory_fd, &err) ||
	    snap_container_read(g->state_fd, SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES, &g->payload,
				&g->len, &err))
		fail_msg("%s/%s: %s", format, name, err.msg);
	for (uint32_t i = 0; i < g->m.cfg.n_pmems; i++)
		g->m.cfg.pmem[i].other_file = true;
}

static void close_golden(struct golden *g)
{
	free(g->payload);
	mv_close(&g->state_fd);
	mv_close(&g->memory_fd);
	store_close(&g->store);
	t_remove_tree(g->root);
}

// The device of a slot, as vm.c makes it. NULL: it needs a tap, and there can be none here.
static struct vio_dev *make_device(const struct vmcfg *c, uint32_t slot, struct gmem *mem,
				   struct mv_loop *loop, struct mv_ring *ring)
{
	const struct vio_balloon_config balloon = { c->balloon.target_mib * 256, c->balloon.stats_interval_s,
						    c->balloon.deflate_on_oom, c->balloon.free_page_reporting,
						    c->balloon.free_page_hinting };
	struct vio_console_port port[VMCFG_MAX_CONSOLES];
	struct vio_dev *d = NULL;
	struct mv_err err = { 0 };
	int r;
	for (uint32_t i = 0; i < c->n_consoles; i++)
		port[i] = (struct vio_console_port){ c->console[i].id, -1, c->console[i].tty };
	if (slot < c->n_drives) {
		r = vio_blk_new(mem, loop, ring, c->drive[slot].id,
				&(struct vio_blk_options){ .serial = c->drive[slot].id,
							   .n_queues = c->drive[slot].queues },
				&(struct disk_files){ .base_fd = file_of(DISK_BYTES) }, &d, &err);
	} else if ((slot -= c->n_drives) < c->n_nets) {
		if (!may_tap)
			return NULL;
		const struct vio_net_options o = { .name = c->net[slot].id,
						   .mac = c->net[slot].mac,
						   .kind = VIO_NET_TAP,
						   .n_pairs = vmcfg_net_pairs(&c->net[slot]) };
		int fds[VIO_NET_MAX_PAIRS];
		open_tap(fds, o.n_pairs);
		r = vio_net_new_with(mem, loop, &o, fds, &d, &err);
	} else if ((slot -= c->n_nets) < c->vsock.present) {
		r = vio_vsock_new(mem, loop, c->vsock.cid, listening_socket(), c->vsock.path, &d, &err);
	} else if ((slot -= c->vsock.present) < c->rng) {
		r = vio_rng_new(mem, loop, &d, &err);
	} else if ((slot -= c->rng) < c->balloon.present) {
		r = vio_balloon_new(mem, loop, &balloon, &d, &err);
	} else if ((slot -= c->balloon.present) < (c->n_consoles > 0)) {
		for (uint32_t i = 0; i < c->n_consoles; i++)
			port[i].listen_fd = listening_socket();
		r = vio_console_new(mem, loop, port, c->n_consoles, &d, &err);
	} else {
		slot -= c->n_consoles > 0;
		struct vio_pmem_config config = { .name = c->pmem[slot].id,
						  .fd = pmem_file(0),
						  .read_only = c->pmem[slot].read_only,
						  .other_file = c->pmem[slot].other_file,
						  .gpa = arch_file_gpa(mem),
						  .size_bytes = VIO_PMEM_ALIGN };
		r = gmem_map_file(mem, config.gpa, config.size_bytes, config.fd, !config.read_only, &err);
		r = r ? r : vio_pmem_new(mem, loop, ring, &config, &d, &err);
	}
	if (r)
		fail_msg("%s", err.msg);
	return d;
}

static int load_device(const struct golden *g, const struct snap_section *sec, struct mv_err *err)
{
	struct gmem mem = { 0 };
	struct mv_loop loop;
	struct mv_ring *ring = NULL;
	assert_int_equal(arch_mem_layout(&mem, g->m.cfg.mem_mib), 0);
	assert_int_equal(gmem_map(&mem, g->memory_fd, err), 0);
	assert_int_equal(mv_loop_init(&loop), 0);
	assert_int_equal(mv_ring_new(&loop, 8, false, &ring, err), 0);
	struct vio_dev *d = make_device(&g->m.cfg, sec->index, &mem, &loop, ring);
	int r = d ? vio_load(d, sec->bytes, sec->len, err) : 0;
	vio_free(d);
	mv_ring_free(ring);
	mv_loop_fini(&loop);
	gmem_fini(&mem);
	return r;
}

// Loads one section as the VM process does; the shape is checked by saved_vm_read().
static int load_section(const struct golden *g, const struct snap_section *sec, struct mv_err *err)
{
	const struct mv_table *t = sec->kind == SECTION_VCPU ? t_golden.vcpu : t_golden.machine;
	struct serial serial;
	int r = 0;
	switch (sec->kind) {
	case SECTION_VCPU:
	case SECTION_ARCH: {
		MV_FREE void *obj = calloc(1, t->size);
		return mv_state_load(t, sec->bytes, sec->len, obj, err);
	}
	case SECTION_SERIAL:
		assert_int_equal(serial_init(&serial), 0);
		r = serial_load(&serial, sec->bytes, sec->len, err);
		serial_fini(&serial);
		return r;
	case SECTION_VIRTIO: return load_device(g, sec, err);
	case SECTION_MEMORY: return memory_map_parse(sec->bytes, sec->len, &(struct memory_map){ 0 }, err);
	default: return 0;
	}
}

// The state again with a field of this tag at the end of section number `at`, read and loaded.
static int load_with(const struct golden *g, int at, uint16_t tag)
{
	MV_BUF out = { 0 };
	struct snap_section sec;
	struct saved_vm saved = { 0 };
	struct mv_err err = { 0 };
	size_t pos = 0;
	const uint8_t field[] = { (uint8_t)tag, (uint8_t)(tag >> 8), 0, 0, 3, 0, 0, 0, 'n', 'e', 'w' };
	int n = 0, r, loaded = 0;

	while (snap_section_next(g->payload, g->len, &pos, &sec, &err) > 0) {
		size_t mark = snap_section_begin(&out, sec.kind, sec.index), start = out.len;
		mv_buf_append(&out, sec.bytes, sec.len);
		if (n++ == at)
			mv_buf_append(&out, field, sizeof field);
		snap_section_end(&out, mark);
		struct snap_section again = { sec.kind, sec.index, out.p + start, out.len - start };
		loaded = loaded ? loaded : load_section(g, &again, &err);
	}
	int fd = t_file();
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, out.p, out.len, &err), 0);
	r = saved_vm_read(fd, &g->m.cfg, &saved, &err);
	saved_vm_fini(&saved);
	close(fd);
	return r ? r : loaded;
}

static void for_each(void (*fn)(struct golden *g))
{
	for (size_t i = 0; i < MV_ARRAY_LEN(formats); i++)
		for (const char *const *name = t_golden.names; *name; name++) {
			struct golden g;
			open_golden(&g, formats[i], *name);
			fn(&g);
			close_golden(&g);
		}
}

static int count_sections(const struct golden *g)
{
	struct snap_section sec;
	size_t pos = 0;
	int n = 0;
	while (snap_section_next(g->payload, g->len, &pos, &sec, NULL) > 0)
		n++;
	return n;
}

static void loads(struct golden *g)
{
	struct cpu_report r;
	struct mv_err err;
	assert_string_equal(g->m.cfg.name, "golden");
	assert_int_equal(g->m.cfg.mem_mib, MEMORY_MIB);
	assert_int_equal(load_with(g, ANY_SECTION, 0), 0);
	assert_int_equal(cpu_report(g->state_fd, NULL, NULL, &r, &err), 0);
	assert_true(r.vendor[0] && r.features.len > sizeof "asimd, atomics");
	cpu_report_fini(&r);
}

static void newer_minor(struct golden *g)
{
	for (int n = count_sections(g) - 1; n >= 0; n--) {
		assert_int_equal(load_with(g, n, MV_TAG_SKIP + 0x1234), 0);
		struct snap_section sec;
		size_t pos = 0;
		for (int i = 0; i <= n; i++)
			snap_section_next(g->payload, g->len, &pos, &sec, NULL);
		if (may_tap || sec.kind != SECTION_VIRTIO || !g->m.cfg.n_nets)
			assert_int_equal(load_with(g, n, 0x1234), -EINVAL);
	}
}

// A program of the host, connected to this listening socket.
static int connect_to(int listen_fd)
{
	struct sockaddr_un a;
	socklen_t len = sizeof a;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0 && !getsockname(listen_fd, (void *)&a, &len) && !connect(fd, (void *)&a, len));
	return fd;
}

// The guest connects to it, gets the nonce, and the end of the stream.
static pid_t serve_once(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	mv_strcpy(a.sun_path, sizeof a.sun_path, path);
	assert_true(!bind(fd, (void *)&a, sizeof a) && !listen(fd, 1));
	pid_t child = fork();
	if (!child) {
		alarm(30);
		int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		_exit(send(peer, NONCE, strlen(NONCE), MSG_NOSIGNAL) < 0);
	}
	assert_true(child > 0);
	close(fd);
	return child;
}

// All that "devices" has still works for its guest.
static void use_devices(struct t_vmm *v, int port, pid_t server)
{
	char text[sizeof NONCE] = "";
	int status;
	talk(v, after, MV_ARRAY_LEN(after));
	assert_int_equal(recv(port, text, sizeof text - 1, MSG_WAITALL), sizeof text - 1);
	assert_string_equal(text, NONCE);
	assert_true(waitpid(server, &status, 0) == server && status == 0); // it ends, by its alarm if need be
}

static void runs(struct golden *g)
{
	static struct t_vmm v;
	struct cpu_report r;
	struct mv_err err;
	struct vm_fds f;
	char line[200];
	assert_int_equal(cpu_report(g->state_fd, "/dev/kvm", NULL, &r, &err), 0);
	bool fits = r.compared && !r.n_missing;
	if (!r.compared)
		printf("# %s not run: no access to /dev/kvm\n", g->m.name);
	else if (!fits)
		printf("# %s not run: this host lacks %s\n", g->m.name, (char *)r.missing.p);
	cpu_report_fini(&r);
	if (!fits || (g->m.cfg.n_nets && !may_tap))
		return;
	open_devices(&g->m.cfg, &f);
	MV_FD port = -1;
	pid_t server = 0;
	if (g->m.cfg.n_pmems) {
		char path[120];
		snprintf(g->m.cfg.vsock.path, sizeof g->m.cfg.vsock.path, "%s/v", g->root);
		snprintf(path, sizeof path, "%s_" VSOCK_PORT, g->m.cfg.vsock.path);
		server = serve_once(path);
		port = connect_to(f.console[0]);
	}
	f.state = MV_TAKE_FD(g->state_fd);
	f.memory = MV_TAKE_FD(g->memory_fd);
	assert_int_equal(t_vmm_start(&v, program()), 0);
	assert_int_equal(t_vmm_setup(&v, MSG_RESTORE, &g->m.cfg, &f, true), 0);
	assert_int_equal(t_vmm_expect(&v, "RESTORED\n", 10000), 0);
	assert_int_equal(t_vmm_ask(&v, "load", line, sizeof line), 0);
	assert_string_equal(line, "OK " NONCE);
	assert_int_equal(t_vmm_ask(&v, "rand 16", line, sizeof line), 0);
	assert_int_equal(strlen(line), 3 + 32);
	if (port >= 0)
		use_devices(&v, port, server);
	assert_int_equal(t_vmm_end(&v), 0);
}

static void every_section_loads(void **state)
{
	(void)state;
	for_each(loads);
}

static void fields_of_a_newer_minor_are_skipped(void **state)
{
	(void)state;
	for_each(newer_minor);
}

static void they_run(void **state)
{
	(void)state;
	for_each(runs);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_section_loads),
		cmocka_unit_test(fields_of_a_newer_minor_are_skipped),
		cmocka_unit_test(they_run),
	};
	// Taps in a network namespace of our own.
	if (!unshare(CLONE_NEWNET)) {
		MV_FD tap = -1;
		open_tap(&tap, 1);
		may_tap = tap >= 0;
	}
	if (argc == 3 && !strcmp(argv[1], "--make"))
		return may_tap ? make(argv[2]) : 77;
	if (!may_tap)
		printf("# without taps (no rights): state of network devices is not loaded\n");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
