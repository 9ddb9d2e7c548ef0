// SPDX-License-Identifier: Apache-2.0
// The device tree: what a stock kernel finds the machine by (Devicetree Specification 0.4, and the bindings
// in the kernel's Documentation/devicetree/bindings/, named at each node). libfdt remembers the first error,
// so only the last call is asked.
#include <errno.h>
#include <libfdt.h>
#include <stdio.h>
#include <string.h>

#include "a64.h"

enum { PHANDLE_GIC = 1, PHANDLE_CLOCK = 2, PHANDLE_GPIO = 3, PHANDLE_CACHES = 16 };
enum { SPI = 0, PPI = 1 }; // interrupt-controller/arm,gic.yaml
enum { EDGE_RISING = 1, LEVEL_LOW = 8 };
enum { PPI_CPU_MASK_SHIFT = 8 }; // GICv2
#define KEY_POWER 116            // input-event-codes.h
#define APB_CLOCK_HZ 24000000u
#define SERIAL_CLOCK_HZ 1843200u

struct tree {
	void *fdt;
	int error; // the first one
};

static void note(struct tree *t, int r)
{
	if (r < 0 && !t->error)
		t->error = r;
}
static void begin(struct tree *t, const char *name) { note(t, fdt_begin_node(t->fdt, name)); }
static void begin_at(struct tree *t, const char *name, uint64_t gpa_)
{
	char text[64];
	snprintf(text, sizeof text, "%s@%llx", name, (unsigned long long)gpa_);
	begin(t, text);
}
static void end(struct tree *t) { note(t, fdt_end_node(t->fdt)); }
static void put(struct tree *t, const char *name, const void *bytes, size_t len)
{
	note(t, fdt_property(t->fdt, name, bytes, (int)len));
}
static void put_flag(struct tree *t, const char *name) { put(t, name, NULL, 0); }
static void put_text(struct tree *t, const char *name, const char *text)
{
	put(t, name, text, strlen(text) + 1);
}
static void put_u32(struct tree *t, const char *name, uint32_t v)
{
	note(t, fdt_property_u32(t->fdt, name, v));
}
static void put_u64(struct tree *t, const char *name, uint64_t v)
{
	note(t, fdt_property_u64(t->fdt, name, v));
}

// Numbers of 32 or 64 bits, as cells.
static void put_cells(struct tree *t, const char *name, const uint32_t *cell, size_t n)
{
	fdt32_t be[16];
	for (size_t i = 0; i < n; i++)
		be[i] = cpu_to_fdt32(cell[i]);
	put(t, name, be, n * sizeof be[0]);
}
#define PUT_CELLS(t, name, ...)                                                                              \
	put_cells(t, name, (const uint32_t[]){ __VA_ARGS__ },                                                \
		  sizeof((const uint32_t[]){ __VA_ARGS__ }) / sizeof(uint32_t))
#define ADDRESS(v) (uint32_t)((uint64_t)(v) >> 32), (uint32_t)(v)

static void put_spi(struct tree *t, uint32_t gsi) { PUT_CELLS(t, "interrupts", SPI, gsi, EDGE_RISING); }

static void put_cache_numbers(struct tree *t, const struct a64_cache *c)
{
	static const char *const prefixes[] = { "d-cache", "i-cache", "cache" }; // enum a64_cache_type
	const struct {
		const char *what;
		uint32_t value;
	} numbers[] = { { "size", c->size_bytes }, { "line-size", c->line_bytes }, { "sets", c->sets } };
	if (c->type == A64_CACHE_UNIFIED)
		put_flag(t, "cache-unified");
	for (size_t i = 0; i < MV_ARRAY_LEN(numbers); i++) {
		char name[32];
		snprintf(name, sizeof name, "%s-%s", prefixes[c->type], numbers[i].what);
		if (numbers[i].value)
			put_u32(t, name, numbers[i].value);
	}
}

// A shared one has one node, others have one in each CPU's.
static uint32_t cache_phandle(const struct a64_machine *m, unsigned i, unsigned cpu)
{
	return PHANDLE_CACHES + i * VMCFG_MAX_VCPUS + (m->cache[i].shared ? 0 : cpu);
}

static void put_next_level(struct tree *t, const struct a64_machine *m, unsigned i, unsigned cpu)
{
	while (++i < m->n_caches && m->cache[i].level == 1)
		;
	if (i < m->n_caches)
		put_u32(t, "next-level-cache", cache_phandle(m, i, cpu));
}

