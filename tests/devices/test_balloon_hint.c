// SPDX-License-Identifier: Apache-2.0
// Free page hints of devices/balloon.c: rounds, and drivers that do not keep to them.
#include "tests/devices/t_driver.h"

#include <errno.h>

#include "microvm/base/util.h"

enum { INFLATE, DEFLATE, STATS, HINTS, REPORT, N_QUEUES, PAGE = 4096, N_PAGES = 8 };
enum { CMD_ID = 0x108, POISON_VAL = 0x10c, STATUS = 0x70, STOP = 0, DONE = 1 };
#define F(bit) (1ULL << (bit))
#define F_STATS F(1)
#define F_HINT F(3)

struct fixture {
	struct t_vm vm;
	struct t_queue q[N_QUEUES];
	struct vio_dev *d;
	uint64_t gpa; // of N_PAGES pages
	uint8_t *p;
	unsigned ended;
	struct mv_err err; // of the last round
};

static const struct vio_balloon_config all = { .reporting = true, .hinting = true };

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	for (unsigned i = 0; i < N_QUEUES; i++)
		t_queue_init(&f->q[i], &f->vm, 64);
	assert_int_equal(vio_balloon_new(&f->vm.mem, &f->vm.loop, &all, &f->d, NULL), 0);
	f->gpa = t_alloc(&f->vm, N_PAGES * PAGE, PAGE);
	f->p = t_ptr(&f->vm, f->gpa, N_PAGES * PAGE);
	memset(f->p, 0xcc, N_PAGES * PAGE);
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

static void on_end(void *arg, const struct mv_err *err)
{
	struct fixture *f = arg;
	f->ended++;
	f->err = err ? *err : (struct mv_err){ 0 };
}

static uint32_t begin(struct fixture *f, uint32_t wait_ms)
{
	f->ended = 0;
	assert_int_equal(vio_balloon_hint(f->d, wait_ms, on_end, f, NULL), 0);
	return t_get(f->d, CMD_ID);
}

// The driver gives one buffer and waits for it.
static void give(struct fixture *f, unsigned q, struct t_buf buf)
{
	t_add(&f->q[q], &buf, 1);
	t_kick(f->d, q);
	assert_true(t_used(&f->q[q], NULL, NULL)); // before the write of the register has returned
}

static void say_n(struct fixture *f, unsigned q, uint32_t id, uint32_t len)
{
	uint64_t a = t_alloc(&f->vm, 8, 4);
	memcpy(t_ptr(&f->vm, a, 8), &id, sizeof id);
	give(f, q, (struct t_buf){ a, len, false });
}

static void say(struct fixture *f, uint32_t id) { say_n(f, HINTS, id, 4); }
static void give_page(struct fixture *f, unsigned n)
{
	give(f, HINTS, (struct t_buf){ f->gpa + n * PAGE, PAGE, true });
}

// Which pages are gone.
static unsigned gone(const struct fixture *f)
{
	unsigned bits = 0;
	for (unsigned i = 0; i < N_PAGES; i++)
		bits |= (f->p[i * PAGE] == 0 && f->p[i * PAGE + PAGE - 1] == 0) << i;
	return bits;
}

static uint64_t hinted(const struct fixture *f)
{
	struct vio_balloon_info i;
	vio_balloon_info(f->d, &i);
	return i.hinted_pages;
}

static void test_a_round(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	assert_int_equal(t_get(f->d, CMD_ID), STOP);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(begin(f, 5000), 2 + i); // another ID each time
		assert_int_equal(t_irqs(f->d), 1);
		assert_int_equal(vio_balloon_hint(f->d, 1, NULL, NULL, &f->err), -EBUSY);
		assert_message(f->err, "under way");
		t_set(f->d, CMD_ID, DONE); // the host's
		assert_int_equal(t_get(f->d, CMD_ID), 2 + i);
		say(f, 2 + i);
		give_page(f, 2 * i);
		give(f, HINTS,
		     (struct t_buf){ f->gpa + (4 + 2 * i) * PAGE + 1, 2 * PAGE - 1, true }); // one whole page
		assert_int_equal(f->ended, 0);
		t_irqs(f->d);
		say(f, STOP);
		assert_int_equal(f->ended, 1);
		assert_int_equal(f->err.code, 0);
		assert_true(t_irqs(f->d) > 0);
		assert_int_equal(t_get(f->d, CMD_ID), DONE);
		assert_int_equal(hinted(f), 2);
		assert_int_equal(gone(f), i ? 0xa5 : 0x21);
		give_page(f, 1); // is its own again
		assert_int_equal(f->p[PAGE], 0xcc);
	}
}

