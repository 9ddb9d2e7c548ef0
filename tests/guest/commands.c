// SPDX-License-Identifier: Apache-2.0
// The tiny guest's commands, of which a table is at the end: those on memory, on the machine and its end.
#include "tests/guest/tiny.h"

#define NONCE_MAX 200

static u64 commands_done;
static char nonce[NONCE_MAX + 1];

static u64 mix(u64 v) // splitmix64
{
	v += 0x9e3779b97f4a7c15;
	v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9;
	v = (v ^ v >> 27) * 0x94d049bb133111eb;
	return v ^ v >> 31;
}

volatile u64 *heap_page(u64 n) { return (void *)(machine.heap + n * PAGE); }

bool in_heap(u64 first, u64 n) { return first <= machine.heap_pages && n <= machine.heap_pages - first; }

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
	if (!machine.genid)
		return error("nothing says where the generation ID is");
	put("OK ");
	put_bytes((void *)machine.genid, GENID_BYTES);
	put("\n");
}

static void do_cmdline(char *args)
{
	(void)args;
	ok_text(machine.cmdline);
}

// The counter that the kernel would have its time from.
static void do_tsc(char *args)
{
	(void)args;
	ok_dec(counter());
}

static void do_mem(char *args)
{
	(void)args;
	ok_dec(machine.ram_bytes);
}

static void do_heap(char *args)
{
	(void)args;
	ok_dec(machine.heap_pages);
}

static void do_cpus(char *args)
{
	(void)args;
	if (!machine.n_cpus)
		return error("nothing says how many");
	ok_dec(machine.n_cpus);
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
	timer_start(ms);
	put("OK\n");
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
	reset();
}

static void do_triple(char *args)
{
	(void)args;
	put("OK\n");
	crash();
	error("this CPU does not give up");
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

void run_line(char *line)
{
	const char *name = word(&line);
	commands_done++;
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (same(name, commands[i].name))
			return commands[i].run(line);
	error("unknown command");
}
