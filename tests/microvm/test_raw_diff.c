// SPDX-License-Identifier: Apache-2.0
// Snapshots of the Firecracker-compatible mode, VM side: raw memory files, complete or with changes only, and
// the state files beside them. A file with changes is laid over an older complete one, data extent by data
// extent, as users do it, and has to make a full snapshot of the same pause, byte for byte.
#include "tests/microvm/t_work.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "api/fc/outfile.h"
#include "api/fc/snapfile.h"
#include "microvm/dirty.h"
#include "microvm/sections.h"
#include "snapshot/memory_map.h"

enum { FULL, CONFIRMED = 1, DIFF = 2 };
enum { N_PAGES = T_MEM_BYTES / T_MEM_PAGE };

static struct t_vmm a;  // large; every test starts and ends what it uses
static uint8_t *memory; // what the files taken so far make of the memory
static char dir[64];

static int snapshot(struct t_vmm *v, unsigned flags, int state_fd, int memory_fd)
{
	struct msg_snapshot how = { .incremental = flags / DIFF, .confirmed = flags & CONFIRMED };
	int fds[2] = { state_fd, memory_fd };
	return t_vmm_call(v, MSG_SNAPSHOT, &msg_snapshot_table, &how, fds, 2, 20000);
}

static void full(struct t_vmm *v, unsigned flags, int ret_fds[2])
{
	ret_fds[0] = t_file();
	ret_fds[1] = t_file();
	assert_int_equal(snapshot(v, FULL | flags, ret_fds[0], ret_fds[1]), 0);
	assert_int_equal(v->reply.memory_bytes, T_MEM_BYTES);
}

static void load_base(const int fds[2])
{
	assert_int_equal(mv_pread_full(fds[1], memory, T_MEM_BYTES, 0), 0);
}

// On the disk, so that its holes are a real file system's.
static int disk_file(void)
{
	char path[80];
	snprintf(path, sizeof path, "%s/diff", dir);
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	assert_true(fd >= 0 && !unlink(path));
	return fd;
}

static void overlay(int fd)
{
	off_t at = 0, end;
	while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
		end = lseek(fd, at, SEEK_HOLE);
		assert_int_equal(mv_pread_full(fd, memory + at, (size_t)(end - at), (uint64_t)at), 0);
		at = end;
	}
	assert_int_equal(errno, ENXIO);
}

// A file with changes, put over memory[]. Returns how many pages it has.
static uint64_t diff(struct t_vmm *v, unsigned flags)
{
	int fds[2] = { t_file(), disk_file() };
	struct stat st;
	assert_int_equal(snapshot(v, DIFF | flags, fds[0], fds[1]), 0);
	assert_int_equal(fstat(fds[1], &st), 0);
	assert_int_equal(st.st_size, T_MEM_BYTES);
	assert_int_equal(v->reply.memory_bytes, T_MEM_BYTES);
	overlay(fds[1]);
	close_both(fds);
	return v->reply.memory_data_bytes / T_MEM_PAGE;
}

// Of memory[] and a complete snapshot of now, whose set is not confirmed: the next Diff has it too.
static bool same_as_now(struct t_vmm *v)
{
	static uint8_t page[T_MEM_PAGE];
	int fds[2];
	bool same = true;
	full(v, FULL, fds);
	for (unsigned i = 0; same && i < N_PAGES; i++) {
		assert_int_equal(mv_pread_full(fds[1], page, T_MEM_PAGE, (uint64_t)i * T_MEM_PAGE), 0);
		same = !memcmp(page, memory + i * T_MEM_PAGE, T_MEM_PAGE);
		if (!same)
			print_message("# page %u differs\n", i);
	}
	close_both(fds);
	return same;
}

// --- which pages ---

static uint64_t count(const uint64_t *set, uint64_t n_words)
{
	uint64_t n = 0;
	for (uint64_t i = 0; i < n_words; i++)
		n += (unsigned)__builtin_popcountll(set[i]);
	return n;
}

