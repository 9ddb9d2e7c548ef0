// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_driver.h"

#include <errno.h>

#include "microvm/base/util.h"

enum { INFLATE, DEFLATE, STATS, REPORT, N_QUEUES, PAGE = 4096, POISON = 4, REPORTING = 5 };
enum { NUM_PAGES = 0x100, ACTUAL = 0x104, POISON_VAL = 0x10c };
#define F(bit) (1ULL << (bit))

struct fixture {
	struct t_vm vm;
	struct t_queue q[N_QUEUES];
	struct vio_dev *d;
	unsigned told;
};

static const struct vio_balloon_config all = {
	.target_pages = 7, .stats_interval_s = 1, .deflate_on_oom = true, .reporting = true
};

static void on_stats(void *arg) { ((struct fixture *)arg)->told++; }

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	for (unsigned i = 0; i < N_QUEUES; i++)
		t_queue_init(&f->q[i], &f->vm, 64);
	assert_int_equal(vio_balloon_new(&f->vm.mem, &f->vm.loop, &all, &f->d, NULL), 0);
	vio_balloon_on_stats(f->d, on_stats, f);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	vio_free(f->d);
	t_vm_fini(&f->vm);
	free(f);
	return 0;
}

static struct vio_balloon_info info(const struct fixture *f)
{
	struct vio_balloon_info i;
	vio_balloon_info(f->d, &i);
	return i;
}

static void used(struct fixture *f, unsigned q)
{
	uint32_t len = 1;
	assert_true(t_used(&f->q[q], NULL, &len));
	assert_int_equal(len, 0);
}

// One request with n page numbers from `page` on.
static void send_pages(struct fixture *f, unsigned q, const uint32_t *page, unsigned n)
{
	uint64_t a = t_alloc(&f->vm, n * 4, 4);
	memcpy(t_ptr(&f->vm, a, n * 4), page, n * 4);
	t_add(&f->q[q], (struct t_buf[]){ { a, n * 4, false } }, 1);
	t_kick(f->d, q);
}

static void test_inflate(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 8 * PAGE, PAGE);
	uint8_t *p = t_ptr(&f->vm, a, 8 * PAGE);
	uint32_t n = (uint32_t)(a / PAGE);
	memset(p, 0xcc, 8 * PAGE);
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	assert_int_equal(t_get(f->d, NUM_PAGES), 7);
	// Any order, twice the same, the high region's, and numbers that are none.
	send_pages(f, INFLATE, (uint32_t[]){ n + 5, n + 1, n + 2, 0x100000, n + 1, UINT32_MAX, 0x80000 }, 7);
	used(f, INFLATE);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(p[i * PAGE], i == 1 || i == 2 || i == 5 ? 0 : 0xcc);
	assert_int_equal(info(f).freed_pages, 4);
	t_set(f->d, ACTUAL, 4);
	assert_int_equal(info(f).actual_pages, 4);
	assert_int_equal(t_get(f->d, ACTUAL), 4);
	t_set(f->d, NUM_PAGES, 99); // the host's
	assert_int_equal(t_get(f->d, NUM_PAGES), 7);
	send_pages(f, DEFLATE, (uint32_t[]){ n + 1 }, 1);
	used(f, DEFLATE);
	// Bytes that are no whole number, and nothing at all.
	t_add(&f->q[INFLATE], (struct t_buf[]){ { a, 3, false } }, 1);
	t_add(&f->q[INFLATE], (struct t_buf[]){ { a, 64, true } }, 1);
	t_kick(f->d, INFLATE);
	used(f, INFLATE);
	used(f, INFLATE);
	assert_int_equal(p[0], 0xcc);
}

// A list longer than what is done at once is done up to a limit, and answered.
static void test_long_lists(void **state)
{
	struct fixture *f = *state;
	enum { N = 5000 };
	uint32_t page[N];
	uint8_t *p = t_ptr(&f->vm, 8 << 20, PAGE);
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	for (unsigned i = 0; i < N; i++)
		page[i] = i < N - 1 ? 3000 : (8 << 20) / PAGE;
	*p = 1;
	send_pages(f, INFLATE, page, N);
	used(f, INFLATE);
	assert_int_equal(*p, 1);
	// More requests than a turn does.
	for (unsigned i = 0; i < 20; i++)
		t_add(&f->q[INFLATE], (struct t_buf[]){ { 0, 4, false } }, 1);
	t_kick(f->d, INFLATE);
	unsigned n = 0;
	while (t_used(&f->q[INFLATE], NULL, NULL))
		n++;
	assert_int_equal(n, 8);
	for (; n < 20; n++) {
		t_run_until(&f->vm, t_has_used, &f->q[INFLATE]);
		used(f, INFLATE);
	}
}

