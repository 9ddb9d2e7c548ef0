# SPDX-License-Identifier: Apache-2.0
BENCH_O := $(call objs,$(wildcard bench/*.c bench/$(ARCH)/*.c))
$(B)/bench/bench: $(BENCH_O) $(B)/tests/microvm/t_vmm.o $(B)/microvm/lazy.o $(FC_FILES_O) $(CPU_REPORT_O) $(API_SHARED_O) $(DEV_O) $(SNAP_O) $(BASE_O) $(LIBTHAW_A)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed $(LIB_LIBS) -luring -lxxhash -llz4 -lm -o $@
