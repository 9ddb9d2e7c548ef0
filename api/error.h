// SPDX-License-Identifier: Apache-2.0
// Errors as the API shows them: {"error":{"code":"vm_not_found","message":"..."}}.
// The codes are declared once, here, with status, cause and remedy; docs/api.md lists
// the same and a test compares the two. Codes are stable: never renamed or reused.
// Any thread; no allocation.
#pragma once
#include "microvm/base/err.h"

// clang-format off
// X(symbol, HTTP status, code, cause, remedy)
#define API_CODES(X)                                                                               \
	X(INVALID_JSON, 400, "invalid_json", "the body is not one JSON object, or has a key twice", \
	  "send one JSON object in UTF-8; the message says where it breaks")                        \
	X(UNKNOWN_FIELD, 400, "unknown_field", "a field or query parameter that does not exist",    \
	  "the message names it and lists the known ones")                                          \
	X(MISSING_FIELD, 400, "missing_field", "a required field is not there", "add it")          \
	X(WRONG_TYPE, 400, "wrong_type", "a field has another JSON type than it should",           \
	  "the message says which type it must have")                                              \
	X(INVALID_VALUE, 400, "invalid_value", "a value out of range or not well-formed",          \
	  "the message says what is allowed")                                                      \
	X(NOT_FOUND, 404, "not_found", "no such route", "see the list of routes")                  \
	X(VM_NOT_FOUND, 404, "vm_not_found", "no VM has this name or id", "list them: GET /v1/vms") \
	X(SNAPSHOT_NOT_FOUND, 404, "snapshot_not_found", "no snapshot has this name",              \
	  "list them: GET /v1/snapshots")                                                          \
	X(METHOD_NOT_ALLOWED, 405, "method_not_allowed", "the route exists, but not this method",  \
	  "use a method of the Allow header")                                                      \
	X(WAIT_TIMEOUT, 408, "wait_timeout", "what the request waited for did not happen in time",  \
	  "ask again, or with a larger timeout_ms")                                                \
	X(VM_EXISTS, 409, "vm_exists", "another VM has this name",                                 \
	  "choose another name or delete that VM")                                                 \
	X(SNAPSHOT_EXISTS, 409, "snapshot_exists", "another snapshot has this name",               \
	  "choose another name or delete that snapshot")                                           \
	X(WRONG_STATE, 409, "wrong_state", "the VM's state does not allow this",                   \
	  "the message says which state is needed")                                                \
	X(BUSY, 409, "busy", "another operation on this VM is in progress",                        \
	  "try again when it is done")                                                             \
	X(IN_USE, 409, "in_use", "a disk, tap, socket path or snapshot is used by others",           \
	  "give the VM its own (drive, net, vsock of a clone), or see the message")                \
	X(VM_GONE, 409, "vm_gone", "the VM ended or was deleted while the request waited",         \
	  "look at the VM's exit reason")                                                          \
	X(PRECONDITION_FAILED, 412, "precondition_failed",                                         \
	  "the VM or snapshot is not the one that If-Match names",                                 \
	  "look at it again; then repeat the request with its new ETag if it is still meant")      \
	X(BODY_TOO_LARGE, 413, "body_too_large", "the request body is larger than 1 MiB",          \
	  "send less at once")                                                                     \
	X(URI_TOO_LONG, 414, "uri_too_long", "the path and its query are longer than 4 KiB",       \
	  "names have at most 64 bytes; see the list of routes")                                  \
	X(FIELDS_TOO_LARGE, 431, "fields_too_large", "the header fields are larger than 8 KiB",    \
	  "send fewer or shorter ones")                                                            \
	X(FILE_NOT_FOUND, 422, "file_not_found",                                                   \
	  "a kernel, initrd or drive file, a passt socket, or passt itself does not exist",        \
	  "give the absolute path of a file on the daemon's host; see the message")                \
	X(FILE_DENIED, 422, "file_denied", "the daemon may not open a file",                       \
	  "give its user the rights, or open a drive read-only")                                   \
	X(FILE_INVALID, 422, "file_invalid", "a path is not a regular file or block device, or is empty", \
	  "give another file")                                                                     \
	X(KERNEL_INVALID, 422, "kernel_invalid", "the kernel, initrd or command line can't be loaded", \
	  "use an ELF vmlinux or bzImage for this CPU; see the message")                           \
	X(USER_NET_FAILED, 422, "user_net_failed", "passt, which makes a user network, could not start", \
	  "see the message; run: thaw doctor")                                                     \
	X(TAP_NOT_FOUND, 422, "tap_not_found", "the tap interface does not exist",                 \
	  "create it: ip tuntap add NAME mode tap user USER")                                      \
	X(TAP_DENIED, 422, "tap_denied", "the daemon may not use the tap interface",               \
	  "make the daemon's user its owner, or give CAP_NET_ADMIN")                               \
	X(TAP_INVALID, 422, "tap_invalid", "the interface is not a tap, or has other flags",       \
	  "create it with: ip tuntap add NAME mode tap vnet_hdr")                                  \
	X(HOST_TOO_SMALL, 422, "host_too_small", "more memory than the host has", "ask for less")  \
	X(HUGE_PAGES_UNAVAILABLE, 422, "huge_pages_unavailable",                                   \
	  "huge pages were asked for, and the host has none, or too few that are free",            \
	  "raise vm.nr_hugepages, switch transparent ones on, or see the message; run: thaw doctor") \
	X(LIMITS_UNAVAILABLE, 422, "limits_unavailable",                                           \
	  "limits were asked for, and the daemon can't set them",                                  \
	  "give it a cgroup v2 of its own (--cgroup, or Delegate=yes in systemd); run: thaw doctor") \
	X(SNAPSHOT_CORRUPT, 422, "snapshot_corrupt",                                               \
	  "a file of the snapshot is damaged, truncated or foreign",                               \
	  "delete the snapshot and take it again")                                                 \
	X(IMPORT_INVALID, 422, "import_invalid", "not an exported snapshot, or not all of it",      \
	  "export it again; see the message")                                                      \
	X(SNAPSHOT_MISMATCH, 422, "snapshot_mismatch",                                             \
	  "the snapshot's state does not fit the clone's devices or this version",                 \
	  "give overrides of the same kind and size as the snapshot's devices; see the message")   \
	X(CPU_INCOMPATIBLE, 422, "cpu_incompatible",                                               \
	  "this host's CPU or KVM lacks what the snapshot's guest, or the CPU template, was promised", \
	  "use a host that has what the message names; take snapshots for several hosts with cpu.template") \
	X(PAGE_HANDLER_FAILED, 422, "page_handler_failed",                                         \
	  "nobody listens on the page handler's socket, or it takes no connection",                \
	  "start the page handler first; see the message")                                         \
	X(IDEMPOTENCY_MISMATCH, 422, "idempotency_mismatch",                                       \
	  "another request had this Idempotency-Key",                                              \
	  "use a new key for each request; the same one only to repeat it")                        \
	X(INTERNAL, 500, "internal", "an error inside the daemon", "see the daemon's log")         \
	X(VM_FAILED, 500, "vm_failed", "the VM process could not do it", "see the message")        \
	X(VM_CRASHED, 500, "vm_crashed", "the VM process died while working on the request",       \
	  "see the daemon's log; please report it")                                                \
	X(VM_TIMEOUT, 504, "vm_timeout", "the VM process did not answer in time and was ended",    \
	  "see the daemon's log; a very slow disk or an overloaded host can cause it")             \
	X(NO_KVM, 503, "no_kvm", "/dev/kvm is not there",                                          \
	  "load the kvm_intel or kvm_amd module, enable virtualisation; run: thaw doctor")         \
	X(KVM_DENIED, 503, "kvm_denied", "the daemon may not use /dev/kvm",                        \
	  "add its user to the group kvm")                                                         \
	X(NO_USERFAULTFD, 503, "no_userfaultfd", "the daemon can have no userfaultfd on this host", \
	  "give its user /dev/userfaultfd or CAP_SYS_PTRACE; run: thaw doctor")                    \
	X(LIMIT_REACHED, 503, "limit_reached", "a limit of the daemon or the host is reached",     \
	  "delete VMs, or raise the limit named in the message")                                   \
	X(OUT_OF_MEMORY, 503, "out_of_memory", "the host has no memory for this",                  \
	  "delete VMs or ask for less")                                                            \
	X(SHUTTING_DOWN, 503, "shutting_down", "the daemon is ending", "start it again")           \
	X(NO_SPACE, 507, "no_space", "the file system of the state directory is full",             \
	  "delete snapshots or enlarge it")

enum api_code {
	API_OK,
#define X(sym, status, name, cause, remedy) API_##sym,
	API_CODES(X)
#undef X
	API_N_CODES
};
// clang-format on

struct api_code_info {
	const char *name;
	unsigned status;
	const char *cause, *remedy;
};

struct api_err {
	enum api_code code; // API_OK: nothing failed
	char msg[640];
};

const struct api_code_info *api_code_info(enum api_code code);

// Fills err and returns -EINVAL, so that `return api_fail(...)` reads well.
int api_fail(struct api_err *err, enum api_code code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

// From an error of a lower layer: ENOMEM, ENOSPC, EMFILE and EBUSY have codes of their own,
// everything else becomes `otherwise`. Returns -EINVAL.
int api_from(struct api_err *err, const struct mv_err *e, enum api_code otherwise);
