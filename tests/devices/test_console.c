// SPDX-License-Identifier: Apache-2.0
#include "tests/devices/t_driver.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "microvm/base/util.h"

enum { RX0, TX0, CONTROL_RX, CONTROL_TX, RX1, TX1, N_QUEUES };
enum { DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME };

struct fixture {
	struct t_vm vm;
	struct t_queue q[N_QUEUES];
	struct vio_dev *d;
	struct sockaddr_un at[2];
	uint64_t room; // of control messages
};

static void make_device(struct fixture *f)
{
	struct vio_console_port port[2] = { { "log", -1, false }, { "shell", -1, true } };
	for (unsigned i = 0; i < 2; i++) {
		f->at[i] = (struct sockaddr_un){ .sun_family = AF_UNIX };
		socklen_t len = sizeof f->at[i];
		port[i].listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		assert_int_equal(bind(port[i].listen_fd, (struct sockaddr *)&f->at[i], sizeof(sa_family_t)),
				 0);
		assert_int_equal(getsockname(port[i].listen_fd, (struct sockaddr *)&f->at[i], &len), 0);
		assert_int_equal(listen(port[i].listen_fd, 5), 0);
	}
	assert_int_equal(vio_console_new(&f->vm.mem, &f->vm.loop, port, 2, &f->d, NULL), 0);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	t_vm_init(&f->vm);
	for (unsigned i = 0; i < N_QUEUES; i++)
		t_queue_init(&f->q[i], &f->vm, 32);
	make_device(f);
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

// -1: too many wait already.
static int try_client(struct fixture *f, unsigned port)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (connect(fd, (struct sockaddr *)&f->at[port], sizeof(sa_family_t) + 6))
		mv_close(&fd);
	t_run_ms(&f->vm, 5);
	return fd;
}

static int client(struct fixture *f, unsigned port)
{
	int fd = try_client(f, port);
	assert_true(fd >= 0);
	return fd;
}

static void say(struct fixture *f, uint32_t port, uint16_t event, uint16_t value)
{
	struct {
		le32_t port;
		le16_t event, value;
	} m = { le32_make(port), le16_make(event), le16_make(value) };
	uint64_t a = t_alloc(&f->vm, sizeof m, 4);
	memcpy(t_ptr(&f->vm, a, sizeof m), &m, sizeof m);
	t_add(&f->q[CONTROL_TX], (struct t_buf[]){ { a, sizeof m, false } }, 1);
	t_kick(f->d, CONTROL_TX);
	assert_true(t_used(&f->q[CONTROL_TX], NULL, NULL));
}

// A buffer for a control message; what comes (it must) is this one.
static void expect(struct fixture *f, uint32_t port, uint16_t event, uint16_t value, const char *name)
{
	uint64_t a = t_alloc(&f->vm, 64, 4);
	uint32_t len = 0;
	const uint8_t *p = t_ptr(&f->vm, a, 64);
	t_add(&f->q[CONTROL_RX], (struct t_buf[]){ { a, 64, true } }, 1);
	t_kick(f->d, CONTROL_RX);
	t_run_until(&f->vm, t_has_used, &f->q[CONTROL_RX]);
	assert_true(t_used(&f->q[CONTROL_RX], NULL, &len));
	assert_int_equal(len, 8 + strlen(name));
	assert_memory_equal(p, &port, 4);
	assert_memory_equal(p + 4, &event, 2);
	assert_memory_equal(p + 6, &value, 2);
	assert_memory_equal(p + 8, name, strlen(name));
}

// There is a buffer, and nothing to be said.
static void expect_nothing(struct fixture *f)
{
	t_run_ms(&f->vm, 5);
	assert_false(t_has_used(&f->q[CONTROL_RX]));
}

static void start(struct fixture *f)
{
	t_start(f->d, ~(1ULL << 63), f->q, N_QUEUES);
	assert_int_equal(t_get(f->d, 0x104), 2);
	say(f, 0, DEVICE_READY, 1);
	expect(f, 0, PORT_ADD, 1, "");
	expect(f, 1, PORT_ADD, 1, "");
	say(f, 0, PORT_READY, 1);
	expect(f, 0, PORT_NAME, 1, "log");
	say(f, 1, PORT_READY, 1);
	expect(f, 1, CONSOLE_PORT, 1, "");
	expect(f, 1, PORT_NAME, 1, "shell");
}

static void send_out(struct fixture *f, unsigned q, const void *text, uint32_t len)
{
	uint64_t a = t_alloc(&f->vm, len, 1);
	memcpy(t_ptr(&f->vm, a, len), text, len);
	t_add(&f->q[q], (struct t_buf[]){ { a, len / 2, false }, { a + len / 2, len - len / 2, false } }, 2);
	t_kick(f->d, q);
}

static uint8_t *give_room(struct fixture *f, unsigned q, uint32_t len)
{
	uint64_t a = t_alloc(&f->vm, len, 1);
	t_add(&f->q[q], (struct t_buf[]){ { a, len, true } }, 1);
	t_kick(f->d, q);
	return t_ptr(&f->vm, a, len);
}

