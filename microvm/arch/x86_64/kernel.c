// SPDX-License-Identifier: Apache-2.0
// Kernel loading. Three ways in:
//   ELF with a PVH note     -> 32-bit entry, %ebx = start info   (Xen HVM direct boot ABI)
//   ELF without, or on wish -> 64-bit entry, %rsi = zero page    (Linux boot protocol 1.15)
//   bzImage 2.12+           -> the same, 0x200 behind its start
// Each header is copied once and checked; each byte lands through gmem, so nothing can be
// written outside guest memory.
#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "microvm/arch/arch.h"
#include "x86.h"

#define MAX_PROGRAM_HEADERS 64
#define MAX_NOTE_BYTES 4096
#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define BZIMAGE_MAGIC_OFFSET 0x202
#define BZIMAGE_64BIT_ENTRY 0x200
#define PVH_MAGIC 0x336ec578
#define PVH_MEMMAP_RAM 1
#define PVH_MEMMAP_RESERVED 2

struct pvh_info { // hvm_start_info, version 1
	le32_t magic, version, flags, n_modules;
	le64_t modules, cmdline, rsdp, memmap;
	le32_t n_memmap, reserved;
};
struct pvh_module {
	le64_t address, size, cmdline, reserved;
};
struct pvh_memmap {
	le64_t address, size;
	le32_t type, reserved;
};

struct image {
	int fd;
	uint64_t size;
	uint64_t end_gpa; // behind the last byte the kernel needs
};

// File bytes straight into guest memory.
static int load(struct vm *vm, const struct image *im, uint64_t offset, uint64_t to, uint64_t len,
		const char *what, struct mv_err *err)
{
	if (!len)
		return 0;
	if (offset > im->size || len > im->size - offset)
		return mv_fail(err, ENOEXEC, "%s: the file is cut off", what);
	void *p = gmem_ptr(&vm->mem, gpa(to), len);
	if (to < X86_HIGH_RAM || !p)
		return mv_fail(err, ENOEXEC,
			       "%s: does not fit: needs guest memory 0x%llx-0x%llx; give the VM more "
			       "memory_mib",
			       what, (unsigned long long)to, (unsigned long long)(to + len));
	gmem_wrote(&vm->mem, p, len); // it is a change since the start, when all was zeros
	int r = mv_pread_full(im->fd, p, len, offset);
	return r ? mv_fail(err, -r, "%s: cannot read: %s", what, strerror(-r)) : 0;
}

static int find_pvh_note(const struct image *im, const Elf64_Phdr *ph, uint64_t *entry)
{
	uint8_t buf[MAX_NOTE_BYTES];
	size_t len = ph->p_filesz < sizeof buf ? ph->p_filesz : sizeof buf, at = 0;

	if (mv_pread_full(im->fd, buf, len, ph->p_offset))
		return -EIO;
	while (len - at >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr n;
		memcpy(&n, buf + at, sizeof n);
		uint64_t name = at + sizeof n, desc = name + mv_align_up(n.n_namesz, 4);
		uint64_t next = desc + mv_align_up(n.n_descsz, 4);
		if (next > len)
			break;
		if (n.n_type == XEN_ELFNOTE_PHYS32_ENTRY && n.n_namesz == 4 &&
		    !memcmp(buf + name, "Xen", 4) && (n.n_descsz == 4 || n.n_descsz == 8)) {
			*entry = 0;
			memcpy(entry, buf + desc, n.n_descsz);
			return 0;
		}
		at = next;
	}
	return -ENOENT;
}