static void put_caches(struct tree *t, const struct a64_machine *m, unsigned cpu,
		       bool shared) // cache-controller.yaml
{
	for (unsigned i = 0; i < m->n_caches; i++) {
		const struct a64_cache *c = &m->cache[i];
		char name[24];
		if (c->level < 2 || c->shared != shared)
			continue;
		snprintf(name, sizeof name, "l%u-cache", c->level);
		begin(t, name);
		put_text(t, "compatible", "cache");
		put_u32(t, "cache-level", c->level);
		put_cache_numbers(t, c);
		put_next_level(t, m, i, cpu);
		put_u32(t, "phandle", cache_phandle(m, i, cpu));
		end(t);
	}
}

static void put_cpus(struct tree *t, const struct a64_machine *m) // arm/cpus.yaml
{
	begin(t, "cpus");
	put_u32(t, "#address-cells", 2);
	put_u32(t, "#size-cells", 0);
	for (unsigned i = 0; i < m->n_vcpus; i++) {
		begin_at(t, "cpu", m->mpidr[i]);
		put_text(t, "device_type", "cpu");
		put_text(t, "compatible", "arm,armv8");
		put_text(t, "enable-method", "psci");
		put_u64(t, "reg", m->mpidr[i]);
		for (unsigned k = 0; k < m->n_caches && m->cache[k].level == 1; k++)
			put_cache_numbers(t, &m->cache[k]);
		if (m->n_caches)
			put_next_level(t, m, 0, i);
		put_caches(t, m, i, false);
		end(t);
	}
	put_caches(t, m, 0, true);
	end(t);
}

static void put_memory(struct tree *t, const struct a64_machine *m)
{
	begin_at(t, "memory", A64_KERNEL);
	put_text(t, "device_type", "memory");
	PUT_CELLS(t, "reg", ADDRESS(A64_KERNEL), ADDRESS(m->ram_bytes - (A64_KERNEL - A64_RAM)));
	end(t);
}

static void put_chosen(struct tree *t, const struct a64_machine *m)
{
	char path[32];
	begin(t, "chosen");
	put_text(t, "bootargs", m->cmdline);
	snprintf(path, sizeof path, "/serial@%x", A64_SERIAL);
	put_text(t, "stdout-path", path);
	if (m->initrd_end_gpa > m->initrd_gpa) {
		put_u64(t, "linux,initrd-start", m->initrd_gpa);
		put_u64(t, "linux,initrd-end", m->initrd_end_gpa);
	}
	if (m->seed && m->seed_bytes > sizeof(uint64_t)) {
		put(t, "kaslr-seed", m->seed, sizeof(uint64_t));
		put(t, "rng-seed", m->seed + sizeof(uint64_t), m->seed_bytes - sizeof(uint64_t));
	}
	end(t);
}

static void put_gic(struct tree *t, const struct a64_machine *m) // arm,gic.yaml, arm,gic-v3.yaml
{
	begin_at(t, "interrupt-controller", A64_GICD);
	put_text(t, "compatible", m->gic_version == 3 ? "arm,gic-v3" : "arm,cortex-a15-gic");
	put_flag(t, "interrupt-controller");
	put_u32(t, "#interrupt-cells", 3);
	put_u32(t, "#address-cells", 0);
	if (m->gic_version == 3)
		PUT_CELLS(t, "reg", ADDRESS(A64_GICD), ADDRESS(A64_GICD_BYTES), ADDRESS(A64_GICR),
			  ADDRESS((uint64_t)m->n_vcpus * A64_GICR_BYTES));
	else
		PUT_CELLS(t, "reg", ADDRESS(A64_GICD), ADDRESS(A64_GICD_BYTES), ADDRESS(A64_GICC),
			  ADDRESS(A64_GICC_BYTES));
	put_u32(t, "phandle", PHANDLE_GIC);
	end(t);
}

static void put_timer(struct tree *t, const struct a64_machine *m) // timer/arm,arch_timer.yaml
{
	uint32_t flags = LEVEL_LOW;
	if (m->gic_version == 2)
		flags |= ((1u << m->n_vcpus) - 1) << PPI_CPU_MASK_SHIFT;
	begin(t, "timer");
	put_text(t, "compatible", "arm,armv8-timer");
	put_flag(t, "always-on");
	// Secure, physical, virtual, hypervisor: the interrupts that KVM gives its vCPUs by default.
	PUT_CELLS(t, "interrupts", PPI, 13, flags, PPI, 14, flags, PPI, 11, flags, PPI, 10, flags);
	end(t);
}

static void put_psci(struct tree *t) // arm/psci.yaml
{
	static const char compatible[] = "arm,psci-1.0\0arm,psci-0.2";
	begin(t, "psci");
	put(t, "compatible", compatible, sizeof compatible);
	put_text(t, "method", "hvc");
	end(t);
}