// Not tracked: what may hold something; with pages given back, which may have held something, all.
static void untracked_memory(void **state)
{
	enum { PAGES = 640 };
	struct gmem m = { 0 };
	struct mv_err err = { 0 };
	struct dirty d;
	(void)state;
	assert_int_equal(gmem_add(&m, 0, PAGES * T_MEM_PAGE), 0);
	assert_int_equal(gmem_map(&m, -1, &err), 0);
	madvise(m.region[0].hva, m.region[0].size_bytes, MADV_NOHUGEPAGE);
	assert_int_equal(dirty_init(&d, &m, false, false, &err), 0);
	for (unsigned i = 0; i < PAGES; i += 10)
		m.region[0].hva[i * T_MEM_PAGE] = 1;
	assert_int_equal(dirty_complete(&d, &m, &err), 0);
	assert_int_equal(count(d.set, PAGES / 64), PAGES / 10);
	assert_int_equal(d.set[0] & 0x7ff, 0x401);
	assert_int_equal(gmem_discard(&m, m.region[0].hva + 20 * T_MEM_PAGE, T_MEM_PAGE), 0);
	dirty_fini(&d, &m); // each frozen copy begins anew
	assert_int_equal(dirty_complete(&d, &m, &err), 0);
	assert_int_equal(count(d.set, PAGES / 64), PAGES);
	dirty_fini(&d, &m);
	gmem_fini(&m);
}

// A forked process's set begins with it, its memory does not.
static void forked_memory(void **state)
{
	struct gmem m = { 0 };
	struct mv_err err = { 0 };
	struct dirty d;
	(void)state;
	assert_int_equal(gmem_add(&m, 0, 64 * T_MEM_PAGE), 0);
	assert_int_equal(gmem_map(&m, -1, &err), 0);
	m.region[0].hva[0] = 1;
	assert_int_equal(dirty_init(&d, &m, true, false, &err), 0);
	assert_int_equal(dirty_complete(&d, &m, &err), 0);
	assert_int_equal(d.set[0], 0);
	d.forked = true;
	assert_int_equal(dirty_complete(&d, &m, &err), 0);
	assert_true(d.set[0] & 1);
	dirty_fini(&d, &m);
	gmem_fini(&m);
}

// --- the tiny guest ---

static void tracked_from_boot(void **state)
{
	struct vmcfg c;
	(void)state;
	need_kvm();
	config(&c, true);
	boot(&a, &c);
	memset(memory, 0, T_MEM_BYTES);
	order(&a, MSG_PAUSE); // the first of all may be a Diff: its base is memory before the boot, zeros
	assert_in_range(diff(&a, FULL), 20, 2000);
	assert_true(same_as_now(&a));
	diff(&a, CONFIRMED);
	for (unsigned round = 0; round < 4; round++) {
		order(&a, MSG_RUN);
		work(&a, round);
		order(&a, MSG_PAUSE);
		uint64_t n = diff(&a, CONFIRMED);
		assert_in_range(n, 70, 70 + FEW);
		assert_true(same_as_now(&a));
		assert_in_range(diff(&a, FULL), n, 2 * n); // that one again, for it was not confirmed
		assert_int_equal(diff(&a, CONFIRMED), 0);
	}
	assert_int_equal(t_vmm_end(&a), 0);
}

// Pages that are zeros now held something in the base.
static void zeros_are_data(void **state)
{
	struct vmcfg c;
	int fds[2];
	(void)state;
	need_kvm();
	config(&c, true);
	boot(&a, &c);
	ask(&a, "fill 0 500 7");
	full(&a, FULL, fds);
	load_base(fds);
	close_both(fds);
	ask(&a, "fill 0 500 0");
	order(&a, MSG_PAUSE);
	assert_in_range(diff(&a, CONFIRMED), 500, 500 + FEW);
	assert_true(same_as_now(&a));
	assert_int_equal(t_vmm_end(&a), 0);
}