static int load_elf(struct vm *vm, struct image *im, struct x86_entry *entry, struct mv_err *err)
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph[MAX_PROGRAM_HEADERS];
	bool has_pvh = false;

	int r = mv_pread_full(im->fd, &eh, sizeof eh, 0);
	if (r || eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_ident[EI_DATA] != ELFDATA2LSB ||
	    eh.e_machine != EM_X86_64 || (eh.e_type != ET_EXEC && eh.e_type != ET_DYN))
		return mv_fail(err, ENOEXEC, "kernel: an ELF file, but not a 64-bit x86 kernel");
	if (!eh.e_phnum || eh.e_phnum > MAX_PROGRAM_HEADERS || eh.e_phentsize != sizeof ph[0] ||
	    mv_pread_full(im->fd, ph, eh.e_phnum * sizeof ph[0], eh.e_phoff))
		return mv_fail(err, ENOEXEC, "kernel: bad ELF program headers");
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		uint64_t end;
		if (ph[i].p_type == PT_NOTE && !has_pvh)
			has_pvh = !find_pvh_note(im, &ph[i], &entry->rip);
		if (ph[i].p_type != PT_LOAD || !ph[i].p_memsz)
			continue;
		if (ph[i].p_filesz > ph[i].p_memsz ||
		    __builtin_add_overflow(ph[i].p_paddr, ph[i].p_memsz, &end))
			return mv_fail(err, ENOEXEC, "kernel: bad ELF segment %u", i);
		if (!gmem_ptr(&vm->mem, gpa(ph[i].p_paddr), ph[i].p_memsz))
			return mv_fail(err, ENOEXEC,
				       "kernel: does not fit: needs guest memory up to %llu MiB; give the VM "
				       "more memory_mib",
				       (unsigned long long)((end >> 20) + 1));
		if ((r = load(vm, im, ph[i].p_offset, ph[i].p_paddr, ph[i].p_filesz, "kernel", err)))
			return r;
		if (end > im->end_gpa)
			im->end_gpa = end;
	}
	if (vm->cfg.boot == VMCFG_BOOT_PVH && !has_pvh)
		return mv_fail(err, ENOEXEC, "kernel: has no PVH entry note; use boot auto or linux64");
	entry->pvh = has_pvh && vm->cfg.boot != VMCFG_BOOT_LINUX64;
	if (!entry->pvh)
		entry->rip = eh.e_entry;
	if (!gmem_ptr(&vm->mem, gpa(entry->rip), 1))
		return mv_fail(err, ENOEXEC, "kernel: its entry point 0x%llx is outside guest memory",
			       (unsigned long long)entry->rip);
	return 0;
}

static int load_bzimage(struct vm *vm, struct image *im, struct boot_params *zero_page,
			struct x86_entry *entry, struct mv_err *err)
{
	struct setup_header h = { 0 };
	uint8_t extent; // byte 0x201: where the header ends, from 0x202

	if (vm->cfg.boot == VMCFG_BOOT_PVH)
		return mv_fail(err, ENOEXEC, "kernel: a bzImage has no PVH entry; use boot \"auto\"");
	if (mv_pread_full(im->fd, &extent, 1, 0x201) ||
	    mv_pread_full(im->fd, &h, sizeof h, offsetof(struct boot_params, hdr)))
		return mv_fail(err, ENOEXEC, "kernel: the bzImage is cut off");
	size_t used = BZIMAGE_MAGIC_OFFSET + extent - offsetof(struct boot_params, hdr);
	if (used < sizeof h)
		memset((uint8_t *)&h + used, 0, sizeof h - used);
	if (h.version < 0x020c || !(h.xloadflags & XLF_KERNEL_64))
		return mv_fail(err, ENOEXEC,
			       "kernel: a bzImage without 64-bit entry (boot protocol %u.%02u; 2.12 is "
			       "needed)",
			       h.version >> 8, h.version & 0xff);
	uint64_t payload = ((h.setup_sects ? h.setup_sects : 4) + 1u) * 512u;
	uint64_t to = h.relocatable_kernel ? h.pref_address : h.code32_start;
	if (payload >= im->size)
		return mv_fail(err, ENOEXEC, "kernel: the bzImage is cut off");
	// syssize is the protected-mode part's length in 16-byte units, without the signature.
	if (im->size - payload < (uint64_t)h.syssize * 16)
		return mv_fail(err, ENOEXEC, "kernel: the bzImage is cut off");
	if (!h.init_size || !gmem_ptr(&vm->mem, gpa(to), h.init_size))
		return mv_fail(err, ENOEXEC,
			       "kernel: does not fit: needs guest memory up to %llu MiB; give the VM more "
			       "memory_mib",
			       (unsigned long long)((to + h.init_size) >> 20) + 1);
	int r = load(vm, im, payload, to, im->size - payload, "kernel", err);
	if (r)
		return r;
	im->end_gpa = to + (h.init_size > im->size - payload ? h.init_size : im->size - payload);
	zero_page->hdr = h;
	*entry = (struct x86_entry){ .rip = to + BZIMAGE_64BIT_ENTRY };
	return 0;
}

