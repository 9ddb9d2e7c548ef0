# SPDX-License-Identifier: Apache-2.0
# thawd.c, thaw.c and page_handler.c are the mains. The client side needs libthaw and nothing of the
# daemon; the daemon needs libmicrohttpd. API_COMMON is everything the daemon is made of.
API_CLI_SRC := $(wildcard api/cli*.c api/doctor*.c)
API_SHARED_O := $(call objs,$(wildcard api/json.c api/conf.c api/error.c api/paths.c api/cgroup.c api/passt.c api/spawn.c api/hugepages.c))
CPU_REPORT_O := $(call objs,$(wildcard microvm/cpu_report.c $(patsubst %,microvm/arch/$(ARCH)/%.c,cpu_report cpu_features vcpu_state)))
API_COMMON := $(CPU_REPORT_O) $(call objs,$(filter-out api/thawd.c api/thaw.c api/page_handler.c $(API_CLI_SRC),$(wildcard api/*.c)))
API_CLI_O := $(call objs,$(API_CLI_SRC))
THAWD := $(B)/bin/thawd
THAW := $(B)/bin/thaw
ifneq ($(wildcard api/thawd.c),)
PROGRAMS += $(THAWD)
endif
ifneq ($(wildcard api/thaw.c),)
PROGRAMS += $(THAW)
endif
$(THAWD): $(call objs,api/thawd.c) $(API_COMMON) $(SNAP_O) $(BASE_O)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed -lmicrohttpd -ljansson -lxxhash -llz4 -luring -o $@
$(THAW): $(call objs,api/thaw.c microvm/kvm_probe.c microvm/arch/$(ARCH)/kvm_probe.c) $(API_CLI_O) $(API_SHARED_O) $(BASE_O) $(LIBTHAW_A)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed $(LIB_LIBS) -luring -o $@

# Snapshot files of the Firecracker-compatible mode; with CPU_REPORT_O.
FC_FILES_O := $(call objs,api/fc/snapfile.c api/fc/outfile.c)
SNAPSHOT_EDITOR := $(B)/bin/thaw-snapshot-editor
PROGRAMS += $(SNAPSHOT_EDITOR)
$(SNAPSHOT_EDITOR): $(call objs,api/fc/editor/main.c) $(FC_FILES_O) $(CPU_REPORT_O) $(SNAP_O) $(BASE_O)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed -luring -lxxhash -llz4 -o $@
# The front of a VM with Firecracker's API. Static, where libmicrohttpd is there as an archive: see no_tls.c.
FC_STATIC := $(if $(SAN),,$(wildcard $(shell $(CC) -print-file-name=libmicrohttpd.a)))
FC_O := $(call objs,$(filter-out $(if $(FC_STATIC),,api/fc/no_tls.c),$(wildcard api/fc/*.c)))
FIRECRACKER := $(B)/bin/thaw-firecracker
PROGRAMS += $(FIRECRACKER)
$(FIRECRACKER): $(FC_O) $(call objs,$(patsubst %,api/%.c,http json error spawn vmfds tap) microvm/kvm.c) $(CPU_REPORT_O) $(SNAP_O) $(BASE_O)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(if $(FC_STATIC),-static-pie,-pie) $(LDFLAGS_ALL) $^ -Wl,--as-needed -lmicrohttpd -ljansson -lxxhash -llz4 -luring -o $@

PAGE_HANDLER := $(B)/bin/thaw-page-handler
PROGRAMS += $(PAGE_HANDLER)
$(PAGE_HANDLER): $(call objs,api/page_handler.c api/listen.c) $(API_SHARED_O) $(SANDBOX_O) $(SNAP_O) $(BASE_O)
	$(Q)mkdir -p $(@D)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed -ljansson -luring -lxxhash -llz4 -lseccomp -o $@
