// SPDX-License-Identifier: Apache-2.0
// thaw doctor: looks at the host and says what to do. Each check is one line, ok, warn
// (works, but...) or fail (no VM can run). Exit status 1 when something fails.
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/cgroup.h"
#include "api/cli.h"
#include "api/hugepages.h"
#include "api/passt.h"
#include "microvm/base/util.h"
#include "microvm/kvm_probe.h"

#define PASST_WAIT_MS 3000

enum verdict {
	OK,
	WARN,
	FAIL,
};

struct doctor {
	bool json, failed;
	js *checks;
};

__attribute__((format(printf, 4, 5))) static void say(struct doctor *d, enum verdict v, const char *name,
						      const char *fmt, ...)
{
	static const char *const words[] = { "ok", "warn", "fail" };
	char text[400];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	d->failed |= v == FAIL;
	if (!d->json) {
		printf("%-5s %-14s %s\n", words[v], name, text);
		return;
	}
	js *o = js_object();
	js_put_str(o, "name", name);
	js_put_str(o, "result", words[v]);
	js_put_str(o, "text", text);
	js_add(d->checks, o);
}

static void check_kernel(struct doctor *d)
{
	struct utsname u;
	int major = 0, minor = 0;
	uname(&u);
	sscanf(u.release, "%d.%d", &major, &minor);
	if (major > 5 || (major == 5 && minor >= 13))
		say(d, OK, "kernel", "Linux %s, %s", u.release, u.machine);
	else
		say(d, FAIL, "kernel", "Linux %s is too old; thaw needs 5.13 or newer", u.release);
}

// A word in the flags of the first CPU.
static bool cpu_has(const char *flag)
{
	char line[8192];
	bool found = false;
	FILE *f = fopen("/proc/cpuinfo", "re");
	while (f && !found && fgets(line, sizeof line, f)) {
		char *p = strncmp(line, "flags", 5) ? NULL : strstr(line, flag);
		size_t n = strlen(flag);
		found = p && p[-1] == ' ' && (p[n] == ' ' || p[n] == '\n');
	}
	if (f)
		fclose(f);
	return found;
}

static void check_cpu(struct doctor *d)
{
	const char *ext = NULL,
		   *nested = cpu_has("hypervisor") ? "; this host is itself a virtual machine" : "";
	for (const struct kvm_probe_flag *f = kvm_probe_flags; f->flag && !ext; f++)
		ext = cpu_has(f->flag) ? f->name : NULL;
	if (ext)
		say(d, OK, "cpu", "%s%s", ext, nested);
	else if (!kvm_probe_flags[0].flag)
		say(d, OK, "cpu", "does not show whether it has virtualisation; KVM knows");
	else
		say(d, WARN, "cpu",
		    "shows neither svm nor vmx%s; enable virtualisation in the firmware, or "
		    "nested virtualisation in the host below",
		    nested);
}

// Returns whether a stock kernel can be expected to run; the reason goes to why.
static bool check_kvm(struct doctor *d, char *why, size_t size)
{
	static const char device[] = "/dev/kvm";
	struct kvm_probe p;
	struct mv_err err;
	int r = kvm_probe(device, &p, &err);
	snprintf(why, size, "there is no usable /dev/kvm");
	if (r == -EACCES) {
		say(d, FAIL, "kvm",
		    "no rights to %s; add yourself to the group kvm (usermod -aG kvm USER) "
		    "and log in again",
		    device);
		return false;
	}
	if (r) {
		say(d, FAIL, "kvm", "%s; load the module kvm_intel or kvm_amd", err.msg);
		return false;
	}
	if (p.api_version != 12) {
		say(d, FAIL, "kvm", "API version %d, not 12; use another kernel", p.api_version);
		return false;
	}
	say(d, OK, "kvm", "%s, API version 12, up to %d vCPUs", device, p.max_vcpus);
	if (p.missing[0])
		say(d, FAIL, "kvm-features", "missing: %s; use a newer kernel", p.missing);
	else
		say(d, OK, "kvm-features", "all there");
	if (!p.guest_ran) {
		say(d, FAIL, "kvm-guest", "the probe guest did not run: %s", p.guest_error);
		snprintf(why, size, "the probe guest did not run");
		return false;
	}
	snprintf(why, size, "guest kernel mode takes %.1f ns an instruction%s", p.ns_per_instruction,
		 p.hardware_speed ? "" : ": it is emulated");
	if (p.hardware_speed)
		say(d, OK, "kvm-guest", "%s: hardware speed", why);
	else
		say(d, WARN, "kvm-guest",
		    "%s, not run by hardware; guests made for it run, stock kernels "
		    "do not; use a host with (nested) virtualisation",
		    why);
	return p.hardware_speed && !p.missing[0];
}

