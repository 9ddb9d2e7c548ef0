// SPDX-License-Identifier: Apache-2.0
// Kernel loading by the Linux arm64 boot protocol (Documentation/arch/arm64/booting.rst): an Image, which may
// be gzip'd, at the lowest place that it can have; initrd and device tree at the end of the first GiB of RAM,
// or of all RAM. The header is copied once and checked; each byte lands through gmem, so nothing can be
// written outside guest memory.
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "a64.h"

#define CHUNK_BYTES (64u << 10)
#define MAGIC 0x644d5241u // "ARM\x64"
#define FLAG_BIG_ENDIAN 1u
#define OLD_TEXT_OFFSET 0x80000u // of kernels before 3.17, which don't tell their size
#define ALIGN_BYTES (64u << 10)
#define GZIP_WINDOW (15 + 16) // inflateInit2(): the largest, with gzip's header

struct image_header {
	le32_t code[2];
	le64_t text_offset, image_size, flags, reserved[3];
	le32_t magic, pe_offset;
};
_Static_assert(sizeof(struct image_header) == 64, "booting.rst, \"Call the kernel image\"");

// A file read from its start to its end, unpacked on the way when it is gzip'd.
struct source {
	int fd;
	const char *what;
	uint64_t at, size;
	bool packed, ended;
	z_stream z;
	uint8_t in[CHUNK_BYTES];
};

static int source_open(struct source *s, int fd, const char *what, bool may_be_packed, struct mv_err *err)
{
	struct stat st;
	uint8_t magic[2] = { 0 };
	*s = (struct source){ .fd = fd, .what = what };
	if (fstat(fd, &st))
		return mv_fail(err, errno, "%s: %s", what, strerror(errno));
	s->size = (uint64_t)st.st_size;
	if (!s->size)
		return mv_fail(err, EINVAL, "%s: the file is empty", what);
	mv_pread_full(fd, magic, sizeof magic, 0); // too short: no magic
	s->packed = may_be_packed && magic[0] == 0x1f && magic[1] == 0x8b;
	if (s->packed && inflateInit2(&s->z, GZIP_WINDOW) != Z_OK)
		return mv_fail(err, ENOMEM, "out of memory");
	return 0;
}

static void source_close(struct source *s)
{
	if (s->packed)
		inflateEnd(&s->z);
	s->packed = false;
}

static int read_input(struct source *s, void *to, size_t room, size_t *ret_got, struct mv_err *err)
{
	size_t n = s->size - s->at < room ? (size_t)(s->size - s->at) : room;
	int r = n ? mv_pread_full(s->fd, to, n, s->at) : 0;
	if (r)
		return mv_fail(err, -r, "%s: cannot read: %s", s->what, strerror(-r));
	s->at += n;
	*ret_got = n;
	return 0;
}

// Up to `room` bytes of the content; fewer only at its end.
static int source_read(struct source *s, uint8_t *to, size_t room, size_t *ret_got, struct mv_err *err)
{
	if (!s->packed)
		return read_input(s, to, room, ret_got, err);
	s->z.next_out = to;
	s->z.avail_out = (uInt)room;
	while (s->z.avail_out && !s->ended) {
		size_t got = s->z.avail_in;
		if (!got) {
			int r = read_input(s, s->in, sizeof s->in, &got, err);
			if (r)
				return r;
			s->z.next_in = s->in;
			s->z.avail_in = (uInt)got;
		}
		int z = got ? inflate(&s->z, Z_NO_FLUSH) : Z_BUF_ERROR;
		s->ended = z == Z_STREAM_END;
		if (z != Z_OK && !s->ended)
			return mv_fail(err, ENOEXEC, "%s: damaged or cut off gzip data", s->what);
	}
	*ret_got = room - s->z.avail_out;
	return 0;
}

// All of the rest of the content, to [at, limit).
static int copy_rest(struct vm *vm, struct source *s, uint64_t at, uint64_t limit, struct mv_err *err)
{
	MV_FREE uint8_t *chunk = malloc(CHUNK_BYTES);
	size_t got = CHUNK_BYTES;
	if (!chunk)
		return mv_fail(err, ENOMEM, "out of memory");
	while (got == CHUNK_BYTES) {
		int r = source_read(s, chunk, CHUNK_BYTES, &got, err);
		if (r)
			return r;
		if (got > limit - at || (got && gmem_write(&vm->mem, gpa(at), chunk, got)))
			return mv_fail(err, ENOEXEC,
				       "%s: does not fit guest memory, or is longer than its header says; "
				       "give the VM more memory_mib",
				       s->what);
		at += got;
	}
	return 0;
}