// What is not of the round, in the right order, with its ID, discards nothing.
static void test_wrong_ids(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	say(f, 2); // no round yet
	give_page(f, 0);
	say(f, STOP);
	uint32_t id = begin(f, 5000);
	give_page(f, 0); // before the ID
	say(f, STOP);    // of no round
	assert_int_equal(f->ended, 0);
	static const uint32_t wrong[] = { 3, DONE, UINT32_MAX };
	for (unsigned i = 0; i < MV_ARRAY_LEN(wrong); i++) {
		say(f, wrong[i]);
		give_page(f, 0);
	}
	say_n(f, HINTS, id, 3);
	give_page(f, 0);
	say(f, id);
	say(f, 77); // takes it back
	give_page(f, 0);
	assert_int_equal(gone(f), 0);
	say(f, id);
	say_n(f, HINTS, id, 8); // what is behind the ID counts for nothing
	give_page(f, 1);
	assert_int_equal(gone(f), 2);
	say(f, STOP);
	assert_int_equal(f->ended, 1);
	say(f, id); // of the last round
	give_page(f, 0);
	assert_true(begin(f, 5000) != id);
	say(f, id);
	give_page(f, 0);
	say(f, STOP); // late, of the one before
	assert_int_equal(f->ended, 0);
	assert_int_equal(gone(f), 2);
	assert_int_equal(hinted(f), 0);
}

static void test_no_driver(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(vio_balloon_hint(f->d, 1, on_end, f, &f->err), -ENOTSUP);
	assert_message(f->err, "no driver");
	t_start(f->d, ~F_HINT, f->q, N_QUEUES);
	assert_int_equal(vio_balloon_hint(f->d, 1, on_end, f, &f->err), -ENOTSUP);
	give_page(f, 0); // this queue is that of reports now
	assert_int_equal(gone(f), 1);
	vio_free(f->d);
	assert_int_equal(
		vio_balloon_new(&f->vm.mem, &f->vm.loop, &(struct vio_balloon_config){ 0 }, &f->d, NULL), 0);
	assert_int_equal(f->d->features_offered & F_HINT, 0);
	assert_int_equal(f->d->by_exit, 0);
	assert_int_equal(vio_balloon_hint(f->d, 1, on_end, f, &f->err), -ENOTSUP);
	assert_message(f->err, "free_page_hinting");
	assert_int_equal(f->ended, 0);
}

// Several buffers for one notification: who does that may have taken pages back.
static void test_batches(void **state)
{
	struct fixture *f = *state;
	for (unsigned turn = 0; turn < 2; turn++) {
		t_start(f->d, ~F(63), f->q, N_QUEUES);
		say(f, begin(f, 5000));
		for (unsigned i = 0; i < (turn ? 40u : 2u); i++)
			t_add(&f->q[HINTS], (struct t_buf[]){ { f->gpa, PAGE, true } }, 1);
		t_kick(f->d, HINTS);
		assert_int_equal(f->ended, 1);
		assert_int_equal(f->err.code, EPROTO);
		assert_int_equal(t_get(f->d, CMD_ID), DONE);
		for (unsigned i = 0; i < (turn ? 40u : 2u); i++) { // all come back, some in a later turn
			t_run_until(&f->vm, t_has_used, &f->q[HINTS]);
			assert_true(t_used(&f->q[HINTS], NULL, NULL));
		}
		give_page(f, 1);
		assert_int_equal(gone(f), 0);
		for (unsigned i = 0; i < N_QUEUES; i++)
			f->q[i].avail_idx = f->q[i].seen = 0,
			f->q[i].avail->idx = f->q[i].used->idx = (le16_t){ 0 };
	}
}