static void merged_in_place(void **state)
{
	struct vmcfg c;
	int fds[2], bad;
	(void)state;
	need_kvm();
	config(&c, true);
	boot(&a, &c);
	full(&a, FULL, fds);
	work(&a, 1);
	order(&a, MSG_PAUSE);
	bad = t_file();
	assert_int_equal(ftruncate(bad, T_MEM_BYTES / 2), 0);
	assert_int_equal(snapshot(&a, DIFF | CONFIRMED, bad, bad), EINVAL);
	close(bad);
	int state_fd = t_file();
	assert_int_equal(snapshot(&a, DIFF | CONFIRMED, state_fd, fds[1]), 0);
	assert_in_range(a.reply.memory_data_bytes / T_MEM_PAGE, 70, 70 + FEW);
	load_base(fds);
	assert_true(same_as_now(&a));
	assert_int_equal(t_vmm_end(&a), 0);
	close(state_fd);
	close_both(fds);
}

// Nothing is tracked and no mark is set: a Diff is larger, but right over any older snapshot.
static void untracked_from_boot(void **state)
{
	struct vmcfg c;
	int fds[2], first[2];
	(void)state;
	need_kvm();
	config(&c, false);
	c.balloon.present = true;
	boot(&a, &c);
	full(&a, FULL, first);
	work(&a, 0);
	ask(&a, "fill 3000 500 9");
	full(&a, FULL, fds);
	work(&a, 1);
	order(&a, MSG_PAUSE);
	load_base(first);
	assert_in_range(diff(&a, FULL), 550, 4000);
	assert_true(same_as_now(&a));
	order(&a, MSG_RUN);
	ask(&a, "balloon in 3000 500"); // given back: zeros, and in no page table
	order(&a, MSG_PAUSE);
	load_base(fds);
	assert_int_equal(diff(&a, FULL), N_PAGES);
	assert_true(same_as_now(&a));
	assert_int_equal(t_vmm_end(&a), 0);
	close_both(fds);
	close_both(first);
}

static void of_clones(void **state)
{
	struct vmcfg c;
	int fds[2];
	(void)state;
	need_kvm();
	config(&c, false);
	c.balloon.present = true;
	boot(&a, &c);
	ask(&a, "fill 3000 500 9");
	full(&a, FULL, fds);
	assert_int_equal(t_vmm_end(&a), 0);
	for (unsigned track = 0; track < 2; track++) {
		c.track_dirty = track;
		assert_int_equal(t_vmm_start(&a, t_vmm_path()), 0);
		restore(&a, &c, fds[0], fds[1]);
		load_base(fds);
		work(&a, 1);
		order(&a, MSG_PAUSE);
		uint64_t n = diff(&a, FULL);
		assert_in_range(n, 70, 70 + FEW);
		assert_true(same_as_now(&a));
		order(&a, MSG_RUN);
		ask(&a, "balloon in 3000 100");
		order(&a, MSG_PAUSE);
		assert_in_range(diff(&a, FULL), n + 100, n + 100 + FEW);
		assert_true(same_as_now(&a));
		// Tracked, only the first one is about the files: the others are about the one before.
		n = diff(&a, CONFIRMED);
		assert_true(track ? n == 0 : n >= 170);
		assert_true(same_as_now(&a));
		assert_int_equal(t_vmm_end(&a), 0);
	}
	close_both(fds);
}

// --- memory of a page handler ---

static pid_t start_handler(const char *socket_path, const char *memory_path)
{
	char program[200];
	const char *vmm = t_vmm_path(), *slash = strrchr(vmm, '/');
	snprintf(program, sizeof program, "%.*sthaw-page-handler", slash ? (int)(slash - vmm) + 1 : 0, vmm);
	pid_t parent = getpid(), pid = fork();
	if (!pid) { // ends with us, also when a test fails
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			execl(program, program, socket_path, memory_path, NULL);
		_exit(127);
	}
	assert_true(pid > 0);
	for (int i = 0; i < 1000 && access(socket_path, F_OK); i++)
		usleep(5000);
	return pid;
}

