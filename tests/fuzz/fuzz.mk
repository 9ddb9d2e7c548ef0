# SPDX-License-Identifier: Apache-2.0
# libFuzzer targets, one per parser, built where clang has its runtime. tests/run.sh runs
# each for a few seconds; by hand, for longer:
#   make fuzz && build/tests/fuzz/fuzz_state -max_total_time=600 some-corpus-folder/
FUZZ_CC ?= clang
FUZZ_RT := $(wildcard $(shell $(FUZZ_CC) -print-runtime-dir 2>/dev/null)/libclang_rt.fuzzer*.a)
FUZZ_FLAGS := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined \
	-Wno-gnu-variable-sized-type-not-at-end -O1 -g
FUZZ_OBJ := $(B)/tests/fuzz/obj
FUZZ_O := $(patsubst %.c,$(FUZZ_OBJ)/%.o,$(filter-out snapshot/sandbox.c,microvm/kvm.c $(wildcard microvm/base/*.c snapshot/*.c devices/*.c)) api/json.c api/error.c api/vmjson.c \
	api/http.c api/spawn.c api/vmfds.c api/tap.c $(filter-out api/fc/main.c api/fc/no_tls.c,$(wildcard api/fc/*.c)) microvm/cpu_report.c $(patsubst %,microvm/arch/$(ARCH)/%.c,cpu_report cpu_features vcpu_state))
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_PROGRAMS := $(if $(FUZZ_RT),$(patsubst %.c,$(B)/%,$(FUZZ_SRC)))
OBJECTS += $(FUZZ_O) $(patsubst %.c,$(FUZZ_OBJ)/%.o,$(FUZZ_SRC))

$(FUZZ_OBJ)/%.o: %.c
	$(Q)mkdir -p $(@D)
	$(call say,FUZZCC,$<)$(FUZZ_CC) $(filter-out -D_FORTIFY_SOURCE=2,$(BASE_CFLAGS)) $(FUZZ_FLAGS) -c $< -o $@
$(FUZZ_PROGRAMS): $(B)/%: $(FUZZ_OBJ)/%.o $(FUZZ_O)
	$(call say,LD,$@)$(FUZZ_CC) -pthread -fsanitize=fuzzer,address,undefined $^ -luring -lxxhash -llz4 -ljansson -lmicrohttpd -o $@

.PHONY: fuzz fuzz-smoke
fuzz: $(FUZZ_PROGRAMS)
fuzz-smoke: fuzz
	$(Q)tests/run.sh $(B) fuzz/
