// SPDX-License-Identifier: Apache-2.0
// What of microvm/arch/aarch64/ needs no KVM: kernel images, saved registers, the clock. Cross built, and run
// by qemu-user: `make ARCH=aarch64 arch-tests`.
#include "tests/t.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <zlib.h>

#include "microvm/arch/aarch64/a64.h"
#include "microvm/arch/aarch64/vcpu_state.h"

enum {
	MIB = 1 << 20,
	MEM_MIB = 16,
	IMAGE_BYTES = 300000,
	MAGIC_AT = 56,
	SIZE_AT = 16,
	FLAGS_AT = 24,
	OFFSET_AT = 8
};
#define MAX_BYTES (20 * MIB)

static struct vm vm; // without vCPUs: only its memory is used
static uint8_t image[MAX_BYTES];
static struct mv_err err;

static int setup(void **state)
{
	(void)state;
	memset(&vm, 0, sizeof vm);
	vm.arch.gic_version = 3;
	memset(image, 0, sizeof image);
	for (size_t i = 64; i < IMAGE_BYTES; i++)
		image[i] = (uint8_t)(i * 7 + i / 251);
	memcpy(image + MAGIC_AT, "ARM\x64", 4);
	memcpy(image + SIZE_AT, &(uint64_t){ IMAGE_BYTES + 5000 }, 8);
	return arch_mem_layout(&vm.mem, MEM_MIB) || gmem_map(&vm.mem, -1, &err);
}

static int teardown(void **state)
{
	(void)state;
	gmem_fini(&vm.mem);
	return 0;
}

static int file_of(const void *bytes, size_t len)
{
	int fd = memfd_create("kernel", MFD_CLOEXEC);
	assert_true(fd >= 0 && !mv_write_full(fd, bytes, len));
	return fd;
}