static void test_late_and_reset(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	uint32_t id = begin(f, 20);
	say(f, id);
	t_run_ms(&f->vm, 100);
	assert_int_equal(f->ended, 1);
	assert_int_equal(f->err.code, ETIMEDOUT);
	assert_message(f->err, "20 ms");
	assert_int_equal(t_get(f->d, CMD_ID), DONE);
	give_page(f, 0);
	assert_int_equal(gone(f), 0);
	id = begin(f, 5000);
	say(f, id);
	t_set(f->d, STATUS, 0);
	assert_int_equal(f->ended, 1);
	assert_int_equal(f->err.code, ECANCELED);
	for (unsigned i = 0; i < N_QUEUES; i++)
		f->q[i].avail_idx = f->q[i].seen = 0, f->q[i].avail->idx = f->q[i].used->idx = (le16_t){ 0 };
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	say(f, id);
	give_page(f, 0);
	assert_int_equal(gone(f), 0);
	assert_int_equal(begin(f, 5000), id + 1); // not even a reset makes one come twice
}

// All memory, more than memory, page 0 of the other region, unaligned ends: what is no memory stops the
// device.
static void test_huge_buffers(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	say(f, begin(f, 5000));
	give(f, HINTS, (struct t_buf){ T_HIGH_GPA, T_HIGH_BYTES, true });
	assert_int_equal(hinted(f), T_HIGH_BYTES / PAGE);
	give(f, HINTS, (struct t_buf){ f->gpa + 10, PAGE - 20, true }); // no whole page
	assert_int_equal(gone(f), 0);
	t_add(&f->q[HINTS], (struct t_buf[]){ { f->gpa, UINT32_MAX, true } }, 1);
	t_kick(f->d, HINTS);
	assert_true(t_get(f->d, STATUS) & VIO_NEEDS_RESET);
	assert_int_equal(gone(f), 0);
	assert_int_equal(f->ended, 0);
	t_set(f->d, STATUS, 0);
	assert_int_equal(f->ended, 1);
}

// A pattern in free pages would be lost.
static void test_poison(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	t_set(f->d, POISON_VAL, 0xaa);
	say(f, begin(f, 5000));
	give_page(f, 0);
	say(f, STOP);
	assert_int_equal(f->ended, 1);
	assert_int_equal(gone(f), 0);
}

// Without statistics: numbers without gaps, as older Linux has them, and those of the standard.
static void test_queue_numbers(void **state)
{
	struct fixture *f = *state;
	t_start(f->d, ~F_STATS, f->q, 4);
	uint32_t id = begin(f, 5000);
	say_n(f, 2, id, 4);
	give(f, 2, (struct t_buf){ f->gpa, PAGE, true });
	assert_int_equal(hinted(f), 1);
	give(f, 3, (struct t_buf){ f->gpa + PAGE, PAGE, true });
	assert_int_equal(gone(f), 3);
	assert_int_equal(hinted(f), 1); // that was a report
	t_set(f->d, STATUS, 0);
	struct t_queue gap[5] = { f->q[0], f->q[1], f->q[2], f->q[3], f->q[4] };
	t_negotiate(f->d, ~F_STATS);
	for (unsigned i = 3; i < 5; i++) {
		t_queue_init(&gap[i], &f->vm, 64);
		t_set(f->d, 0x30, i);
		t_set(f->d, 0x38, 64);
		t_set(f->d, 0x80, (uint32_t)gap[i].desc_gpa);
		t_set(f->d, 0x90, (uint32_t)gap[i].driver_gpa);
		t_set(f->d, 0xa0, (uint32_t)gap[i].device_gpa);
		t_set(f->d, 0x44, 1);
	}
	t_set(f->d, STATUS, t_get(f->d, STATUS) | VIO_DRIVER_OK);
	f->q[3] = gap[3];
	f->q[4] = gap[4];
	say(f, begin(f, 5000));
	give_page(f, 2);
	assert_int_equal(hinted(f), 1);
	give(f, 4, (struct t_buf){ f->gpa + 3 * PAGE, PAGE, true });
	assert_int_equal(gone(f), 0xf);
	assert_int_equal(hinted(f), 1);
}