static void assert_read(int fd, const char *text)
{
	char got[64] = "";
	assert_int_equal(recv(fd, got, sizeof got, 0), strlen(text));
	assert_string_equal(got, text);
}

static void test_talk(void **state)
{
	struct fixture *f = *state;
	uint32_t len;
	start(f);
	send_out(f, TX0, "nobody is there", 15); // lost
	assert_true(t_used(&f->q[TX0], NULL, NULL));
	int fd = client(f, 0);
	expect(f, 0, PORT_OPEN, 1, "");
	send_out(f, TX0, "hello host", 10);
	assert_true(t_used(&f->q[TX0], NULL, NULL));
	assert_read(fd, "hello host");
	// Not before the guest has opened it.
	uint8_t *p = give_room(f, RX0, 64);
	assert_int_equal(send(fd, "hello guest", 11, 0), 11);
	t_run_ms(&f->vm, 5);
	assert_false(t_has_used(&f->q[RX0]));
	say(f, 0, PORT_OPEN, 1);
	t_run_until(&f->vm, t_has_used, &f->q[RX0]);
	assert_true(t_used(&f->q[RX0], NULL, &len));
	assert_int_equal(len, 11);
	assert_memory_equal(p, "hello guest", 11);
	// No room: it stays in the socket. A buffer of no size is no end.
	assert_int_equal(send(fd, "abcdef", 6, 0), 6);
	t_run_ms(&f->vm, 5);
	give_room(f, RX0, 1);
	assert_true(t_used(&f->q[RX0], NULL, &len));
	assert_int_equal(len, 1);
	t_add(&f->q[RX0], (struct t_buf[]){ { 0x1000, 8, false } }, 1);
	t_kick(f->d, RX0);
	assert_true(t_used(&f->q[RX0], NULL, &len));
	assert_int_equal(len, 0);
	p = give_room(f, RX0, 64);
	assert_true(t_used(&f->q[RX0], NULL, &len));
	assert_int_equal(len, 5);
	assert_memory_equal(p, "bcdef", 5);
	// The other port has its own socket.
	int shell = client(f, 1);
	expect(f, 1, PORT_OPEN, 1, "");
	send_out(f, TX1, "$ ", 2);
	assert_read(shell, "$ ");
	close(shell);
	// It goes; the next one waited.
	int next = client(f, 0);
	assert_int_equal(recv(next, p, 1, 0), -1);
	close(fd);
	give_room(f, RX0, 64);
	expect(f, 0, PORT_OPEN, 0, "");
	expect(f, 1, PORT_OPEN, 0, "");
	expect(f, 0, PORT_OPEN, 1, "");
	send_out(f, TX0, "you?", 4);
	t_run_ms(&f->vm, 5);
	assert_read(next, "you?");
	close(next);
}

// A host that does not read: the request waits, and goes on where it was.
static void test_full(void **state)
{
	enum { BIG = 1 << 20 };
	struct fixture *f = *state;
	uint8_t *data = malloc(BIG), *got = malloc(BIG);
	size_t at = 0;
	start(f);
	int fd = client(f, 0);
	expect(f, 0, PORT_OPEN, 1, "");
	for (size_t i = 0; i < BIG; i++)
		data[i] = (uint8_t)(i * 7 + (i >> 12));
	send_out(f, TX0, data, BIG);
	assert_false(t_has_used(&f->q[TX0]));
	for (unsigned turn = 0; at < BIG && turn < 10000; turn++) {
		ssize_t n = recv(fd, got + at, BIG - at, 0);
		if (n > 0)
			at += (size_t)n;
		else
			t_run_ms(&f->vm, 1);
		if (turn == 3) { // a pause in between changes nothing
			vio_quiesce(f->d);
			vio_unquiesce(f->d);
		}
	}
	assert_int_equal(at, BIG);
	assert_memory_equal(got, data, BIG);
	t_run_until(&f->vm, t_has_used, &f->q[TX0]);
	close(fd);
	// A terminal's guest never waits.
	int shell = client(f, 1);
	expect(f, 0, PORT_OPEN, 0, "");
	send_out(f, TX1, data, BIG);
	assert_true(t_used(&f->q[TX1], NULL, NULL));
	assert_true(recv(shell, got, BIG, 0) > 0);
	close(shell);
	free(data);
	free(got);
}