static void test_report(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, 8 * PAGE, PAGE);
	uint8_t *p = t_ptr(&f->vm, a, 8 * PAGE);
	for (uint32_t poison = 0; poison < 2; poison++) {
		memset(p, 0xcc, 8 * PAGE);
		t_start(f->d, ~F(63), f->q, N_QUEUES);
		t_set(f->d, POISON_VAL, poison);
		t_add(&f->q[REPORT],
		      (struct t_buf[]){ { a, 2 * PAGE, true }, { a + 4 * PAGE + 1, 2 * PAGE, true } }, 2);
		t_kick(f->d, REPORT);
		used(f, REPORT);
		for (unsigned i = 0; i < 8; i++) // of the second one page is whole
			assert_int_equal(p[i * PAGE], !poison && (i < 2 || i == 5) ? 0 : 0xcc);
		for (unsigned i = 0; i < N_QUEUES; i++)
			f->q[i].avail_idx = f->q[i].seen = 0,
			f->q[i].avail->idx = f->q[i].used->idx = (le16_t){ 0 };
	}
}

// Linux numbers queues without gaps: without statistics, reports come by the third one.
static void test_queues_without_statistics(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, PAGE, PAGE);
	uint8_t *p = t_ptr(&f->vm, a, PAGE);
	*p = 1;
	t_start(f->d, VIO_FEATURES | F(REPORTING), f->q, 3);
	t_add(&f->q[2], (struct t_buf[]){ { a, PAGE, true } }, 1);
	t_kick(f->d, 2);
	used(f, 2);
	assert_int_equal(*p, 0);
}

// A queue of a feature that the driver does not have is left alone.
static void test_no_reporting(void **state)
{
	struct fixture *f = *state;
	uint64_t a = t_alloc(&f->vm, PAGE, PAGE);
	t_start(f->d, VIO_FEATURES, f->q, N_QUEUES);
	t_add(&f->q[REPORT], (struct t_buf[]){ { a, PAGE, true } }, 1);
	t_kick(f->d, REPORT);
	assert_false(t_used(&f->q[REPORT], NULL, NULL));
	assert_false(t_get(f->d, 0x70) & VIO_NEEDS_RESET);
	vio_free(f->d); // and without the option it is not offered
	assert_int_equal(
		vio_balloon_new(&f->vm.mem, &f->vm.loop, &(struct vio_balloon_config){ 0 }, &f->d, NULL), 0);
	assert_int_equal(f->d->features_offered & 0x3f, F(1));
}

static void give_stats(struct fixture *f, uint16_t tag, uint64_t value)
{
	uint64_t a = t_alloc(&f->vm, 30, 2);
	uint8_t *p = t_ptr(&f->vm, a, 30);
	memcpy(p, &tag, 2);
	memcpy(p + 2, &value, 8);
	p[10] = 200; // a tag that nobody knows, and half an entry
	t_add(&f->q[STATS], (struct t_buf[]){ { a, 25, false } }, 1);
	t_kick(f->d, STATS);
}

static void test_statistics(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	assert_int_equal(info(f).stat[4], UINT64_MAX);
	give_stats(f, 4, 12345);
	assert_int_equal(info(f).stat[4], 12345);
	assert_int_equal(info(f).stat[5], UINT64_MAX);
	assert_int_equal(f->told, 0);           // nobody had asked
	assert_false(t_has_used(&f->q[STATS])); // kept
	t_run_until(&f->vm, t_has_used, &f->q[STATS]);
	used(f, STATS);
	give_stats(f, 6, 5);
	assert_int_equal(info(f).stat[6], 5);
	assert_int_equal(info(f).stat[4], UINT64_MAX);
	assert_int_equal(f->told, 1);
	give_stats(f, 6, 6); // a second buffer: the first one comes back, and nobody is told
	used(f, STATS);
	assert_false(t_has_used(&f->q[STATS]));
	assert_int_equal(f->told, 1);
	assert_int_equal(vio_balloon_set_interval(f->d, 0, NULL), 0);
	t_run_ms(&f->vm, 1200);
	assert_false(t_has_used(&f->q[STATS]));
}