static void check_io_uring(struct doctor *d)
{
	struct io_uring_params p = { 0 };
	int fd = (int)syscall(SYS_io_uring_setup, 4, &p);
	if (fd >= 0) {
		say(d, OK, "io_uring", "there");
		close(fd);
	} else {
		say(d, WARN, "io_uring", "%s; disks work, but slower (sysctl kernel.io_uring_disabled=0)",
		    strerror(errno));
	}
}

static void check_uffd(struct doctor *d)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		say(d, OK, "userfaultfd", "there");
		close(fd);
	} else {
		say(d, WARN, "userfaultfd",
		    "%s; compressed snapshots can't be loaded lazily (sysctl "
		    "vm.unprivileged_userfaultfd=1, or rights to /dev/userfaultfd)",
		    strerror(errno));
	}
}

static void check_memfd(struct doctor *d)
{
	int fd = memfd_create("thaw-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd >= 0) {
		say(d, OK, "memfd", "there");
		close(fd);
	} else {
		say(d, WARN, "memfd", "%s", strerror(errno));
	}
}

static void check_tun(struct doctor *d)
{
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		say(d, OK, "tun", "/dev/net/tun can be opened");
		close(fd);
	} else {
		say(d, WARN, "tun", "/dev/net/tun: %s; VMs can't have taps (modprobe tun)", strerror(errno));
	}
}

// Starts one as the daemon would, with this user's rights.
static void check_passt(struct doctor *d)
{
	static const char without[] = "VMs can't have user networks";
	const struct vmcfg_user user = { .present = true };
	struct mv_err err = { 0 };
	struct passt p;
	int pair[2], ready = 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
		say(d, WARN, "passt", "socketpair: %s", strerror(errno));
		return;
	}
	int r = passt_start(&user, pair[1], &p, &err);
	close(pair[1]);
	if (r) {
		say(d, WARN, "passt", "%s; %s", err.msg, without);
		close(pair[0]);
		return;
	}
	struct pollfd out = { .fd = p.out_fd, .events = POLLIN };
	while (!p.ready && poll(&out, 1, PASST_WAIT_MS) > 0 && passt_read(&p) != -EPIPE)
		;
	ready = p.ready;
	close(pair[0]); // its end
	kill(p.pid, SIGKILL);
	waitid(P_PIDFD, (id_t)p.pidfd, &(siginfo_t){ 0 }, WEXITED);
	passt_fini(&p);
	if (ready)
		say(d, OK, "passt", "starts, with the rights of this user");
	else
		say(d, WARN, "passt",
		    "does not start: %s; %s (it needs user namespaces: sysctl "
		    "user.max_user_namespaces, kernel.unprivileged_userns_clone)",
		    p.message[0] ? p.message : "no answer", without);
}

static void check_huge_pages(struct doctor *d)
{
	char text[200];
	if (hugepages_describe(text, sizeof text))
		say(d, OK, "hugepages", "%s (for VMs with huge_pages; none are needed)", text);
	else
		say(d, OK, "hugepages", "not in this kernel; VMs can't have huge_pages");
}

// The daemon's cgroup may be another one: this is what it would find if it were started from here.
static void check_cgroup(struct doctor *d)
{
	static struct cgroup_base b;
	struct mv_err err;
	cgroup_base_open(&b, NULL, false, &err);
	if (b.fd >= 0 && b.controllers)
		say(d, OK, "cgroup", "%.200s is delegated; VMs can have limits", b.path);
	else
		say(d, WARN, "cgroup",
		    "%.200s%s%s; for VMs with limits start thawd with --cgroup or by systemd with "
		    "Delegate=yes",
		    b.path, b.path[0] ? ": " : "", b.why);
	cgroup_base_close(&b);
}

int cli_doctor(struct cli *c)
{
	struct doctor d = { .json = c->json, .checks = js_list() };
	char why[160];
	check_kernel(&d);
	check_cpu(&d);
	bool stock = check_kvm(&d, why, sizeof why);
	check_io_uring(&d);
	check_uffd(&d);
	check_memfd(&d);
	check_tun(&d);
	check_passt(&d);
	check_huge_pages(&d);
	check_cgroup(&d);
	if (c->json) {
		js *o = js_object();
		js_put_bool(o, "ok", !d.failed);
		js_put_bool(o, "stock_kernel", stock);
		js_put_str(o, "stock_kernel_reason", why);
		js_put(o, "checks", d.checks);
		cli_print_json(o);
	} else {
		printf("\nStock Linux kernels %s here: %s.\n", stock ? "run" : "do not run", why);
		js_free(d.checks);
	}
	return d.failed ? EXIT_DAEMON_ERROR : EXIT_OK;
}
