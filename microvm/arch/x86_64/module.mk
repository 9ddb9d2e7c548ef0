# SPDX-License-Identifier: Apache-2.0
# The DSDT: C preprocessor (numbers from layout.h), iasl, C array.
DSDT := $(B)/microvm/arch/x86_64/dsdt
$(DSDT).hex: microvm/arch/x86_64/dsdt.asl microvm/arch/x86_64/layout.h
	$(Q)mkdir -p $(@D)
	$(call say,IASL,$<)$(CC) -E -P -x assembler-with-cpp $< -o $(DSDT).i.asl && \
		iasl -p $(DSDT) -tc $(DSDT).i.asl >$(DSDT).log 2>&1 || { cat $(DSDT).log; exit 1; }
$(B)/microvm/arch/x86_64/acpi.o: $(DSDT).hex
CFLAGS_microvm/arch/x86_64/acpi.c := -I$(dir $(DSDT))
