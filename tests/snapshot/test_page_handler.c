// SPDX-License-Identifier: Apache-2.0
// This process is the VM and its handler: threads touch memory that is registered as thaw-vmm
// registers it, another thread serves.
#include "tests/t.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "microvm/base/util.h"
#include "snapshot/page_handler.h"

enum { PAGE = 4096, PAGES = 100, ZERO_FROM = 32, ZERO_TO = 48 }; // a chunk of zeros

static uint8_t content(uint64_t page)
{
	return page >= ZERO_FROM && page < ZERO_TO ? 0 : (uint8_t)(page + 1);
}

static void fill_pages(uint8_t *to)
{
	for (unsigned i = 0; i < PAGES; i++)
		memset(to + i * PAGE, content(i), PAGE);
}

// The memory file under a path, raw or compressed.
static int make_file(bool lz4, char ret_path[40])
{
	struct mv_err err = { 0 };
	struct gmem m = { 0 };
	uint64_t bytes;
	int fd = t_file();
	assert_int_equal(gmem_add(&m, 0, PAGES * PAGE), 0);
	assert_int_equal(gmem_map(&m, -1, &err), 0);
	fill_pages(m.region[0].hva);
	if (lz4)
		assert_int_equal(chunk_write(fd, &m, false, 1, &bytes, &err), 0);
	else
		assert_int_equal(mv_pwrite_full(fd, m.region[0].hva, PAGES * PAGE, 0), 0);
	gmem_fini(&m);
	snprintf(ret_path, 40, "/proc/self/fd/%d", fd);
	return fd;
}

struct rig {
	int file, uffd, stop[2];
	uint8_t *memory; // PAGES, registered
	struct ph_source source;
	struct ph_vm vm;
	pthread_t thread;
};

static void *serve(void *arg)
{
	struct rig *r = arg;
	struct pollfd p[2] = { { r->uffd, POLLIN, 0 }, { r->stop[0], POLLIN, 0 } };
	for (;;) {
		poll(p, 2, -1);
		if (p[1].revents)
			return NULL;
		if (ph_vm_serve(&r->vm, &r->source))
			return "serving failed";
	}
}

