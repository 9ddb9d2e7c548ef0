# SPDX-License-Identifier: Apache-2.0
# Every tests/<folder>/test_*.c is one cmocka program that mirrors a source file; t_*.c
# are helpers.
-include tests/guest/guest.mk
guest: $(GUEST)

TEST_SRC := $(wildcard tests/base/test_*.c tests/devices/test_*.c tests/snapshot/test_*.c tests/api/test_*.c tests/microvm/test_*.c)
TEST_PROGRAMS := $(patsubst %.c,$(B)/%,$(TEST_SRC))
TEST_O := $(call objs,$(TEST_SRC))
T_O := $(call objs,$(wildcard tests/*/t_*.c))
$(TEST_PROGRAMS): $(B)/%: $(B)/%.o $(T_O) $(VMM_O) $(DEV_O) $(SNAP_O) $(API_COMMON) $(BASE_O)
	$(call say,LD,$@)$(CC) -pie $(LDFLAGS_ALL) $^ -Wl,--as-needed -lcmocka -lmicrohttpd -ljansson -luring -lxxhash -o $@
$(filter $(B)/tests/devices/%,$(TEST_PROGRAMS)): $(call objs,tests/devices/t_driver.c)
tests: $(TEST_PROGRAMS) guest
