// SPDX-License-Identifier: Apache-2.0
// With --make FILE: writes the golden file, from the golden state file of tests/golden/1.0/plain.
#include "tests/t.h"

#include <errno.h>
#include <sys/stat.h>

#include "api/fc/snapfile.h"
#include "microvm/base/bytes.h"
#include "microvm/base/util.h"

#define GOLDEN "tests/golden/firecracker-1.0/snapshot.gz"
#define GOLDEN_STATE "tests/golden/1.0/plain/state.gz"

enum { ABOUT = 1, STATE = 2, SKIPPED = 0x8000 };
static const char machine[] = "what a VM process saves";

static void config(struct vmcfg *c)
{
	memset(c, 0, sizeof *c);
	strcpy(c->name, "vm-1");
	mv_uuid(c->id);
	c->vcpus = 3;
	c->mem_mib = 64;
	c->rng = c->track_dirty = true;
	strcpy(c->kernel, "/boot/vmlinux");
	c->n_drives = 1;
	strcpy(c->drive[0].id, "rootfs");
	strcpy(c->drive[0].path, "/srv/rootfs.ext4");
	c->drive[0].read_only = true;
}

static int state_file(void)
{
	struct mv_err err;
	int fd = t_file();
	assert_int_equal(snap_container_write(fd, SNAP_MAGIC_STATE, machine, sizeof machine, &err), 0);
	return fd;
}

static int good_file(struct vmcfg *c)
{
	struct mv_err err = { 0 };
	MV_FD state_fd = state_file();
	int fd = t_file();
	config(c);
	if (fc_snapfile_write(fd, c, state_fd, NULL, &err))
		fail_msg("%s", err.msg);
	return fd;
}

// What reading says; nothing is given out on failure.
static int read_it(int fd, struct vmcfg *ret_c, struct mv_err *err)
{
	int state_fd = -1;
	*err = (struct mv_err){ 0 };
	int r = fc_snapfile_read(fd, ret_c, &state_fd, NULL, err);
	assert_int_equal(state_fd >= 0, !r);
	if (r)
		assert_message(*err, "snapshot: ");
	mv_close(&state_fd);
	return r;
}

static bool same_content(int a, int b)
{
	struct stat x, y;
	assert_true(!fstat(a, &x) && !fstat(b, &y));
	MV_FREE char *p = malloc((size_t)x.st_size);
	MV_FREE char *q = malloc((size_t)y.st_size);
	assert_true(!mv_pread_full(a, p, (size_t)x.st_size, 0) && !mv_pread_full(b, q, (size_t)y.st_size, 0));
	return x.st_size == y.st_size && !memcmp(p, q, (size_t)x.st_size);
}