static void test_target(void **state)
{
	struct fixture *f = *state;
	struct mv_err err;
	assert_int_equal(vio_balloon_set_target(f->d, 1000, NULL), 0);
	assert_int_equal(t_irqs(f->d), 0); // no driver yet
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	assert_int_equal(t_get(f->d, NUM_PAGES), 1000);
	assert_int_equal(vio_balloon_set_target(f->d, 10, NULL), 0);
	assert_int_equal(t_irqs(f->d), 1);
	assert_int_equal(t_get(f->d, 0x60), VIO_ISR_CONFIG);
	assert_int_equal(vio_balloon_set_target(f->d, (T_LOW_BYTES + T_HIGH_BYTES) / PAGE + 1, &err),
			 -EINVAL);
	assert_message(err, "more than the memory");
	t_set(f->d, 0x70, 0); // a reset leaves the target
	assert_int_equal(t_get(f->d, NUM_PAGES), 10);
}

// The kept buffer, the sizes and the poison are in the saved state.
static void test_save_and_load(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *first = f->d;
	struct mv_err err;
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	give_stats(f, 4, 1);
	t_set(f->d, ACTUAL, 3);
	t_set(f->d, POISON_VAL, 0xaa);
	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	assert_false(saved.failed);
	assert_int_equal(vio_balloon_new(&f->vm.mem, &f->vm.loop, &all, &f->d, NULL), 0);
	vio_free(first);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	vio_balloon_on_stats(f->d, on_stats, f);
	vio_unquiesce(f->d);
	assert_int_equal(t_get(f->d, NUM_PAGES), 7);
	assert_int_equal(t_get(f->d, ACTUAL), 3);
	assert_int_equal(t_get(f->d, POISON_VAL), 0xaa);
	t_run_until(&f->vm, t_has_used, &f->q[STATS]);
	used(f, STATS);
	give_stats(f, 4, 2);
	assert_int_equal(f->told, 1);
	// A device without reporting can't go on with a guest that uses it.
	vio_free(f->d);
	assert_int_equal(
		vio_balloon_new(&f->vm.mem, &f->vm.loop, &(struct vio_balloon_config){ 0 }, &f->d, NULL), 0);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, &err), -EINVAL);
	assert_message(err, "features");
}

// Rings, numbers and lengths at random: it answers or asks for a reset, and memory outside stays.
static void test_hostile(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 77;
	for (unsigned turn = 0; turn < 300; turn++) {
		f->vm.next_gpa = 0x1000;
		for (unsigned i = 0; i < N_QUEUES; i++)
			t_queue_init(&f->q[i], &f->vm, 64);
		memset(t_ptr(&f->vm, 0x1000, f->vm.next_gpa - 0x1000), 0, f->vm.next_gpa - 0x1000);
		t_start(f->d, turn & 1 ? ~F(63) : VIO_FEATURES | F(REPORTING), f->q, turn & 1 ? 4 : 3);
		for (unsigned i = 0; i < 30; i++) {
			struct t_queue *q = &f->q[t_rand(&seed) % N_QUEUES];
			struct vq_desc *desc = &q->desc[t_rand(&seed) % 64];
			uint64_t at =
				t_rand(&seed) % 4 ? 0x10000 + t_rand(&seed) % T_LOW_BYTES : t_rand(&seed);
			uint32_t len =
				t_rand(&seed) % 4 ? (uint32_t)t_rand(&seed) % 40000 : (uint32_t)t_rand(&seed);
			t_desc(desc, at, len, (unsigned)t_rand(&seed) % 8, (uint16_t)(t_rand(&seed) % 65));
			t_publish(q, (uint16_t)(t_rand(&seed) % 65));
			t_kick(f->d, (unsigned)(q - f->q));
			t_set(f->d, 0x100 + t_rand(&seed) % 8 * 4, (uint32_t)t_rand(&seed));
		}
		t_run_ms(&f->vm, 1);
	}
	assert_int_equal(t_get(f->d, NUM_PAGES), 7);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_inflate),       TEST(test_long_lists), TEST(test_report),
		TEST(test_no_reporting),  TEST(test_statistics), TEST(test_queues_without_statistics),
		TEST(test_save_and_load), TEST(test_hostile),    TEST(test_target),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