static int load_image(struct vm *vm, struct source *s, uint64_t top, uint64_t *ret_entry, uint64_t *ret_end,
		      struct mv_err *err)
{
	struct image_header h;
	size_t got;
	int r = source_read(s, (uint8_t *)&h, sizeof h, &got, err);
	if (r)
		return r;
	if (got < sizeof h || le32_get(h.magic) != MAGIC)
		return mv_fail(err, ENOEXEC, "kernel: not an arm64 Image, nor a gzip'd one");
	if (le64_get(h.flags) & FLAG_BIG_ENDIAN)
		return mv_fail(err, ENOEXEC, "kernel: a big-endian Image");
	uint64_t bytes = le64_get(h.image_size), offset = bytes ? le64_get(h.text_offset) : OLD_TEXT_OFFSET;
	if (!bytes) // an old kernel, whose bss is not known: as booting.rst has it, as much as there can be
		bytes = s->packed ? 0 : s->size;
	if (offset >= top - A64_KERNEL || bytes > top - A64_KERNEL - offset)
		return mv_fail(
			err, ENOEXEC,
			"kernel: does not fit: needs %llu MiB of guest memory and room for the device tree; "
			"give the VM more memory_mib",
			(unsigned long long)((offset + bytes) >> 20) + 1);
	uint64_t at = A64_KERNEL + offset, end = bytes ? at + bytes : top;
	if (gmem_write(&vm->mem, gpa(at), &h, sizeof h))
		return mv_fail(err, EFAULT, "kernel: no guest memory at its place");
	r = copy_rest(vm, s, at + sizeof h, end, err);
	*ret_entry = at;
	*ret_end = end;
	return r;
}

// As high as possible below the device tree.
static int load_initrd(struct vm *vm, struct source *s, uint64_t kernel_end, uint64_t top, uint64_t *ret_gpa,
		       struct mv_err *err)
{
	uint64_t at = s->size < top ? (top - s->size) & ~(uint64_t)(ALIGN_BYTES - 1) : 0;
	if (at < kernel_end)
		return mv_fail(err, EFBIG,
			       "initrd: %llu MiB do not fit above the kernel; give the VM more memory_mib",
			       (unsigned long long)(s->size >> 20) + 1);
	*ret_gpa = at;
	return copy_rest(vm, s, at, top, err);
}

static int write_fdt(struct vm *vm, uint64_t at, uint64_t initrd, uint64_t initrd_bytes, struct mv_err *err)
{
	uint8_t seed[64];
	MV_FREE uint8_t *tree = calloc(1, A64_FDT_BYTES);
	struct a64_machine m = { .n_vcpus = vm->n_vcpus,
				 .gic_version = vm->arch.gic_version,
				 .n_devs = vm->n_devs,
				 .ram_bytes = vm->mem.region[0].size_bytes,
				 .initrd_gpa = initrd,
				 .initrd_end_gpa = initrd + initrd_bytes,
				 .cmdline = vm->cfg.cmdline,
				 .seed = seed,
				 .seed_bytes = sizeof seed };
	if (!tree)
		return mv_fail(err, ENOMEM, "out of memory");
	mv_random(seed, sizeof seed);
	m.n_caches = a64_read_caches(A64_HOST_CACHES, m.cache);
	if (m.n_caches && !a64_show_caches(vm, m.cache, m.n_caches))
		m.n_caches = 0;
	int r = 0;
	for (unsigned i = 0; !r && i < vm->n_vcpus; i++)
		r = a64_mpidr(&vm->vcpu[i], &m.mpidr[i], err);
	r = r ? r : a64_build_fdt(&m, tree, A64_FDT_BYTES, err);
	if (!r && gmem_write(&vm->mem, gpa(at), tree, A64_FDT_BYTES))
		return mv_fail(err, EFAULT, "no guest memory at the device tree's address");
	return r;
}

int a64_load_kernel(struct vm *vm, int kernel_fd, int initrd_fd, uint64_t *ret_entry_gpa,
		    uint64_t *ret_fdt_gpa, struct mv_err *err)
{
	uint64_t ram = vm->mem.region[0].size_bytes;
	uint64_t top =
		A64_RAM + (ram < A64_INITRD_WINDOW_BYTES ? ram : A64_INITRD_WINDOW_BYTES) - A64_FDT_BYTES;
	uint64_t entry = 0, end = 0, initrd = 0, initrd_bytes = 0;
	MV_FREE struct source *s = malloc(sizeof *s);
	if (!s)
		return mv_fail(err, ENOMEM, "out of memory");
	int r = source_open(s, kernel_fd, "kernel", true, err);
	if (r)
		return r;
	r = load_image(vm, s, top, &entry, &end, err);
	source_close(s);
	if (!r && initrd_fd >= 0) {
		r = source_open(s, initrd_fd, "initrd", false, err);
		initrd_bytes = s->size;
		r = r ? r : load_initrd(vm, s, end, top, &initrd, err);
	}
	r = r ? r : write_fdt(vm, top, initrd, initrd_bytes, err);
	if (r)
		return r;
	*ret_entry_gpa = entry;
	*ret_fdt_gpa = top;
	return 0;
}

int arch_describe(int fd, const struct arch_description *d, struct mv_err *err)
{
	MV_FREE uint8_t *tree = calloc(1, A64_FDT_BYTES);
	struct a64_machine m = { .n_vcpus = d->vcpus,
				 .gic_version = d->gic_version ? d->gic_version : 3,
				 .n_devs = d->n_devs,
				 .ram_bytes = (uint64_t)d->mem_mib << 20,
				 .cmdline = "console=ttyS0" };
	if (!tree)
		return mv_fail(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < d->vcpus; i++)
		m.mpidr[i] = (i & 15) | (uint64_t)(i >> 4) << 8; // as KVM numbers them
	m.n_caches = a64_read_caches(A64_HOST_CACHES, m.cache);
	int r = a64_build_fdt(&m, tree, A64_FDT_BYTES, err);
	if (r)
		return r;
	r = mv_write_full(fd, tree, a64_fdt_bytes(tree));
	return r ? mv_fail(err, -r, "cannot write the device tree: %s", strerror(-r)) : 0;
}