// As high as possible in the low part of RAM, above the kernel.
static int load_initrd(struct vm *vm, int fd, uint64_t kernel_end, uint64_t limit, uint64_t *ret_gpa,
		       uint64_t *ret_size, struct mv_err *err)
{
	struct stat st;
	const struct gmem_region *low = &vm->mem.region[0];
	uint64_t top = low->gpa + low->size_bytes;

	if (fstat(fd, &st))
		return mv_fail(err, errno, "initrd: %s", strerror(errno));
	struct image im = { .fd = fd, .size = (uint64_t)st.st_size };
	if (!im.size)
		return mv_fail(err, EINVAL, "initrd: the file is empty");
	if (limit && limit < top)
		top = limit;
	if (top < kernel_end || im.size > top - kernel_end)
		return mv_fail(err, EFBIG,
			       "initrd: %llu MiB do not fit above the kernel; give the VM more memory_mib",
			       (unsigned long long)(im.size >> 20) + 1);
	uint64_t at = (top - im.size) & ~0xfffull;
	if (at < kernel_end)
		return mv_fail(err, EFBIG, "initrd: does not fit; give the VM more memory_mib");
	*ret_gpa = at;
	*ret_size = im.size;
	return load(vm, &im, 0, at, im.size, "initrd", err);
}

unsigned x86_memory_map(const struct gmem *m, struct e820_range map[X86_E820_MAX])
{
	unsigned n = 0;
	map[n++] = (struct e820_range){ 0, X86_LOW_RAM_END, true };
	map[n++] = (struct e820_range){ X86_LOW_RAM_END, 0xa0000 - X86_LOW_RAM_END, false };
	map[n++] = (struct e820_range){ X86_BIOS_START, X86_HIGH_RAM - X86_BIOS_START, false };
	map[n++] = (struct e820_range){ X86_HIGH_RAM, m->region[0].size_bytes - X86_HIGH_RAM, true };
	for (unsigned i = 1; i < m->n_regions; i++)
		map[n++] = (struct e820_range){ m->region[i].gpa, m->region[i].size_bytes, true };
	return n;
}

static int write_pvh_info(struct vm *vm, uint64_t rsdp, uint64_t initrd, uint64_t initrd_size)
{
	struct {
		struct pvh_info info;
		struct pvh_module module;
		struct pvh_memmap map[X86_E820_MAX];
	} p = { 0 };
	struct e820_range map[X86_E820_MAX];
	unsigned n = x86_memory_map(&vm->mem, map);

	p.info = (struct pvh_info){
		.magic = le32_make(PVH_MAGIC),
		.version = le32_make(1),
		.n_modules = le32_make(initrd_size ? 1 : 0),
		.modules = le64_make(X86_PVH_INFO + offsetof(__typeof__(p), module)),
		.cmdline = le64_make(X86_CMDLINE),
		.rsdp = le64_make(rsdp),
		.memmap = le64_make(X86_PVH_INFO + offsetof(__typeof__(p), map)),
		.n_memmap = le32_make(n),
	};
	p.module = (struct pvh_module){ .address = le64_make(initrd), .size = le64_make(initrd_size) };
	for (unsigned i = 0; i < n; i++)
		p.map[i] = (struct pvh_memmap){
			.address = le64_make(map[i].start),
			.size = le64_make(map[i].size_bytes),
			.type = le32_make(map[i].ram ? PVH_MEMMAP_RAM : PVH_MEMMAP_RESERVED),
		};
	return gmem_write(&vm->mem, gpa(X86_PVH_INFO), &p, sizeof p);
}