// A PrimeCell with its clock (arm/primecell.yaml); left open.
static void begin_primecell(struct tree *t, const char *name, uint32_t gpa_, uint32_t bytes,
			    const char *compatible, size_t len)
{
	begin_at(t, name, gpa_);
	put(t, "compatible", compatible, len);
	PUT_CELLS(t, "reg", ADDRESS(gpa_), ADDRESS(bytes));
	put_u32(t, "clocks", PHANDLE_CLOCK);
	put_text(t, "clock-names", "apb_pclk");
}

static void put_serial_and_rtc(struct tree *t) // serial/8250.yaml, rtc/arm,pl031.yaml
{
	static const char rtc[] = "arm,pl031\0arm,primecell";
	begin(t, "apb-pclk");
	put_text(t, "compatible", "fixed-clock");
	put_u32(t, "#clock-cells", 0);
	put_u32(t, "clock-frequency", APB_CLOCK_HZ);
	put_u32(t, "phandle", PHANDLE_CLOCK);
	end(t);
	begin_at(t, "serial", A64_SERIAL);
	put_text(t, "compatible", "ns16550a");
	PUT_CELLS(t, "reg", ADDRESS(A64_SERIAL), ADDRESS(A64_SERIAL_BYTES));
	put_u32(t, "clock-frequency", SERIAL_CLOCK_HZ);
	put_spi(t, A64_GSI_SERIAL);
	end(t);
	begin_primecell(t, "rtc", A64_RTC, A64_RTC_BYTES, rtc, sizeof rtc);
	end(t);
}

static void put_power_button(struct tree *t) // gpio/pl061-gpio.yaml, input/gpio-keys.yaml
{
	static const char gpio[] = "arm,pl061\0arm,primecell";
	begin_primecell(t, "gpio", A64_GPIO, A64_GPIO_BYTES, gpio, sizeof gpio);
	put_spi(t, A64_GSI_GPIO);
	put_flag(t, "gpio-controller");
	put_u32(t, "#gpio-cells", 2);
	put_flag(t, "interrupt-controller");
	put_u32(t, "#interrupt-cells", 2);
	put_u32(t, "phandle", PHANDLE_GPIO);
	end(t);
	begin(t, "gpio-keys");
	put_text(t, "compatible", "gpio-keys");
	begin(t, "power");
	put_text(t, "label", "Power Button");
	put_u32(t, "linux,code", KEY_POWER);
	PUT_CELLS(t, "gpios", PHANDLE_GPIO, PL061_POWER_LINE, 0);
	end(t);
	end(t);
}

// virtio/mmio.yaml, rng/microsoft,vmgenid.yaml, ptp/amazon,vmclock.yaml
static void put_devices(struct tree *t, const struct a64_machine *m)
{
	for (unsigned i = 0; i < m->n_devs; i++) {
		begin_at(t, "virtio_mmio", arch_device_gpa(i));
		put_text(t, "compatible", "virtio,mmio");
		put_flag(t, "dma-coherent");
		PUT_CELLS(t, "reg", ADDRESS(arch_device_gpa(i)), ADDRESS(VIO_MMIO_BYTES));
		put_spi(t, arch_device_gsi(i));
		end(t);
	}
	begin_at(t, "rng", A64_GENERATION_ID);
	put_text(t, "compatible", "microsoft,vmgenid");
	PUT_CELLS(t, "reg", ADDRESS(A64_GENERATION_ID), ADDRESS(16));
	put_spi(t, A64_GSI_GENERATION);
	end(t);
	begin_at(t, "ptp", A64_VMCLOCK);
	put_text(t, "compatible", "amazon,vmclock");
	PUT_CELLS(t, "reg", ADDRESS(A64_VMCLOCK), ADDRESS(A64_VMCLOCK_BYTES));
	put_spi(t, A64_GSI_VMCLOCK);
	end(t);
}

int a64_build_fdt(const struct a64_machine *m, void *buf, size_t bytes, struct mv_err *err)
{
	struct tree t = { .fdt = buf };
	note(&t, fdt_create(buf, (int)bytes));
	note(&t, fdt_finish_reservemap(buf));
	begin(&t, "");
	put_text(&t, "compatible", "linux,dummy-virt");
	put_text(&t, "model", "thaw");
	put_u32(&t, "#address-cells", 2);
	put_u32(&t, "#size-cells", 2);
	put_u32(&t, "interrupt-parent", PHANDLE_GIC);
	put_cpus(&t, m);
	put_memory(&t, m);
	put_chosen(&t, m);
	put_gic(&t, m);
	put_timer(&t, m);
	put_psci(&t);
	put_serial_and_rtc(&t);
	put_power_button(&t);
	put_devices(&t, m);
	end(&t);
	note(&t, fdt_finish(buf));
	return t.error ? mv_fail(err, ENOSPC, "device tree: %s", fdt_strerror(t.error)) : 0;
}

size_t a64_fdt_bytes(const void *fdt) { return fdt_totalsize(fdt); }
