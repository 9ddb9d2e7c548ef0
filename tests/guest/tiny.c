// SPDX-License-Identifier: Apache-2.0
/*
 * The tiny guest: a whole guest system in one file, for tests, bench and demo.
 *
 * Theory of operation. start.S brings vCPU 0 from either boot protocol straight
 * into guest_main(), which runs in user mode for good, with the I/O ports open
 * and 4 GiB of identity-mapped memory at hand, MMIO included; other vCPUs stay
 * parked. It says READY on COM1 (the first byte is the guest's very first I/O),
 * then answers each line with one line, "OK ..." or "ERR reason"; empty ones not.
 * The commands are in the table `commands`.
 *
 * Waiting costs no CPU. wait_interrupt() faults into kernel mode, which does
 * nothing but `sti; hlt`, and comes back when an interrupt was taken. User mode
 * has interrupts off, so a byte that arrives between the last look at
 * the UART and the hlt is still pending at the local APIC and ends the hlt at
 * once. Interrupts are edge-triggered, so user mode empties their source each
 * time; it also writes the APIC's EOI, its page being mapped like all others.
 *
 *   pin 4  the UART's received data
 *   pin 9  the monitor's "you were restored" (a new generation ID). The answer is
 *          RESTORED: nobody needs to ask, so it is the first I/O of a restored guest.
 *   pin 10 the power button. The answer is BUTTON and power-off.
 *
 *   `events` routes the pin of the rng device as well, see there.
 *
 * `timer MS` arms the local APIC's timer, one shot; when it fires the guest says TIMER.
 *
 * Nothing here is initialised at a command but the virtio queues, at the first
 * `rand` and `blk` (virtio.c); so a snapshot can be taken at any time, also in mid-command.
 *
 * Sources: PVH start info, xen/include/public/arch-x86/hvm/start_info.h; Linux
 * Documentation/arch/x86/{boot,zero-page}.rst; ACPI 6.5 sections 4.8.3.7 (sleep
 * control), 5.2.5, 5.2.8, 5.2.12; 82093AA, 16550D.
 */
#include "tiny.h"

#define HEAP_ALIGN 0x200000ULL
#define MMIO_HOLE 0xd0000000ULL // no RAM from here to 4 GiB
#define LINE_MAX 300
#define NONCE_MAX 200
#define GENID_BYTES 16

extern char image_end[];
void guest_main(u64 info, u32 kind);

volatile u8 irq_serial, irq_restored, irq_button, irq_timer, irq_virtio; // set by start.S

char cmdline[1024];
static u64 ram_bytes, heap, heap_pages, rsdp_addr;
static u64 genid_addr;
static u64 commands_done;
static char nonce[NONCE_MAX + 1];