static void with_a_page_handler(void **state)
{
	char socket_path[80], memory_path[80];
	struct vmcfg c;
	struct vm_fds f;
	int fds[2];
	(void)state;
	need_kvm();
	config(&c, false);
	c.balloon.present = true;
	boot(&a, &c);
	ask(&a, "fill 3000 500 9");
	full(&a, FULL, fds);
	assert_int_equal(t_vmm_end(&a), 0);
	snprintf(socket_path, sizeof socket_path, "%s/handler", dir);
	snprintf(memory_path, sizeof memory_path, "/proc/%d/fd/%d", (int)getpid(), fds[1]);
	pid_t handler = start_handler(socket_path, memory_path);
	for (unsigned track = 0; track < 2; track++) {
		c.track_dirty = track;
		assert_int_equal(t_vmm_start(&a, t_vmm_path()), 0);
		machine_fds(&f);
		f.state = dup(fds[0]);
		f.handler = open(socket_path, O_PATH | O_CLOEXEC);
		assert_int_equal(t_vmm_setup(&a, MSG_RESTORE, &c, &f, true), 0);
		assert_int_equal(t_vmm_expect(&a, "RESTORED\n", 10000), 0);
		load_base(fds);
		work(&a, 1);
		ask(&a, "balloon in 3000 100");
		order(&a, MSG_PAUSE);
		uint64_t n = diff(&a, FULL); // the first of all
		assert_true(track ? n >= 170 && n <= 170 + 2 * FEW : n == N_PAGES);
		assert_true(same_as_now(&a));
		assert_int_equal(t_vmm_end(&a), 0);
	}
	kill(handler, SIGTERM);
	waitpid(handler, NULL, 0);
	close_both(fds);
}

// --- by name, as the API does it ---

static void create(struct t_vmm *v, const struct vmcfg *c, bool is_diff, bool confirmed,
		   const char *state_path, const char *memory_path)
{
	FC_OUTFILE state = FC_OUTFILE_NONE;
	FC_OUTFILE mem = FC_OUTFILE_NONE;
	struct mv_err err = { 0 };
	MV_FD raw = t_file();
	int r = fc_outfile_open(state_path, 0, &state, &err);
	r = r ? r : fc_outfile_open(memory_path, is_diff ? T_MEM_BYTES : 0, &mem, &err);
	if (r)
		fail_msg("%s", err.msg);
	assert_int_equal(snapshot(v, (is_diff ? DIFF : FULL) | (confirmed ? CONFIRMED : 0), raw, mem.fd), 0);
	r = fc_snapfile_write(state.fd, c, raw, NULL, &err);
	r = r ? r : fc_outfile_publish(&state, &mem, 1, &err);
	if (r)
		fail_msg("%s", err.msg);
}

static void load(struct t_vmm *v, struct vmcfg *ret_c, const char *state_path, const char *memory_path)
{
	struct mv_err err = { 0 };
	MV_FD file = open(state_path, O_RDONLY | O_CLOEXEC);
	MV_FD state_fd = -1;
	MV_FD memory_fd = -1;
	int r = fc_snapfile_read(file, ret_c, &state_fd, NULL, &err);
	r = r ? r : fc_memory_open(memory_path, ret_c->mem_mib, &memory_fd, &err);
	r = r ? r : fc_snapfile_check_cpu(state_fd, &ret_c->cpu, "/dev/kvm", &err);
	if (r)
		fail_msg("%s", err.msg);
	assert_int_equal(t_vmm_start(v, t_vmm_path()), 0);
	restore(v, ret_c, state_fd, memory_fd);
}