static int write_zero_page(struct vm *vm, struct boot_params *z, uint64_t rsdp, uint64_t initrd,
			   uint64_t initrd_size)
{
	struct e820_range map[X86_E820_MAX];
	unsigned n = x86_memory_map(&vm->mem, map);

	z->hdr.type_of_loader = 0xff; // none of the registered ones
	z->hdr.boot_flag = 0xaa55;
	z->hdr.header = 0x53726448; // "HdrS"
	z->hdr.cmd_line_ptr = X86_CMDLINE;
	z->hdr.cmdline_size = (uint32_t)strlen(vm->cfg.cmdline);
	z->hdr.ramdisk_image = (uint32_t)initrd;
	z->hdr.ramdisk_size = (uint32_t)initrd_size;
	z->acpi_rsdp_addr = rsdp;
	for (unsigned i = 0; i < n; i++)
		z->e820_table[i] = (struct boot_e820_entry){ .addr = map[i].start,
							     .size = map[i].size_bytes,
							     .type = map[i].ram ? 1 : 2 };
	z->e820_entries = (uint8_t)n;
	return gmem_write(&vm->mem, gpa(X86_ZERO_PAGE), z, sizeof *z);
}

// The command line, with the devices of command-line discovery behind what is the kernel's.
static int write_cmdline(struct vm *vm, struct mv_err *err)
{
	char text[VMCFG_CMDLINE_LEN];
	size_t len = vmcfg_kernel_args_len(vm->cfg.cmdline);
	const char *init_args = vm->cfg.cmdline + len, *space = init_args[0] == '-' ? " " : "";

	memcpy(text, vm->cfg.cmdline, len);
	for (unsigned i = 0; vm->cfg.discovery != VMCFG_ACPI && i < vm->n_devs; i++) {
		int n = snprintf(text + len, sizeof text - len, "%svirtio_mmio.device=4K@0x%llx:%u",
				 len ? " " : "", (unsigned long long)arch_device_gpa(i), arch_device_gsi(i));
		len += (size_t)n;
		if (len + strlen(space) + strlen(init_args) >= sizeof text)
			return mv_fail(err, EINVAL, "cmdline: no room for the virtio_mmio.device parameters");
	}
	snprintf(text + len, sizeof text - len, "%s%s", len ? space : "", init_args);
	return gmem_write(&vm->mem, gpa(X86_CMDLINE), text, strlen(text) + 1);
}

int x86_load_kernel(struct vm *vm, int kernel_fd, int initrd_fd, uint64_t rsdp, struct x86_entry *ret_entry,
		    struct mv_err *err)
{
	struct stat st;
	struct boot_params zero_page = { 0 };
	struct x86_entry entry = { 0 };
	uint64_t initrd = 0, initrd_size = 0;
	char magic[4] = "", bz_magic[4] = "";

	if (fstat(kernel_fd, &st))
		return mv_fail(err, errno, "kernel: %s", strerror(errno));
	struct image im = { .fd = kernel_fd, .size = (uint64_t)st.st_size };
	mv_pread_full(kernel_fd, magic, 4, 0); // too short: no magic
	mv_pread_full(kernel_fd, bz_magic, 4, BZIMAGE_MAGIC_OFFSET);
	int r;
	if (!memcmp(magic, ELFMAG, SELFMAG))
		r = load_elf(vm, &im, &entry, err);
	else if (!memcmp(bz_magic, "HdrS", 4))
		r = load_bzimage(vm, &im, &zero_page, &entry, err);
	else
		r = mv_fail(err, ENOEXEC, "kernel: neither an ELF vmlinux nor a bzImage");
	if (!r && initrd_fd >= 0)
		r = load_initrd(vm, initrd_fd, mv_align_up(im.end_gpa, 4096), zero_page.hdr.initrd_addr_max,
				&initrd, &initrd_size, err);
	if (!r)
		r = write_cmdline(vm, err);
	if (r)
		return r;
	r = entry.pvh ? write_pvh_info(vm, rsdp, initrd, initrd_size)
		      : write_zero_page(vm, &zero_page, rsdp, initrd, initrd_size);
	if (r)
		return mv_fail(err, -r, "boot parameters do not fit guest memory");
	*ret_entry = entry;
	return 0;
}