// --- the machine -------------------------------------------------------------
static inline void out8(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory"); }

static inline u8 in8(u16 port)
{
	u8 v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *d = to;
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
	return to;
}

void *memset(void *to, int c, size_t n)
{
	void *d = to;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return to;
}

static void *at(u64 addr) { return (void *)addr; }

static u32 get32(u64 addr)
{
	u32 v;
	memcpy(&v, at(addr), sizeof v);
	return v;
}

static u64 get64(u64 addr)
{
	u64 v;
	memcpy(&v, at(addr), sizeof v);
	return v;
}

#define LAPIC 0xfee00000ULL
#define LAPIC_EOI 0x0b0
#define LAPIC_SVR 0x0f0
#define LAPIC_IRR 0x200 // eight words, 16 bytes apart
#define LAPIC_TIMER 0x320
#define LAPIC_LINT0 0x350
#define LAPIC_TIMER_COUNT 0x380
#define LAPIC_TIMER_DIVIDE 0x3e0
#define LAPIC_DIVIDE_16 3
#define TICKS_PER_MS 62500ULL // KVM's local APIC counts 1 GHz
#define LAPIC_MASKED 0x10000
#define IOAPIC 0xfec00000ULL
#define IOAPIC_DATA 0x10
#define PIN_SERIAL 4
#define PIN_RESTORED 9
#define PIN_BUTTON 10

static void ioapic_set(u32 reg, u32 v)
{
	mmio_write(IOAPIC, reg);
	mmio_write(IOAPIC + IOAPIC_DATA, v);
}

// Edge, active high, fixed, to APIC ID 0.
static void unmask_pin(u32 pin, u32 vector)
{
	ioapic_set(0x11 + 2 * pin, 0);
	ioapic_set(0x10 + 2 * pin, vector);
}

static void interrupts_init(void)
{
	mmio_write(LAPIC + LAPIC_LINT0, LAPIC_MASKED); // the old PIC stays out of it
	mmio_write(LAPIC + LAPIC_SVR, 0x1ff);
	unmask_pin(PIN_RESTORED, VECTOR_RESTORED);
	unmask_pin(PIN_BUTTON, VECTOR_BUTTON);
	unmask_pin(PIN_SERIAL, VECTOR_SERIAL);
}

static void wait_interrupt(void)
{
	__asm__ volatile("hlt" : : : "rax", "memory", "cc"); // a fault: see start.S
}

#define SLEEP_CONTROL 0x600 // ACPI sleep control register
#define SLEEP_S5 ((5 << 2) | 0x20)
#define I8042_COMMAND 0x64
#define I8042_RESET 0xfe

static void power_off(void)
{
	out8(SLEEP_CONTROL, SLEEP_S5);
	for (;;)
		wait_interrupt();
}

// --- COM1 ----------------------------------------------------------------------
#define COM1 0x3f8
#define UART_DATA (COM1 + 0)
#define UART_IER (COM1 + 1)
#define UART_MCR (COM1 + 4)
#define UART_LSR (COM1 + 5)
#define LSR_DATA 0x01
#define LSR_THR_EMPTY 0x20

// Waits after the byte, not before it: so a line's first I/O is its first byte.
static void put_char(char c)
{
	out8(UART_DATA, (u8)c);
	while (!(in8(UART_LSR) & LSR_THR_EMPTY))
		;
}

static void put(const char *s)
{
	while (*s)
		put_char(*s++);
}

static void put_hex(u64 v, int digits)
{
	while (digits--)
		put_char("0123456789abcdef"[v >> (4 * digits) & 15]);
}

static void put_dec(u64 v)
{
	char b[21], *p = b + 20;
	*p = 0;
	do
		*--p = (char)('0' + v % 10);
	while (v /= 10);
	put(p);
}

static void put_bytes(const volatile u8 *p, u64 n)
{
	while (n--)
		put_hex(*p++, 2);
}

static void error(const char *reason)
{
	put("ERR ");
	put(reason);
	put("\n");
}

static void ok_dec(u64 v)
{
	put("OK ");
	put_dec(v);
	put("\n");
}

static void ok_text(const char *s)
{
	put("OK ");
	put(s);
	put("\n");
}

// --- text ----------------------------------------------------------------------
bool starts(const char *s, const char *with)
{
	while (*with)
		if (*s++ != *with++)
			return false;
	return true;
}

static bool same(const char *a, const char *b) { return starts(a, b) && starts(b, a); }

static void copy_text(char *to, const char *from, u64 size)
{
	while (--size && *from)
		*to++ = *from++;
	*to = 0;
}

// Cuts the next word off *s.
static char *word(char **s)
{
	while (**s == ' ')
		++*s;
	char *w = *s;
	while (**s && **s != ' ')
		++*s;
	if (**s)
		*(*s)++ = 0;
	return w;
}

// Decimal, or hexadecimal behind 0x; *s moves behind the digits.
bool number(const char **s, u64 *v)
{
	u64 base = 10, d;
	const char *p = *s;
	if (starts(p, "0x")) {
		base = 16;
		p += 2;
	}
	const char *from = p;
	for (*v = 0;; p++, *v = *v * base + d) {
		char c = (char)(*p | 0x20);
		d = *p >= '0' && *p <= '9' ? (u64)(*p - '0')
		    : c >= 'a' && c <= 'f' ? (u64)(c - 'a' + 10)
					   : 99;
		if (d >= base)
			break;
	}
	*s = p;
	return p > from;
}

static bool arg_number(char **args, u64 *v)
{
	const char *w = word(args);
	return number(&w, v) && !*w;
}

// NAME=NUMBER on the command line.
static bool cmdline_number(const char *name, u64 *v)
{
	for (const char *p = cmdline; *p; p++) {
		const char *s = p;
		if ((p != cmdline && p[-1] != ' ') || !starts(p, name))
			continue;
		while (*name++)
			s++;
		return number(&s, v);
	}
	return false;
}

// --- boot information ------------------------------------------------------------
static void add_ram(u64 addr, u64 size, u32 type)
{
	u64 start = ((u64)image_end + HEAP_ALIGN - 1) & ~(HEAP_ALIGN - 1), end = addr + size;
	if (type != 1)
		return;
	ram_bytes += size;
	if (end > MMIO_HOLE)
		end = MMIO_HOLE;
	if (addr <= start && start < end) {
		heap = start;
		heap_pages = (end - start) / PAGE;
	}
}

static void read_boot_info(u64 info, u32 kind)
{
	u64 text, table, entries, size;
	if (kind == BOOT_PVH) { // struct hvm_start_info, version 1
		text = get64(info + 24);
		rsdp_addr = get64(info + 32);
		table = get64(info + 40);
		entries = get32(info + 48);
		size = 24;
	} else { // struct boot_params
		text = get32(info + 0x228) | (u64)get32(info + 0xc8) << 32;
		rsdp_addr = get64(info + 0x70);
		table = info + 0x2d0;
		entries = get32(info + 0x1e8) & 0xff;
		size = 20;
	}
	for (; entries--; table += size)
		add_ram(get64(table), get64(table + 8), get32(table + 16));
	if (text && text < MAPPED_END)
		copy_text(cmdline, at(text), sizeof cmdline);
}

// Enabled processors in the MADT, 0 without one.
static u64 count_cpus(void)
{
	u64 n = 0;
	if (!rsdp_addr || rsdp_addr >= MMIO_HOLE)
		return 0;
	u64 xsdt = get64(rsdp_addr + 24);
	for (u64 p = xsdt + 36; xsdt && p < xsdt + get32(xsdt + 4); p += 8) {
		u64 t = get64(p), e = t + 44, end = t + get32(t + 4);
		if (!starts(at(t), "APIC"))
			continue;
		for (; e < end; e += *(u8 *)at(e + 1) ? *(u8 *)at(e + 1) : end) {
			u8 type = *(u8 *)at(e);
			if (type == 0)
				n += get32(e + 4) & 1;
			else if (type == 9) // local x2APIC
				n += get32(e + 8) & 1;
		}
	}
	return n;
}

// --- commands ----------------------------------------------------------------------
static u64 mix(u64 v) // splitmix64
{
	v += 0x9e3779b97f4a7c15;
	v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9;
	v = (v ^ v >> 27) * 0x94d049bb133111eb;
	return v ^ v >> 31;
}

static volatile u64 *heap_page(u64 n) { return at(heap + n * PAGE); }

static bool in_heap(u64 first, u64 n) { return first <= heap_pages && n <= heap_pages - first; }

static void do_echo(char *args) { ok_text(args); }

// touch N r|w [SEED]: the first word of the first N pages.
static void do_touch(char *args)
{
	u64 n, seed = 0;
	if (!arg_number(&args, &n) || !in_heap(0, n))
		return error("bad number of pages");
	const char *how = word(&args);
	if (*args && !arg_number(&args, &seed))
		return error("bad seed");
	if (same(how, "w"))
		for (u64 i = 0; i < n; i++)
			*heap_page(i) = mix(seed + i);
	else if (same(how, "r"))
		for (u64 i = 0; i < n; i++)
			(void)*heap_page(i);
	else
		return error("not r or w");
	ok_dec(n);
}

// fill OFFSET N [SEED]: every word of N pages.
static void do_fill(char *args)
{
	u64 first, n, seed = 0;
	if (!arg_number(&args, &first) || !arg_number(&args, &n) || !in_heap(first, n))
		return error("bad range of pages");
	if (*args && !arg_number(&args, &seed))
		return error("bad seed");
	for (u64 i = 0; i < n * (PAGE / 8); i++)
		heap_page(first)[i] = mix(seed + first * PAGE / 8 + i);
	ok_dec(n);
}

// sum OFFSET N: FNV-1a over 64-bit words.
static void do_sum(char *args)
{
	u64 first, n, h = 0xcbf29ce484222325;
	if (!arg_number(&args, &first) || !arg_number(&args, &n) || !in_heap(first, n))
		return error("bad range of pages");
	for (u64 i = 0; i < n * (PAGE / 8); i++)
		h = (h ^ heap_page(first)[i]) * 0x100000001b3;
	put("OK ");
	put_hex(h, 16);
	put("\n");
}

// work SEED READS WRITES PAGES: the first words of pages here and there among the first PAGES;
// what is written is what is read there plus one.
static void do_work(char *args)
{
	u64 seed, reads, writes, n, h = 0;
	if (!arg_number(&args, &seed) || !arg_number(&args, &reads) || !arg_number(&args, &writes) ||
	    !arg_number(&args, &n) || !n || !in_heap(0, n))
		return error("bad numbers");
	for (u64 i = 0; i < reads; i++)
		h = mix(h ^ *heap_page(mix(seed + i) % n));
	for (u64 i = 0; i < writes; i++)
		++*heap_page(mix(~seed - i) % n);
	put("OK ");
	put_hex(h, 16);
	put("\n");
}

static void do_rand(char *args)
{
	u64 n;
	u8 got[RNG_MAX];
	if (!arg_number(&args, &n) || n < 1 || n > RNG_MAX)
		return error("not 1 to 64 bytes");
	if (!rng_init())
		return error("no virtio-rng device");
	if (!rng_fill(got, n))
		return error("virtio-rng does not answer");
	put("OK ");
	put_bytes(got, n);
	put("\n");
}

// blk r SECTOR | p SECTOR PAGE | w SECTOR TEXT | d SECTOR N | z SECTOR N | q QUEUE | c | f | t SECTORS ROUNDS
// r|w: a sector as text, or into a page of the heap that only the device touches; discard, make zeros; which
// queue; capacity; flush; traffic in all queues.
static void do_blk(char *args)
{
	static u8 data[BLK_SECTOR + 1];
	const char *how = word(&args);
	u64 sector = 0, page;
	bool ok;
	if (!same(how, "f") && !same(how, "c") && !arg_number(&args, &sector))
		return error("bad sector");
	if (!blk_init())
		return error("no virtio-blk device");
	if (same(how, "r")) {
		ok = blk_read(sector, data);
		if (ok)
			return ok_text((const char *)data);
	} else if (same(how, "p")) {
		if (!arg_number(&args, &page) || !in_heap(page, 1))
			return error("bad page");
		ok = blk_read(sector, at(heap + page * PAGE));
	} else if (same(how, "w")) {
		memset(data, 0, sizeof data);
		copy_text((char *)data, args, BLK_SECTOR);
		ok = blk_write(sector, data);
	} else if (same(how, "d") || same(how, "z")) {
		if (!arg_number(&args, &page))
			return error("bad number of sectors");
		ok = blk_zero(sector, (u32)page, same(how, "d"));
	} else if (same(how, "t")) {
		if (!arg_number(&args, &page) || !sector)
			return error("bad number of rounds");
		ok = blk_traffic(sector, page, same(word(&args), "w"));
	} else if (same(how, "q")) {
		ok = blk_use(sector);
	} else if (same(how, "c")) {
		return ok_dec(blk_sectors());
	} else if (same(how, "f")) {
		ok = blk_flush();
	} else {
		return error("not r, p, w, d, z, t, q, c or f");
	}
	if (!ok)
		return error("virtio-blk failed");
	put("OK\n");
}

// A.B.C.D
static bool arg_address(char **args, u32 *address)
{
	const char *w = word(args);
	u64 v;
	*address = 0;
	for (int i = 0; i < 4; i++, w++) {
		if (!number(&w, &v) || v > 255 || (i < 3 && *w != '.'))
			return false;
		*address = *address << 8 | (u32)v;
	}
	return !w[-1];
}

// METHOD PATH [HEADER]
static bool do_http(u32 address, char *args, char *answer)
{
	static char request[sizeof cmdline];
	const char *method = word(&args), *path = word(&args), *end = *args ? "\r\n\r\n" : "\r\n";
	const char *part[] = { method, " ", path, " HTTP/1.0\r\n", args, end };
	u32 n = 0;
	for (u32 i = 0; i < sizeof part / sizeof *part; i++)
		for (const char *p = part[i]; *p && n < sizeof request; p++)
			request[n++] = *p;
	return net_http(address, request, n, answer);
}

// net arp ADDRESS | udp ADDRESS PORT FROM TEXT | http ADDRESS METHOD PATH [HEADER] | link | pairs N: who has
// the address; the answer to a datagram from port FROM; the body of that to a request; up or down; how many
// pairs of queues to use.
static void do_net(char *args)
{
	static char answer[NET_TEXT];
	const char *how = word(&args);
	u8 mac[6];
	u32 address = 0;
	u64 port = 0, from = 0;
	if (same(how, "pairs")) {
		if (!arg_number(&args, &from) || from < 1 || from > 2)
			return error("bad number of pairs");
	} else if (!same(how, "link") && !arg_address(&args, &address))
		return error("bad address");
	if (same(how, "udp") &&
	    (!arg_number(&args, &port) || port > 65535 || !arg_number(&args, &from) || from > 65535))
		return error("bad port");
	if (!net_init())
		return error("no virtio-net device");
	if (same(how, "pairs"))
		return net_pairs((u32)from) ? put("OK\n") : error("not that many pairs");
	if (same(how, "link"))
		return ok_text(net_link_up() ? "up" : "down");
	if (same(how, "udp"))
		return net_udp(address, (u16)port, (u16)from, args, answer) ? ok_text(answer)
									    : error("no answer");
	if (same(how, "http"))
		return do_http(address, args, answer) ? ok_text(answer) : error("no answer");
	if (!same(how, "arp"))
		return error("not arp, udp, http, link or pairs");
	if (!net_arp(address, mac))
		return error("no answer");
	put("OK ");
	put_bytes(mac, sizeof mac);
	put("\n");
}

// vsock PORT: all that the host says there.
static void do_vsock(char *args)
{
	static char text[66000];
	u64 port;
	u32 n;
	if (!arg_number(&args, &port) || port > 0xffffffff)
		return error("bad port");
	if (!vsock_init())
		return error("no virtio-vsock device");
	if (!vsock_read((u32)port, text, sizeof text, &n))
		return error("refused");
	put("OK ");
	for (u32 i = 0; i < n && text[i] != '\n'; i++)
		put_char(text[i]);
	put("\n");
}

// balloon target | in FIRST N | out FIRST N | report FIRST N | stats FREE | command | hint FIRST N | stop
static void do_balloon(char *args)
{
	const char *how = word(&args);
	u64 first = 0, n = 0;
	bool ok;
	if (!balloon_init())
		return error("no virtio-balloon device");
	if (same(how, "target"))
		return ok_dec(balloon_target());
	if (same(how, "command"))
		return ok_dec(balloon_command());
	if (same(how, "stop"))
		return balloon_hint_stop() ? put("OK\n") : error("no free page hints");
	if (!arg_number(&args, &first))
		return error("bad number");
	if (same(how, "stats"))
		ok = balloon_stats(first);
	else if (!arg_number(&args, &n) || !in_heap(first, n))
		return error("bad range of pages");
	else if (same(how, "report"))
		ok = balloon_report((u64)heap_page(first), (u32)n);
	else if (same(how, "hint"))
		ok = balloon_hint((u64)heap_page(first), (u32)n);
	else
		ok = balloon_move(same(how, "in"), (u64)heap_page(first), (u32)n);
	if (!ok)
		return error("virtio-balloon does not answer");
	put("OK\n");
}

// port 0|1 show | write TEXT | read
static void do_port(char *args)
{
	static char text[65];
	u64 p, n = 0;
	u32 len;
	if (!arg_number(&args, &p) || p > 1)
		return error("bad port");
	if (!console_init())
		return error("no virtio-console device");
	const char *how = word(&args);
	if (same(how, "show")) {
		put("OK ");
		put(console_port((u32)p)->name);
		put(console_port((u32)p)->tty ? " tty" : " port");
		put(console_port((u32)p)->open ? " open\n" : " closed\n");
		return;
	}
	while (args[n])
		n++;
	if (same(how, "write"))
		return console_write((u32)p, args, (u32)n) ? put("OK\n") : error("no answer");
	if (!console_read((u32)p, text, &len))
		return error("nothing");
	text[len] = 0;
	ok_text(text);
}

// pmem size | get INDEX | set INDEX NUMBER | flush
static void do_pmem(char *args)
{
	const char *how = word(&args);
	u64 i = 0, v = 0, bytes;
	u32 ret;
	if (!pmem_init())
		return error("no virtio-pmem device");
	pmem_word(0, &bytes);
	if (same(how, "size"))
		return ok_dec(bytes);
	if (same(how, "flush"))
		return pmem_flush(&ret) ? ok_dec(ret) : error("no answer");
	if (!arg_number(&args, &i) || i >= bytes / 8)
		return error("bad index");
	if (same(how, "set")) {
		if (!arg_number(&args, &v))
			return error("bad number");
		*pmem_word(i, &bytes) = v;
	}
	ok_dec(*pmem_word(i, &bytes));
}

static void do_count(char *args)
{
	(void)args;
	ok_dec(commands_done);
}

static void do_store(char *args)
{
	copy_text(nonce, args, sizeof nonce);
	put("OK\n");
}

static void do_load(char *args)
{
	(void)args;
	ok_text(nonce);
}

static void do_genid(char *args)
{
	(void)args;
	if (!genid_addr)
		return error("no thaw.genid= on the command line");
	put("OK ");
	put_bytes(at(genid_addr), GENID_BYTES);
	put("\n");
}

static void do_cmdline(char *args)
{
	(void)args;
	ok_text(cmdline);
}

static void do_tsc(char *args)
{
	u32 low, high;
	(void)args;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	ok_dec((u64)high << 32 | low);
}

static void do_mem(char *args)
{
	(void)args;
	ok_dec(ram_bytes);
}

static void do_heap(char *args)
{
	(void)args;
	ok_dec(heap_pages);
}

static void do_cpus(char *args)
{
	(void)args;
	u64 n = count_cpus();
	if (!n)
		return error("no MADT");
	ok_dec(n);
}

// spin N: about N million cycles of work.
static void do_spin(char *args)
{
	u64 n;
	if (!arg_number(&args, &n))
		return error("bad number");
	for (u64 i = 0; i < n * 1000000; i++)
		__asm__ volatile("");
	put("OK\n");
}

static void do_loop(char *args)
{
	(void)args;
	put("OK\n");
	for (;;)
		__asm__ volatile("");
}

static void do_chatter(char *args)
{
	(void)args;
	put("OK\n");
	for (;;)
		put(".");
}

// timer MS: the answer comes at once, TIMER when it fires; 0 takes it back.
static void do_timer(char *args)
{
	u64 ms;
	if (!arg_number(&args, &ms) || ms > 60000)
		return error("not 0 to 60000 ms");
	mmio_write(LAPIC + LAPIC_TIMER_DIVIDE, LAPIC_DIVIDE_16);
	mmio_write(LAPIC + LAPIC_TIMER, VECTOR_TIMER); // one shot
	mmio_write(LAPIC + LAPIC_TIMER_COUNT, (u32)(ms * TICKS_PER_MS));
	put("OK\n");
}

static void end_interrupt(void);

// events PIN each|batch N [irq]: N requests to virtio-rng, whose interrupt is at PIN. With irq it asks for
// one at the last request and sleeps until it comes; else it asks for none, and none is to be pending.
static void do_events(char *args)
{
	u64 pin, n;
	if (!arg_number(&args, &pin) || pin > 23)
		return error("not a pin");
	bool each = same(word(&args), "each");
	if (!arg_number(&args, &n) || !n || n > 30000)
		return error("not 1 to 30000 requests");
	bool wish = same(word(&args), "irq");
	if (!rng_init())
		return error("no virtio-rng device");
	unmask_pin((u32)pin, VECTOR_VIRTIO);
	if (!rng_events(n, each, wish))
		return error("virtio-rng does not answer");
	for (bool came = !wish; !came; end_interrupt()) {
		wait_interrupt();
		came = irq_virtio;
	}
	if (mmio_read(LAPIC + LAPIC_IRR + VECTOR_VIRTIO / 32 * 16) >> VECTOR_VIRTIO % 32 & 1)
		return error("an interrupt too many");
	ok_dec(n);
}

static void do_exit(char *args)
{
	(void)args;
	put("OK\n");
	power_off();
}

static void do_reset(char *args)
{
	(void)args;
	put("OK\n");
	out8(I8042_COMMAND, I8042_RESET);
	for (;;)
		wait_interrupt();
}

static void do_triple(char *args)
{
	(void)args;
	put("OK\n");
	__builtin_trap(); // no gate for it, none for what follows
}

static const struct {
	const char *name;
	void (*run)(char *args);
} commands[] = {
	{ "echo", do_echo },       { "touch", do_touch },     { "fill", do_fill },     { "sum", do_sum },
	{ "rand", do_rand },       { "count", do_count },     { "store", do_store },   { "load", do_load },
	{ "genid", do_genid },     { "cmdline", do_cmdline }, { "mem", do_mem },       { "heap", do_heap },
	{ "cpus", do_cpus },       { "spin", do_spin },       { "loop", do_loop },     { "exit", do_exit },
	{ "chatter", do_chatter }, { "reset", do_reset },     { "triple", do_triple }, { "timer", do_timer },
	{ "blk", do_blk },         { "net", do_net },         { "vsock", do_vsock },   { "work", do_work },
	{ "events", do_events },   { "balloon", do_balloon }, { "port", do_port },     { "pmem", do_pmem },
	{ "tsc", do_tsc },
};

static void run_line(char *line)
{
	const char *name = word(&line);
	commands_done++;
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (same(name, commands[i].name))
			return commands[i].run(line);
	error("unknown command");
}

// --- events --------------------------------------------------------------------------
static void end_interrupt(void)
{
	bool restored = irq_restored, button = irq_button, timer = irq_timer;
	// One at a time: the vectors have the same priority class.
	if (irq_serial || restored || button || timer || irq_virtio)
		mmio_write(LAPIC + LAPIC_EOI, 0);
	irq_serial = irq_restored = irq_button = irq_timer = irq_virtio = 0;
	if (restored)
		put("RESTORED\n");
	if (timer)
		put("TIMER\n");
	if (button) {
		put("BUTTON\n");
		power_off();
	}
}

static char get_char(void)
{
	while (!(in8(UART_LSR) & LSR_DATA)) {
		wait_interrupt();
		end_interrupt();
	}
	return (char)in8(UART_DATA);
}

static bool read_line(char *line)
{
	u64 n = 0;
	for (char c; (c = get_char()) != '\n';)
		if (c != '\r' && n++ < LINE_MAX)
			line[n - 1] = c;
	line[n < LINE_MAX ? n : LINE_MAX] = 0;
	return n <= LINE_MAX;
}

void guest_main(u64 info, u32 kind)
{
	static char line[LINE_MAX + 1];
	interrupts_init(); // before READY: who has seen it may take a snapshot, and its clones say RESTORED
	put("READY\n");
	read_boot_info(info, kind);
	if (!cmdline_number("thaw.genid=", &genid_addr) || genid_addr >= MMIO_HOLE)
		genid_addr = 0;
	out8(UART_MCR, 0x0b); // DTR, RTS, OUT2: lets the interrupt out
	out8(UART_IER, 0x01); // received data
	for (;;) {
		if (!read_line(line))
			error("line too long");
		else if (*line)
			run_line(line);
	}
}