// A clone's ports are closed again, and it says so; a request that was half sent goes on.
static void test_save_and_load(void **state)
{
	enum { BIG = 1 << 20 };
	struct fixture *f = *state;
	uint8_t *data = calloc(1, BIG);
	size_t first = 0, rest = 0;
	struct mv_err err;
	start(f);
	int fd = client(f, 0);
	expect(f, 0, PORT_OPEN, 1, "");
	say(f, 0, PORT_OPEN, 1);
	send_out(f, TX0, data, BIG);
	assert_false(t_has_used(&f->q[TX0]));
	vio_quiesce(f->d);
	MV_BUF saved = { 0 };
	vio_save(f->d, &saved);
	assert_false(saved.failed);
	vio_free(f->d);
	for (ssize_t n; (n = recv(fd, data, BIG, 0)) > 0;)
		first += (size_t)n;
	close(fd);
	make_device(f);
	assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
	fd = client(f, 0);
	close(fd); // while it is not live yet
	fd = client(f, 0);
	vio_unquiesce(f->d);
	for (unsigned i = 0; i < 10000 && first + rest < BIG; i++) {
		ssize_t n = recv(fd, data, BIG, 0);
		if (n > 0)
			rest += (size_t)n;
		else
			t_run_ms(&f->vm, 1);
	}
	t_run_until(&f->vm, t_has_used, &f->q[TX0]);
	close(fd);
	give_room(f, RX0, 8);
	expect(f, 0, PORT_OPEN, 0, "");
	expect_nothing(f);
	// Another number of ports.
	struct vio_dev *one;
	struct vio_console_port port = { "log", socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), false };
	assert_int_equal(bind(port.listen_fd, (struct sockaddr *)&f->at[0], sizeof(sa_family_t)), 0);
	assert_int_equal(listen(port.listen_fd, 1), 0);
	assert_int_equal(vio_console_new(&f->vm.mem, &f->vm.loop, &port, 1, &one, NULL), 0);
	assert_int_equal(vio_load(one, saved.p, saved.len, &err), -EINVAL);
	vio_free(one);
	free(data);
}

// A driver without MULTIPORT has the first port, always open; and the emergency character.
static void test_one_port(void **state)
{
	struct fixture *f = *state;
	int fd = client(f, 0);
	t_set(f->d, 0x108, '!');
	assert_read(fd, "!");
	t_start(f->d, VIO_FEATURES, f->q, 2);
	send_out(f, TX0, "old", 3);
	t_run_ms(&f->vm, 5);
	assert_read(fd, "old");
	uint8_t *p = give_room(f, RX0, 8);
	assert_int_equal(send(fd, "x", 1, 0), 1);
	t_run_until(&f->vm, t_has_used, &f->q[RX0]);
	assert_int_equal(*p, 'x');
	t_kick(f->d, CONTROL_RX);
	t_kick(f->d, TX1);
	close(fd);
}

static void test_bad_numbers(void **state)
{
	struct mv_err err;
	struct fixture *f = *state;
	struct vio_dev *d;
	int before = t_count_fds();
	struct vio_console_port port[5] = { { "a", dup(0), false } };
	assert_int_equal(vio_console_new(&f->vm.mem, &f->vm.loop, port, 1, &d, &err), -EPERM); // no socket
	assert_int_equal(vio_console_new(&f->vm.mem, &f->vm.loop, port, 0, &d, &err), -EINVAL);
	assert_int_equal(t_count_fds(), before);
}

// Everything at random, with a host that comes and goes.
static void test_hostile(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 5;
	for (unsigned turn = 0; turn < 300; turn++) {
		int fd = -1;
		f->vm.next_gpa = 0x1000;
		for (unsigned i = 0; i < N_QUEUES; i++)
			t_queue_init(&f->q[i], &f->vm, 32);
		memset(t_ptr(&f->vm, 0x1000, f->vm.next_gpa - 0x1000), 0, f->vm.next_gpa - 0x1000);
		t_start(f->d, ~(1ULL << 63), f->q, N_QUEUES);
		for (uint32_t i = 0; (turn & 1) && i < 2; i++) {
			say(f, 0, DEVICE_READY, 1);
			say(f, i, PORT_READY, 1);
			say(f, i, PORT_OPEN, 1);
		}
		for (unsigned i = 0; i < 40; i++) {
			struct t_queue *q = &f->q[t_rand(&seed) % N_QUEUES];
			uint64_t at = t_rand(&seed) % 8 ? 0x10000 + t_rand(&seed) % 0x10000 : t_rand(&seed);
			uint32_t m[2] = { (uint32_t)t_rand(&seed) % 3, (uint32_t)t_rand(&seed) & 0x10007 };
			gmem_write(&f->vm.mem, gpa(at), m, sizeof m);
			t_desc(&q->desc[t_rand(&seed) % 32], at, (uint32_t)t_rand(&seed) % 100,
			       (unsigned)t_rand(&seed) % (turn & 2 ? 8 : 3), (uint16_t)(t_rand(&seed) % 33));
			t_publish(q, (uint16_t)(t_rand(&seed) % 32));
			t_kick(f->d, (unsigned)(q - f->q));
			if (t_rand(&seed) % 8 == 0) {
				mv_close(&fd);
				fd = try_client(f, (unsigned)t_rand(&seed) % 2);
				send(fd, "some words", 10, MSG_NOSIGNAL);
			}
		}
		mv_close(&fd);
		t_run_ms(&f->vm, 2);
		vio_quiesce(f->d);
		MV_BUF saved = { 0 };
		vio_save(f->d, &saved);
		assert_int_equal(vio_load(f->d, saved.p, saved.len, NULL), 0);
		vio_unquiesce(f->d);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_talk),     TEST(test_full),        TEST(test_save_and_load),
		TEST(test_one_port), TEST(test_bad_numbers), TEST(test_hostile),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