// Saved in the middle: the restored guest finds the round at its end, also with a hint in the ring that it
// has not notified of yet, and the next one has an ID of its own.
static void test_save_and_load(void **state)
{
	struct fixture *f = *state;
	struct vio_dev *first = f->d;
	t_start(f->d, ~F(63), f->q, N_QUEUES);
	uint32_t id = begin(f, 5000);
	say(f, id);
	give_page(f, 0);
	t_add(&f->q[HINTS], (struct t_buf[]){ { f->gpa + PAGE, PAGE, true } }, 1);
	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	assert_false(saved.failed);
	assert_int_equal(vio_balloon_new(&f->vm.mem, &f->vm.loop, &all, &f->d, NULL), 0);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	vio_unquiesce(f->d);
	assert_int_equal(t_get(f->d, CMD_ID), DONE);
	assert_true(t_irqs(f->d) > 0);
	assert_int_equal(t_get(f->d, 0x60) & VIO_ISR_CONFIG, VIO_ISR_CONFIG);
	assert_true(t_used(&f->q[HINTS], NULL, NULL));
	say(f, id);
	give_page(f, 2);
	assert_int_equal(gone(f), 1);
	assert_int_equal(f->ended, 0); // the first one's, which goes on
	assert_int_equal(begin(f, 5000), id + 1);
	vio_free(first);
	// A device without hints can't go on with a guest that uses them.
	vio_free(f->d);
	const struct vio_balloon_config plain = { .reporting = true };
	assert_int_equal(vio_balloon_new(&f->vm.mem, &f->vm.loop, &plain, &f->d, NULL), 0);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, &f->err), -EINVAL);
	assert_message(f->err, "features");
}

// Rings, IDs and lengths at random while the host begins rounds.
static void test_hostile(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 99;
	unsigned rounds = 0;
	for (unsigned turn = 0; turn < 300; turn++) {
		f->vm.next_gpa = 0x1000;
		for (unsigned i = 0; i < N_QUEUES; i++)
			t_queue_init(&f->q[i], &f->vm, 64);
		memset(t_ptr(&f->vm, 0x1000, f->vm.next_gpa - 0x1000), 0, f->vm.next_gpa - 0x1000);
		t_start(f->d, turn & 1 ? ~F(63) : ~F_STATS, f->q, turn & 2 ? 5 : 4);
		for (unsigned i = 0; i < 30; i++) {
			struct t_queue *q = &f->q[2 + t_rand(&seed) % 3];
			uint64_t at =
				t_rand(&seed) % 4 ? 0x10000 + t_rand(&seed) % T_LOW_BYTES : t_rand(&seed);
			uint32_t len = t_rand(&seed) % 4 ? 4 : (uint32_t)t_rand(&seed);
			if (at < T_LOW_BYTES - 4)
				memcpy(t_ptr(&f->vm, at, 4), &(uint32_t){ t_get(f->d, CMD_ID) }, 4);
			t_desc(&q->desc[t_rand(&seed) % 64], at, len, (unsigned)t_rand(&seed) % 8,
			       (uint16_t)(t_rand(&seed) % 65));
			t_publish(q, (uint16_t)(t_rand(&seed) % 65));
			rounds += !vio_balloon_hint(f->d, 1 + (uint32_t)t_rand(&seed) % 3, on_end, f, NULL);
			t_kick(f->d, (unsigned)(q - f->q));
			if (t_rand(&seed) % 16 == 0)
				t_set(f->d, STATUS, 0);
		}
		t_run_ms(&f->vm, 1);
	}
	t_set(f->d, STATUS, 0);
	assert_true(rounds > 10);
	assert_int_equal(f->ended, rounds); // each one once
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_a_round), TEST(test_wrong_ids),      TEST(test_no_driver),
		TEST(test_batches), TEST(test_late_and_reset), TEST(test_huge_buffers),
		TEST(test_poison),  TEST(test_queue_numbers),  TEST(test_save_and_load),
		TEST(test_hostile),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