static void round_trip(void **state)
{
	struct vmcfg c, got = { 0 };
	struct mv_err err = { 0 };
	int got_state = -1, fds = t_count_fds();
	(void)state;
	int fd = good_file(&c), expected = state_file();
	lseek(fd, 9, SEEK_SET); // the position does not matter
	assert_int_equal(fc_snapfile_read(fd, &got, &got_state, NULL, &err), 0);
	assert_memory_equal(&got, &c, sizeof c);
	assert_true(same_content(got_state, expected));
	assert_int_equal(write(got_state, "x", 1), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(ftruncate(got_state, 0), -1);
	close(got_state);
	close(expected);
	close(fd);
	assert_int_equal(t_count_fds(), fds);
}

static void every_flipped_bit_is_found(void **state)
{
	static struct vmcfg c, got;
	struct mv_err err;
	struct stat st;
	(void)state;
	int fd = good_file(&c);
	assert_int_equal(fstat(fd, &st), 0);
	for (off_t at = 0; at < st.st_size; at++)
		for (int bit = 0; bit < 8; bit++) {
			uint8_t byte, bad;
			assert_int_equal(pread(fd, &byte, 1, at), 1);
			bad = byte ^ (uint8_t)(1u << bit);
			assert_int_equal(pwrite(fd, &bad, 1, at), 1);
			assert_true(read_it(fd, &got, &err) < 0);
			assert_int_equal(pwrite(fd, &byte, 1, at), 1);
		}
	assert_int_equal(read_it(fd, &got, &err), 0);
	for (off_t len = st.st_size - 1; len >= 0; len--) {
		assert_int_equal(ftruncate(fd, len), 0);
		assert_int_equal(read_it(fd, &got, &err), -EINVAL);
	}
	close(fd);
}

// The sections of a good file, for others to be made of.
struct sections {
	uint8_t *payload;
	size_t len;
	struct snap_section about, state;
};

static void take_apart(struct sections *s)
{
	static struct vmcfg c;
	struct snap_section sec;
	struct mv_err err;
	size_t pos = 0;
	MV_FD fd = good_file(&c);
	assert_int_equal(
		snap_container_read(fd, FC_SNAPFILE_MAGIC, "snapshot", 1 << 20, &s->payload, &s->len, &err),
		0);
	while (snap_section_next(s->payload, s->len, &pos, &sec, &err) > 0)
		*(sec.kind == ABOUT ? &s->about : &s->state) = sec;
	assert_true(s->about.len && s->state.len);
}

static int file_of(struct mv_buf *b)
{
	struct mv_err err;
	int fd = t_file();
	assert_int_equal(snap_container_write(fd, FC_SNAPFILE_MAGIC, b->p, b->len, &err), 0);
	mv_buf_fini(b);
	*b = (struct mv_buf){ 0 };
	return fd;
}

static void add(struct mv_buf *b, const struct snap_section *s, uint32_t index)
{
	snap_section_append(b, s->kind, index, s->bytes, s->len);
}

// A sum over the bytes is no reason to believe them.
static void sections_are_checked(void **state)
{
	static struct vmcfg got;
	struct sections s;
	struct mv_err err;
	struct mv_buf b = { 0 };
	static const char *const says[] = { "configuration is missing",
					    "state is missing",
					    "section 2.0 does not",
					    "section 1.0 does not",
					    "section 2.1 does not",
					    "section 4.0 does not",
					    "cut off",
					    "field" };
	(void)state;
	take_apart(&s);
	for (unsigned i = 0; i < MV_ARRAY_LEN(says); i++) {
		switch (i) {
		case 0: add(&b, &s.state, 0); break;
		case 1: add(&b, &s.about, 0); break;
		case 2: add(&b, &s.about, 0), add(&b, &s.state, 0), add(&b, &s.state, 0); break;
		case 3: add(&b, &s.about, 0), add(&b, &s.state, 0), add(&b, &s.about, 0); break;
		case 4: add(&b, &s.about, 0), add(&b, &s.state, 1); break;
		case 5:
			add(&b, &s.about, 0), add(&b, &s.state, 0);
			snap_section_append(&b, 4, 0, "new", 3);
			break;
		case 6:
			add(&b, &s.about, 0), add(&b, &s.state, 0);
			b.len--;
			break;
		case 7:
			add(&b, &s.state, 0), snap_section_append(&b, ABOUT, 0, "\4\0\0\0\1\0\0\0x", 9);
			break;
		}
		int fd = file_of(&b);
		assert_int_equal(read_it(fd, &got, &err), -EINVAL);
		assert_message(err, says[i]);
		close(fd);
	}
	// What a newer minor version may add.
	static const uint8_t field[] = { 0x34, 0x92, 0, 0, 3, 0, 0, 0, 'n', 'e', 'w' };
	size_t mark = snap_section_begin(&b, ABOUT, 0);
	mv_buf_append(&b, s.about.bytes, s.about.len);
	mv_buf_append(&b, field, sizeof field);
	snap_section_end(&b, mark);
	snap_section_append(&b, SKIPPED + 9, 4, "new", 3);
	add(&b, &s.state, 0);
	int fd = file_of(&b);
	assert_int_equal(read_it(fd, &got, &err), 0);
	assert_string_equal(got.drive[0].path, "/srv/rootfs.ext4");
	close(fd);
	free(s.payload);
}

static void layers(void **state)
{
	static struct vmcfg c, got;
	struct fc_layer_file l[VMCFG_MAX_DRIVES] = { 0 }, back[VMCFG_MAX_DRIVES];
	struct mv_err err = { 0 };
	int s = state_file(), layer = t_file(), fd = t_file(), state_fd = -1;
	(void)state;
	config(&c);
	c.drive[0].read_only = false;
	c.drive[0].layer = VMCFG_LAYER_EPHEMERAL;
	assert_int_equal(fc_snapfile_write(fd, &c, s, l, &err), -EINVAL);
	assert_message(err, "drive 0: its layer is missing");
	assert_int_equal(pwrite(layer, "layer", 5, 3 << 20), 5);
	assert_int_equal(fc_layer_file_note(layer, &l[0], &err), 0);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(fc_snapfile_write(fd, &c, s, l, &err), 0);
	assert_int_equal(fc_snapfile_read(fd, &got, &state_fd, back, &err), 0);
	close(state_fd);
	assert_true(back[0].present && !back[1].present);
	assert_int_equal(fc_layer_file_check(layer, &back[0], &err), 0);
	assert_int_equal(pwrite(layer, "x", 1, (1 << 20) - 1), 1);
	assert_int_equal(fc_layer_file_check(layer, &back[0], &err), -EINVAL);
	assert_message(err, "another snapshot's, or damaged");
	assert_int_equal(ftruncate(layer, 3 << 20), 0);
	assert_int_equal(fc_layer_file_check(layer, &back[0], &err), -EINVAL);
	assert_message(err, "has 3145728 bytes, the snapshot's layer has 3145733");
	c.drive[0].layer = VMCFG_LAYER_NONE;
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(fc_snapfile_write(fd, &c, s, l, &err), -EINVAL);
	assert_message(err, "there, and it has none");
	l[0].present = false;
	l[1].present = true; // of a drive that is not there
	l[1].size_bytes = 1;
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(fc_snapfile_write(fd, &c, s, l, &err), -EINVAL);
	close(layer);
	close(s);
	close(fd);
}

// The header, by its place in the file (snapshot/format.h).
static void versions(void **state)
{
	static struct vmcfg c;
	struct mv_err err;
	uint16_t major = SNAP_FORMAT_MAJOR + 1;
	(void)state;
	int fd = good_file(&c);
	assert_int_equal(pwrite(fd, &major, 2, 8), 2);
	assert_int_equal(read_it(fd, &c, &err), -EINVAL);
	assert_message(err, "made by a newer thaw: format 2, this one reads up to 1");
	assert_int_equal(pwrite(fd, "\1\0\7", 3, 8), 3); // a newer minor, but not by its writer
	assert_int_equal(read_it(fd, &c, &err), -EINVAL);
	assert_message(err, "checksum");
	assert_int_equal(pwrite(fd, "\x84\x19\x10\x07\x71\x3e\x36\x1f", 8, 0), 8); // a file of Firecracker's
	assert_int_equal(read_it(fd, &c, &err), -EINVAL);
	assert_message(err, "not a thaw snapshot file");
	close(fd);
}

static void bad_input_is_not_written(void **state)
{
	static struct vmcfg c;
	struct mv_err err;
	(void)state;
	config(&c);
	int fd = t_file(), s = state_file();
	c.mem_mib = 0;
	assert_true(fc_snapfile_write(fd, &c, s, NULL, &err) < 0);
	assert_int_equal(ftruncate(fd, 0), 0);
	config(&c);
	assert_int_equal(pwrite(s, "X", 1, 40), 1);
	assert_int_equal(fc_snapfile_write(fd, &c, s, NULL, &err), -EINVAL);
	assert_message(err, "state: checksum wrong");
	assert_int_equal(lseek(fd, 0, SEEK_END), 0);
	close(s);
	s = state_file();
	assert_int_equal(fc_snapfile_write(fd, &c, s, NULL, &err), 0);
	assert_int_equal(fc_snapfile_write(fd, &c, s, NULL, &err), -EINVAL);
	assert_message(err, "not an empty file");
	close(s);
	close(fd);
}

// --- golden ---

static int unpack(const char *from)
{
	char dir[64], command[300], path[80];
	t_tmpdir(dir);
	snprintf(path, sizeof path, "%s/file", dir);
	snprintf(command, sizeof command, "gzip -dc '%s' >'%s'", from, path);
	assert_int_equal(system(command), 0);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	t_remove_tree(dir);
	return fd;
}

static void what_was_written_once_loads(void **state)
{
	static struct vmcfg c;
	char text[2000], little[20];
	struct mv_err err = { 0 };
	int fd = unpack(GOLDEN), expected = unpack(GOLDEN_STATE), got = -1;
	(void)state;
	if (fc_snapfile_read(fd, &c, &got, NULL, &err))
		fail_msg("%s", err.msg);
	assert_true(same_content(got, expected));
	assert_string_equal(c.name, "golden");
	assert_string_equal(c.drive[0].id, "rootfs");
	assert_int_equal(c.mem_mib, 4);
	assert_true(c.vsock.present && c.rng && c.vcpus == 2);
	assert_int_equal(fc_snapfile_check_cpu(got, &c.cpu, NULL, &err), 0);
	assert_int_equal(fc_snapfile_describe(fd, text, sizeof text, &err), 0);
	assert_memory_equal(text, "v1.0.0\ncreated: 20", 18);
	assert_non_null(strstr(text, "\nvm: golden, 2 vCPUs, 4 MiB of memory\ncpu: "));
	assert_non_null(strstr(text, "\ndrive rootfs: /srv/rootfs.ext4\nvsock: CID 3, /run/v.sock\n"));
	assert_int_equal(fc_snapfile_describe(fd, little, sizeof little, &err), 0);
	assert_memory_equal(little, text, sizeof little - 1);
	close(got);
	close(expected);
	close(fd);
}

static int make(const char *path)
{
	static struct vmcfg c;
	struct mv_err err = { 0 };
	MV_FD s = unpack(GOLDEN_STATE);
	MV_FD fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	config(&c);
	strcpy(c.name, "golden");
	c.vcpus = 2;
	c.mem_mib = 4;
	c.track_dirty = c.drive[0].read_only = false;
	c.vsock.present = true;
	c.vsock.cid = 3;
	strcpy(c.vsock.path, "/run/v.sock");
	if (fd < 0 || fc_snapfile_write(fd, &c, s, NULL, &err))
		fail_msg("%s: %s", path, fd < 0 ? strerror(errno) : err.msg);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(every_flipped_bit_is_found),
		cmocka_unit_test(sections_are_checked),
		cmocka_unit_test(layers),
		cmocka_unit_test(versions),
		cmocka_unit_test(bad_input_is_not_written),
		cmocka_unit_test(what_was_written_once_loads),
	};
	if (argc == 3 && !strcmp(argv[1], "--make"))
		return make(argv[2]);
	return cmocka_run_group_tests_name("api/fc_snapfile", tests, NULL, NULL);
}
