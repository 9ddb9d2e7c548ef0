# SPDX-License-Identifier: Apache-2.0
# Every tests/<folder>/test_*.c is one cmocka program that mirrors a source file; t_*.c
# are helpers.
-include tests/guest/guest.mk
guest: $(GUEST)

TEST_SRC := $(wildcard tests/base/test_*.c tests/devices/test_*.c tests/snapshot/test_*.c tests/api/test_*.c tests/microvm/test_*.c)
ARCH_TEST_SRC := $(wildcard tests/microvm/$(ARCH)/test_*.c)
TEST_PROGRAMS := $(patsubst %.c,$(B)/%,$(TEST_SRC) $(ARCH_TEST_SRC))
TEST_O := $(call objs,$(TEST_SRC) $(ARCH_TEST_SRC))
# Those of an architecture alone, which a cross build has.
.PHONY: arch-tests
GOLDEN_TEST := $(B)/tests/microvm/test_golden
arch-tests: $(patsubst %.c,$(B)/%,$(ARCH_TEST_SRC)) $(GOLDEN_TEST)
$(TEST_PROGRAMS): $(B)/%: $(B)/%.o
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed -lcmocka -lmicrohttpd -ljansson -luring -lxxhash -llz4 -lseccomp $(ARCH_LIBS) -o $@

# A folder's tests link what that folder may know, and the helpers beside them.
T_O := $(call objs,$(wildcard tests/*/t_*.c tests/*/$(ARCH)/t_*.c))
in = $(filter $(B)/tests/$(1)/%,$(2))
$(call in,base,$(TEST_PROGRAMS)): $(BASE_O) $(call in,base,$(T_O))
$(call in,devices,$(TEST_PROGRAMS)): $(DEV_O) $(BASE_O) $(call in,devices,$(T_O))
$(call in,snapshot,$(TEST_PROGRAMS)): $(SNAP_O) $(BASE_O) $(call in,snapshot,$(T_O))
$(B)/tests/snapshot/test_sandbox: $(SANDBOX_O)
$(call in,api,$(TEST_PROGRAMS)): $(FC_FILES_O) $(API_COMMON) $(SNAP_O) $(BASE_O) $(call in,api,$(T_O))
$(B)/tests/api/test_fc_cpu: $(call objs,api/fc/cpu.c api/fc/cpu_templates.c api/fc/objects.c microvm/kvm.c)
$(call in,microvm,$(TEST_PROGRAMS)): $(FC_FILES_O) $(VMM_O) $(DEV_O) $(SNAP_O) $(BASE_O) $(call in,microvm,$(T_O))

# Preloaded into the daemon by tests/e2e/test_store.py.
FAULTS := $(B)/tests/faults/shim.so
$(FAULTS): tests/faults/shim.c
	$(Q)mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(BASE_CFLAGS) -U_FORTIFY_SOURCE -fPIC -shared $(CFLAGS) $< -o $@

# thaw-vmm is static, so a variant of it has the shim inside: tests/e2e/test_vmm_faults.py.
FAULTS_VMM := $(B)/tests/faults/thaw-vmm
$(FAULTS_VMM): $(VMM_MAIN_O) $(VMM_O) $(DEV_O) $(SNAP_O) $(BASE_O) | $(FAULTS)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -L$(@D) -l:shim.so -Wl,-rpath,'$$ORIGIN' -luring -lxxhash -llz4 $(ARCH_LIBS) -o $@

include tests/fuzz/fuzz.mk
tests: $(FAULTS) $(FAULTS_VMM) $(TEST_PROGRAMS) $(FUZZ_PROGRAMS) guest $(B)/bench/bench