// Full, run on, Diff into the same files, while a clone of the first snapshot runs from them.
static void by_name(void **state)
{
	static struct t_vmm clone, second;
	char state_path[80], memory_path[80], line[100], first[100], text[2000];
	struct mv_err err = { 0 };
	struct vmcfg c, got;
	(void)state;
	need_kvm();
	config(&c, true);
	snprintf(state_path, sizeof state_path, "%s/vmstate", dir);
	snprintf(memory_path, sizeof memory_path, "%s/mem", dir);
	boot(&a, &c);
	ask(&a, "fill 100 400 5");
	ask(&a, "store one");
	assert_int_equal(t_vmm_ask(&a, "sum 0 4096", first, sizeof first), 0);
	order(&a, MSG_PAUSE);
	create(&a, &c, false, false, state_path, memory_path);
	load(&clone, &got, state_path, memory_path);
	assert_string_equal(got.name, c.name);
	assert_int_equal(got.track_dirty, true);

	order(&a, MSG_RUN);
	ask(&a, "fill 100 400 6");
	ask(&a, "store two");
	order(&a, MSG_PAUSE);
	create(&a, &c, true, true, state_path, memory_path);
	assert_int_equal(t_vmm_end(&a), 0);
	// The clone has the memory of its own snapshot, also what it had not touched yet.
	assert_int_equal(t_vmm_ask(&clone, "load", line, sizeof line), 0);
	assert_string_equal(line, "OK one");
	assert_int_equal(t_vmm_ask(&clone, "sum 0 4096", line, sizeof line), 0);
	assert_string_equal(line, first);
	load(&second, &got, state_path, memory_path);
	assert_int_equal(t_vmm_ask(&second, "load", line, sizeof line), 0);
	assert_string_equal(line, "OK two");
	work(&second, 3);
	assert_int_equal(t_vmm_end(&second), 0);
	assert_int_equal(t_vmm_end(&clone), 0);

	MV_FD file = open(state_path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(fc_snapfile_describe(file, text, sizeof text, &err), 0);
	assert_non_null(strstr(text, FC_SNAPFILE_VERSION "\ncreated: 20"));
	assert_non_null(strstr(text, "vm: tiny, 1 vCPUs, 32 MiB"));
	assert_non_null(strstr(text, "memory: 0x2000000 bytes at guest address 0x0, 0x0 in the file\n"));
	assert_non_null(strstr(text, "drive disk: /disk\n"));
}

// A state says where its memory was; a thaw that has it elsewhere can't use the file.
static void of_another_layout(void **state)
{
	struct gmem other = { 0 };
	struct snap_section sec;
	struct mv_err err = { 0 };
	struct vmcfg c;
	struct vm_fds f;
	MV_BUF out = { 0 };
	MV_FREE uint8_t *payload = NULL;
	size_t len, pos = 0;
	int fds[2];
	(void)state;
	need_kvm();
	config(&c, false);
	boot(&a, &c);
	full(&a, FULL, fds);
	assert_int_equal(t_vmm_end(&a), 0);
	assert_int_equal(gmem_add(&other, 0, T_MEM_BYTES / 2), 0);
	assert_int_equal(gmem_add(&other, T_MEM_BYTES, T_MEM_BYTES / 2), 0);
	assert_int_equal(snap_container_read(fds[0], SNAP_MAGIC_STATE, "state", SNAP_STATE_MAX_BYTES,
					     &payload, &len, &err),
			 0);
	while (snap_section_next(payload, len, &pos, &sec, &err) > 0) {
		size_t mark = snap_section_begin(&out, sec.kind, sec.index);
		if (sec.kind == SECTION_MEMORY)
			memory_map_save(&other, &out);
		else
			mv_buf_append(&out, sec.bytes, sec.len);
		snap_section_end(&out, mark);
	}
	machine_fds(&f);
	f.state = t_file();
	f.memory = dup(fds[1]);
	assert_int_equal(snap_container_write(f.state, SNAP_MAGIC_STATE, out.p, out.len, &err), 0);
	assert_int_equal(t_vmm_start(&a, t_vmm_path()), 0);
	assert_int_equal(t_vmm_setup(&a, MSG_RESTORE, &c, &f, true), EINVAL);
	assert_non_null(strstr(a.reply.text, "in 2 regions, this thaw makes 1"));
	t_vmm_end(&a);
	close_both(fds);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(untracked_memory),  cmocka_unit_test(forked_memory),
		cmocka_unit_test(tracked_from_boot), cmocka_unit_test(zeros_are_data),
		cmocka_unit_test(merged_in_place),   cmocka_unit_test(untracked_from_boot),
		cmocka_unit_test(of_clones),         cmocka_unit_test(with_a_page_handler),
		cmocka_unit_test(by_name),           cmocka_unit_test(of_another_layout),
	};
	memory = malloc(T_MEM_BYTES);
	if (!memory)
		return 1;
	t_tmpdir(dir);
	int r = cmocka_run_group_tests_name("microvm/raw_diff", tests, NULL, NULL);
	t_remove_tree(dir);
	free(memory);
	return r;
}