static void rig_open(struct rig *r, bool lz4)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct mv_err err = { 0 };
	char path[40];
	r->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (r->uffd < 0) {
		print_message("# SKIP no userfaultfd: %s\n", strerror(errno));
		skip();
	}
	assert_int_equal(ioctl(r->uffd, UFFDIO_API, &api), 0);
	r->memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(r->memory != MAP_FAILED);
	struct uffdio_register reg = { .range = { (uintptr_t)r->memory, PAGES * PAGE },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	assert_int_equal(ioctl(r->uffd, UFFDIO_REGISTER, &reg), 0);
	r->file = make_file(lz4, path);
	if (ph_source_open(path, &r->source, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(r->source.memory_bytes, PAGES * PAGE);
}

static void rig_start(struct rig *r, const struct ph_region *region, unsigned n_regions)
{
	struct mv_err err = { 0 };
	if (ph_vm_init(&r->vm, &r->source, region, n_regions, r->uffd, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(pipe(r->stop), 0);
	assert_int_equal(pthread_create(&r->thread, NULL, serve, r), 0);
}

static void rig_close(struct rig *r)
{
	void *complaint = NULL;
	assert_int_equal(write(r->stop[1], "", 1), 1);
	pthread_join(r->thread, &complaint);
	assert_null(complaint);
	ph_vm_fini(&r->vm);
	ph_source_fini(&r->source);
	munmap(r->memory, PAGES * PAGE);
	close(r->file);
	close(r->stop[0]);
	close(r->stop[1]);
}

static struct ph_region whole(const struct rig *r)
{
	return (struct ph_region){ (uintptr_t)r->memory, PAGES * PAGE, 0 };
}

static void assert_page(const uint8_t *p, uint8_t value)
{
	for (unsigned i = 0; i < PAGE; i++)
		if (p[i] != value)
			fail_msg("byte %u of the page is %u, not %u", i, p[i], value);
}

static void all_pages_come_and_once(void **state)
{
	(void)state;
	for (int lz4 = 0; lz4 < 2; lz4++) {
		struct rig r;
		rig_open(&r, lz4);
		struct ph_region region = whole(&r);
		rig_start(&r, &region, 1);
		for (unsigned i = PAGES; i-- > 0;)
			assert_page(r.memory + i * PAGE, content(i));
		rig_close(&r);
		// A fault per chunk; zeros are mapped and not copied.
		assert_int_equal(r.vm.faults, (PAGES * PAGE + CHUNK_BYTES - 1) / CHUNK_BYTES);
		assert_int_equal(r.vm.pages_copied, PAGES - (ZERO_TO - ZERO_FROM));
	}
}

// Two regions that begin and end in the midst of chunks, swapped in memory.
static void a_fault_stays_in_its_region(void **state)
{
	struct rig r;
	(void)state;
	rig_open(&r, false);
	const struct ph_region region[] = { { (uintptr_t)r.memory + 40 * PAGE, 20 * PAGE, 3 * PAGE },
					    { (uintptr_t)r.memory + 20 * PAGE, 20 * PAGE, 70 * PAGE } };
	rig_start(&r, region, 2);
	for (unsigned i = 0; i < 20; i++)
		assert_page(r.memory + (40 + i) * PAGE, content(3 + i));
	for (unsigned i = 20; i-- > 0;)
		assert_page(r.memory + (20 + i) * PAGE, content(70 + i));
	rig_close(&r);
	assert_int_equal(r.vm.pages_copied, 40);
}

static void pages_that_are_there_stay(void **state)
{
	struct rig r;
	(void)state;
	rig_open(&r, true);
	struct ph_region region = whole(&r);
	for (unsigned i = 0; i < 16; i += 5) { // 0, 5, 10, 15: the guest has written them
		struct uffdio_zeropage z = { .range = { (uintptr_t)r.memory + i * PAGE, PAGE } };
		assert_int_equal(ioctl(r.uffd, UFFDIO_ZEROPAGE, &z), 0);
		memset(r.memory + i * PAGE, 0xee, PAGE);
	}
	rig_start(&r, &region, 1);
	for (unsigned i = 0; i < 16; i++)
		assert_page(r.memory + i * PAGE, i % 5 ? content(i) : 0xee);
	rig_close(&r);
	assert_int_equal(r.vm.faults, 1);
	assert_int_equal(r.vm.pages_copied, 12);
}

static void removed_pages_are_zeros(void **state)
{
	struct rig r;
	(void)state;
	rig_open(&r, false);
	struct ph_region region = whole(&r);
	rig_start(&r, &region, 1);
	assert_page(r.memory + 2 * PAGE, content(2));                                // chunk 0 is there
	assert_int_equal(madvise(r.memory + 4 * PAGE, 20 * PAGE, MADV_DONTNEED), 0); // and a part of it goes
	for (unsigned i = 0; i < 32; i++)
		assert_page(r.memory + i * PAGE, i >= 4 && i < 24 ? 0 : content(i));
	// Written, it is memory like any other; and may be given back again.
	memset(r.memory + 5 * PAGE, 0x77, PAGE);
	assert_page(r.memory + 5 * PAGE, 0x77);
	assert_int_equal(madvise(r.memory + 5 * PAGE, PAGE, MADV_DONTNEED), 0);
	assert_page(r.memory + 5 * PAGE, 0);
	rig_close(&r);
	assert_int_equal(r.vm.pages_removed, 20);
}

struct race {
	struct rig *r;
	_Atomic bool done;
	_Atomic unsigned wrong;
};

static void *touch_all(void *arg)
{
	struct race *race = arg;
	while (!race->done)
		for (unsigned i = 0; i < PAGES; i++) {
			uint8_t v = *(volatile uint8_t *)(race->r->memory + i * PAGE + 9);
			race->wrong += v != 0 && v != content(i);
		}
	return NULL;
}

// Removals while threads fault on the same pages: none waits for ever, none sees anything but
// the page or zeros, and what was removed last stays zeros.
static void removals_and_faults_at_the_same_time(void **state)
{
	struct rig r;
	pthread_t thread[3];
	uint64_t seed = 3;
	(void)state;
	rig_open(&r, true);
	struct ph_region region = whole(&r);
	struct race race = { .r = &r };
	rig_start(&r, &region, 1);
	for (unsigned i = 0; i < MV_ARRAY_LEN(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, touch_all, &race), 0);
	for (unsigned i = 0; i < 3000; i++) {
		unsigned page = (unsigned)(t_rand(&seed) % (PAGES - 8));
		unsigned n = 1 + (unsigned)(t_rand(&seed) % 8);
		assert_int_equal(madvise(r.memory + page * PAGE, n * PAGE, MADV_DONTNEED), 0);
	}
	race.done = true;
	for (unsigned i = 0; i < MV_ARRAY_LEN(thread); i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(race.wrong, 0);
	assert_int_equal(madvise(r.memory, PAGES * PAGE, MADV_DONTNEED), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_page(r.memory + i * PAGE, 0);
	rig_close(&r);
	assert_int_equal(r.vm.pages_removed, PAGES);
}

static void hostile_regions_are_refused(void **state)
{
	struct rig r;
	struct mv_err err;
	struct ph_vm vm;
	struct ph_region many[PH_MAX_REGIONS + 1];
	int fds = t_count_fds();
	(void)state;
	rig_open(&r, false);
	const struct ph_region good = whole(&r);
	const struct {
		struct ph_region region[2];
		unsigned n;
		const char *why;
	} bad[] = {
		{ { good }, 0, "0 regions" },
		{ { { good.hva + 1, PAGE, 0 } }, 1, "whole pages" },
		{ { { good.hva, PAGE - 1, 0 } }, 1, "whole pages" },
		{ { { good.hva, PAGE, 5 } }, 1, "whole pages" },
		{ { { good.hva, 0, 0 } }, 1, "whole pages" },
		{ { { 0, PAGE, 0 } }, 1, "whole pages" },
		{ { { UINT64_MAX - PAGE + 1, PAGE, 0 } }, 1, "whole pages" },
		{ { { good.hva, (PAGES + 1) * PAGE, 0 } }, 1, "beyond" },
		{ { { good.hva, PAGE, PAGES * PAGE } }, 1, "beyond" },
		{ { { good.hva, PAGE, UINT64_MAX - PAGE + 1 } }, 1, "beyond" },
		{ { { good.hva, 2 * PAGE, 0 }, { good.hva + PAGE, PAGE, 0 } }, 2, "overlap" },
		{ { { good.hva + PAGE, PAGE, 0 }, good }, 2, "overlap" },
	};
	for (unsigned i = 0; i < MV_ARRAY_LEN(bad); i++) {
		assert_int_equal(ph_vm_init(&vm, &r.source, bad[i].region, bad[i].n, r.uffd, &err), -EINVAL);
		assert_message(err, bad[i].why);
	}
	for (unsigned i = 0; i < MV_ARRAY_LEN(many); i++)
		many[i] = (struct ph_region){ good.hva + i * PAGE, PAGE, 0 };
	assert_int_equal(ph_vm_init(&vm, &r.source, many, MV_ARRAY_LEN(many), r.uffd, &err), -EINVAL);
	assert_int_equal(ph_vm_init(&vm, &r.source, &good, 1, r.file, &err), -EINVAL);
	assert_message(err, "not a userfaultfd");
	rig_start(&r, many, PH_MAX_REGIONS); // the descriptor is still good
	rig_close(&r);
	assert_int_equal(t_count_fds(), fds);
}

static void files_that_are_no_memory(void **state)
{
	struct mv_err err;
	struct ph_source s;
	char path[40];
	int fds = t_count_fds(), fd = make_file(true, path);
	(void)state;
	assert_int_equal(ph_source_open("/nowhere/at/all", &s, &err), -ENOENT);
	assert_message(err, "/nowhere/at/all");
	assert_int_equal(ph_source_open("/dev/null", &s, &err), -EINVAL);
	assert_int_equal(mv_pwrite_full(fd, "\xff", 1, 20), 0); // the compressed one's header
	assert_int_equal(ph_source_open(path, &s, &err), -EINVAL);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(ftruncate(fd, PAGE + 1), 0);
	assert_int_equal(ph_source_open(path, &s, &err), -EINVAL);
	assert_message(err, "whole pages");
	close(fd);
	assert_int_equal(t_count_fds(), fds);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_pages_come_and_once),
		cmocka_unit_test(a_fault_stays_in_its_region),
		cmocka_unit_test(pages_that_are_there_stay),
		cmocka_unit_test(removed_pages_are_zeros),
		cmocka_unit_test(removals_and_faults_at_the_same_time),
		cmocka_unit_test(hostile_regions_are_refused),
		cmocka_unit_test(files_that_are_no_memory),
	};
	return cmocka_run_group_tests_name("snapshot/page_handler", tests, NULL, NULL);
}
