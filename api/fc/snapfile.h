// SPDX-License-Identifier: Apache-2.0
// The file at snapshot_path of the Firecracker-compatible mode: all of a snapshot but its memory. One
// container of snapshot/format.h, so with its version and a checksum over all bytes; its sections are
//
//   1 about  the VM's configuration, thaw's version, time (TLV, fields in snapfile.c)
//   2 state  a state file, byte for byte as the VM process wrote it: a container of its own
//   3 layer  (of drive N of the configuration) what tells the file of its layer from others (TLV)
//   from 0x8000 on: for an older reader to skip
//
// The version is that of snapshots in the store: an older one loads for ever, one with a newer major is
// refused. It is not Firecracker's: their files are refused as files of something else.
//
// The memory file beside it has no format and no checksum: guest memory as it is, the regions one behind
// the other in the order of guest addresses. Loading maps it and reads nothing, so nothing here can tell
// whether it is the right one; only its size is compared.
//
// A drive with a copy-on-write layer has a file of its own, the layer (devices/layer.h) as it was. Its size
// and first MiB, where its random id and, of disks of up to 3 GiB, its map are, have to be those that were
// saved; what is behind is as little looked at as memory.
//
// Any thread; no state. Files are hostile: read once, checked, then used.
#pragma once
#include <stddef.h>

#include "microvm/base/vmcfg.h"
#include "snapshot/format.h"

#define FC_SNAPFILE_MAGIC "THAWFCSN"
#define FC_STR_(x) #x
#define FC_STR(x) FC_STR_(x)
// For --snapshot-version, in the form that scripts know.
#define FC_SNAPFILE_VERSION "v" FC_STR(SNAP_FORMAT_MAJOR) "." FC_STR(SNAP_FORMAT_MINOR) ".0"

struct fc_layer_file { // of each drive
	bool present;
	uint64_t size_bytes, head_xxh3;
};
// 0 or -errno with a sentence; check: -EINVAL: another file.
int fc_layer_file_note(int fd, struct fc_layer_file *ret_note, struct mv_err *err);
int fc_layer_file_check(int fd, const struct fc_layer_file *saved, struct mv_err *err);

// Writes `fd`, an empty file, from a configuration and the state that MSG_SNAPSHOT gave, and reads it again:
// what was written can be read. layers: one for each drive that has a layer, and for no other; NULL: there
// are none. No sync. -EINVAL: a bad configuration or state; -ENOSPC and the like.
int fc_snapfile_write(int fd, const struct vmcfg *cfg, int state_fd,
		      const struct fc_layer_file layers[VMCFG_MAX_DRIVES], struct mv_err *err);

// Reads a file and checks all of it. ret_state_fd: for MSG_RESTORE, a copy that can't be changed any more, so
// that what was checked is what is used; the caller closes it. ret_layers: as for writing; may be NULL.
// -EINVAL, -EFBIG: a bad file; -ENOMEM.
int fc_snapfile_read(int fd, struct vmcfg *ret_cfg, int *ret_state_fd,
		     struct fc_layer_file ret_layers[VMCFG_MAX_DRIVES], struct mv_err *err);

// Does this host's KVM (kvm_path) have all that the guest saw of its CPU, but for what its configuration
// (`cpu`) set by number? -ENOTSUP names what is missing. KVM is asked once per process (cpu_report.h says how
// long); where it can't be asked, the restore will say why.
int fc_snapfile_check_cpu(int state_fd, const struct vmcfg_cpu *cpu, const char *kvm_path,
			  struct mv_err *err);

// For --describe-snapshot: the version as above in the first line, then lines of "name: value". Cut off at n.
int fc_snapfile_describe(int fd, char *buf, size_t n, struct mv_err *err);