// Of `len` bytes of image[], of which the last `cut` are missing.
static int gzip_of(size_t len, size_t cut)
{
	static uint8_t packed[MAX_BYTES + MIB];
	z_stream z = {
		.next_in = image, .avail_in = (uInt)len, .next_out = packed, .avail_out = sizeof packed
	};
	assert_int_equal(deflateInit2(&z, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	size_t n = z.total_out;
	deflateEnd(&z);
	return file_of(packed, n - cut);
}

static int load(int kernel_fd, int initrd_fd, uint64_t *entry, uint64_t *fdt)
{
	int r = a64_load_kernel(&vm, kernel_fd, initrd_fd, entry, fdt, &err);
	mv_close(&kernel_fd);
	mv_close(&initrd_fd);
	return r;
}

static const uint8_t *at(uint64_t address, size_t len) { return gmem_ptr(&vm.mem, gpa(address), len); }

static void images(void **state)
{
	(void)state;
	uint64_t entry = 0, fdt = 0;
	static uint8_t initrd[70000];
	memset(initrd, 0x5a, sizeof initrd);
	for (int packed = 0; packed < 2; packed++) {
		memset(gmem_ptr(&vm.mem, gpa(A64_RAM), MEM_MIB * MIB), 0, MEM_MIB * MIB);
		int fd = packed ? gzip_of(IMAGE_BYTES, 0) : file_of(image, IMAGE_BYTES);
		assert_int_equal(load(fd, file_of(initrd, sizeof initrd), &entry, &fdt), 0);
		assert_int_equal(entry, A64_KERNEL);
		assert_memory_equal(at(entry, IMAGE_BYTES), image, IMAGE_BYTES);
		assert_int_equal(fdt, A64_RAM + MEM_MIB * MIB - A64_FDT_BYTES);
		assert_memory_equal(at(fdt, 4), "\xd0\x0d\xfe\xed", 4);
		uint64_t begin = (fdt - sizeof initrd) & ~0xffffull;
		assert_memory_equal(at(begin, sizeof initrd), initrd, sizeof initrd);
		assert_int_equal(*at(begin - 1, 1), 0);
		assert_int_equal(*at(begin + sizeof initrd, 1), 0);
	}
	memcpy(image + OFFSET_AT, &(uint64_t){ 0x80000 }, 8);
	assert_int_equal(load(gzip_of(IMAGE_BYTES, 0), -1, &entry, &fdt), 0);
	assert_int_equal(entry, A64_KERNEL + 0x80000);
}

static void refused(int fd, int initrd_fd, const char *why)
{
	uint64_t entry = 1, fdt = 2;
	assert_int_not_equal(load(fd, initrd_fd, &entry, &fdt), 0);
	if (!strstr(err.msg, why))
		fail_msg("\"%s\" is not in \"%s\"", why, err.msg);
	assert_true(entry == 1 && fdt == 2);
}

static void bad_images(void **state)
{
	(void)state;
	refused(file_of(image, 0), -1, "the file is empty");
	refused(file_of(image, 63), -1, "not an arm64 Image");
	refused(file_of("\x1f\x8b", 2), -1, "gzip");
	for (size_t cut = 1; cut < 3000; cut += 97)
		refused(gzip_of(IMAGE_BYTES, cut), -1, "damaged or cut off");
	image[FLAGS_AT] = 1;
	refused(file_of(image, IMAGE_BYTES), -1, "big-endian");
	image[FLAGS_AT] = 0;
	image[MAGIC_AT] = 'M';
	refused(gzip_of(IMAGE_BYTES, 0), -1, "not an arm64 Image");
	image[MAGIC_AT] = 'A';
	const uint64_t sizes[] = { 14ull * MIB, UINT64_MAX, UINT64_MAX - A64_KERNEL, 1ull << 63 };
	for (size_t i = 0; i < MV_ARRAY_LEN(sizes); i++) {
		memcpy(image + SIZE_AT, &sizes[i], 8);
		refused(file_of(image, IMAGE_BYTES), -1, "does not fit");
	}
	memcpy(image + SIZE_AT, &(uint64_t){ IMAGE_BYTES }, 8);
	const uint64_t offsets[] = { 14ull * MIB, UINT64_MAX, UINT64_MAX - A64_KERNEL };
	for (size_t i = 0; i < MV_ARRAY_LEN(offsets); i++) {
		memcpy(image + OFFSET_AT, &offsets[i], 8);
		refused(file_of(image, IMAGE_BYTES), -1, "does not fit");
	}
	memset(image + OFFSET_AT, 0, 8);
	// Unpacks to more than it says, up to more than there is memory.
	refused(gzip_of(IMAGE_BYTES + 100000, 0), -1, "longer than its header says");
	refused(gzip_of(MAX_BYTES, 0), -1, "longer than its header says");
	refused(file_of(image, IMAGE_BYTES), file_of(image, 0), "initrd: the file is empty");
	refused(file_of(image, IMAGE_BYTES), file_of(image, 14 * MIB), "do not fit above the kernel");
}

static struct vcpu_state saved;

static void registers(void **state)
{
	(void)state;
	struct a64_reg reg = { .id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | 7, .bytes = 8, .value = { 1, 2 } },
		       back;
	struct a64_reg vector = { .id = KVM_REG_ARM64 | KVM_REG_SIZE_U128 | 9, .bytes = 16, .value = { 3 } };
	size_t pos = 0;
	saved.n_regs = 0;
	assert_int_equal(a64_reg_next(&saved, &pos, &back), 0);
	assert_int_equal(a64_reg_add(&saved, &reg) | a64_reg_add(&saved, &vector), 0);
	assert_int_equal(a64_reg_next(&saved, &pos, &back), 1);
	assert_true(back.id == reg.id && a64_reg_u64(&back) == 0x201);
	assert_int_equal(a64_reg_next(&saved, &pos, &back), 1);
	assert_true(back.id == vector.id && back.bytes == 16 && back.value[0] == 3);
	assert_int_equal(a64_reg_next(&saved, &pos, &back), 0);
	uint32_t whole = saved.n_regs;
	for (uint32_t n = 1; n < whole; n++) { // cut off anywhere but between two
		int r = 1;
		saved.n_regs = n;
		for (pos = 0; r > 0;)
			r = a64_reg_next(&saved, &pos, &back);
		assert_int_equal(r, n == 16 ? 0 : -EINVAL);
	}
	saved.n_regs = whole; // wider than any: 2^15 bytes
	memset(saved.regs, 0xff, 8);
	pos = 0;
	assert_int_equal(a64_reg_next(&saved, &pos, &back), -EINVAL);
	for (saved.n_regs = 0; saved.n_regs + 16 <= sizeof saved.regs;)
		assert_int_equal(a64_reg_add(&saved, &reg), 0);
	assert_int_equal(a64_reg_add(&saved, &vector), -ENOSPC);
}

static void clock_of_the_guest(void **state)
{
	(void)state;
	enum { DATA = 0, LOAD = 8, ID = 0xfe0 };
	struct pl031 p = { 0 };
	uint32_t now = (uint32_t)time(NULL), read = pl031_read(&p, DATA);
	assert_true(read - now <= 2);
	pl031_write(&p, LOAD, 1000);
	assert_true(pl031_read(&p, DATA) - 1000 <= 2);
	pl031_write(&p, LOAD, UINT32_MAX);
	assert_true(pl031_read(&p, DATA) - UINT32_MAX <= 2);
	pl031_write(&p, DATA, 5); // read only
	assert_true(pl031_read(&p, DATA) - UINT32_MAX <= 2);
	const uint8_t id[] = { 0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1 };
	for (unsigned i = 0; i < sizeof id; i++)
		assert_int_equal(pl031_read(&p, ID + 4 * i), id[i]);
	assert_int_equal(pl031_read(&p, 0xfff), 0);
}

// As Linux' drivers do it: both edges, a look at the line, and the end of the interrupt.
static void power_button(void **state)
{
	(void)state;
	enum {
		LINE = 1 << PL061_POWER_LINE,
		DATA = LINE << 2,
		IS = 0x404,
		IBE = 0x408,
		IEV = 0x40c,
		IE = 0x410
	};
	enum { RIS = 0x414, MIS = 0x418, IC = 0x41c, ID = 0xfe0 };
	struct pl061 p = { 0 };
	bool irq = false;
	assert_false(pl061_is_heard(&p));
	assert_false(pl061_write(&p, IBE, LINE) || pl061_write(&p, IE, LINE));
	assert_true(pl061_is_heard(&p));
	assert_int_equal(pl061_read(&p, DATA, &irq), 0);
	assert_true(pl061_press(&p));
	assert_false(pl061_press(&p)); // it is down already
	assert_true(pl061_read(&p, RIS, &irq) == LINE && pl061_read(&p, MIS, &irq) == LINE);
	assert_false(pl061_write(&p, IC, LINE));
	assert_int_equal(pl061_read(&p, MIS, &irq), 0);
	assert_int_equal(pl061_read(&p, 0x3fc & ~DATA, &irq), 0); // the other lines
	assert_false(irq);
	assert_int_equal(pl061_read(&p, 0x3fc, &irq), LINE);
	assert_true(irq); // seen, and let go
	assert_int_equal(pl061_read(&p, MIS, &irq), LINE);
	irq = false;
	assert_int_equal(pl061_read(&p, 0x3fc, &irq), 0);
	assert_false(irq);
	// Rising edges alone, masked first: the interrupt comes when it is enabled.
	p = (struct pl061){ 0 };
	pl061_write(&p, IEV, LINE);
	assert_false(pl061_press(&p));
	assert_int_equal(pl061_read(&p, MIS, &irq), 0);
	assert_true(pl061_write(&p, IE, 0xffffffff));
	pl061_write(&p, IC, LINE);
	assert_int_equal(pl061_read(&p, DATA, &irq), LINE);
	assert_false(irq);
	// A level is there as long as the line is.
	p = (struct pl061){ 0 };
	pl061_write(&p, IS, LINE);
	pl061_write(&p, IEV, LINE);
	pl061_write(&p, IE, LINE);
	assert_true(pl061_press(&p));
	pl061_write(&p, IC, LINE);
	assert_int_equal(pl061_read(&p, MIS, &irq), LINE);
	assert_int_equal(pl061_read(&p, DATA, &irq), LINE);
	assert_true(!irq && pl061_read(&p, MIS, &irq) == 0);
	const uint8_t id[] = { 0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1 };
	for (unsigned i = 0; i < sizeof id; i++)
		assert_int_equal(pl061_read(&p, ID + 4 * i, &irq), id[i]);
	for (unsigned i = 0; i < 0x1000; i++) { // whatever is written, it can be saved
		MV_BUF bytes = { 0 };
		struct pl061 back;
		pl061_write(&p, i, UINT32_MAX);
		mv_state_save(&pl061_table, &p, &bytes);
		assert_int_equal(mv_state_load(&pl061_table, bytes.p, bytes.len, &back, &err), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(images, setup, teardown),
		cmocka_unit_test_setup_teardown(bad_images, setup, teardown),
		cmocka_unit_test(registers),
		cmocka_unit_test(clock_of_the_guest),
		cmocka_unit_test(power_button),
	};
	return cmocka_run_group_tests_name("aarch64/machine", tests, NULL, NULL);
}
