# Targets: see "make help".  Everything built stands in build/.

CC       ?= gcc
AR       ?= ar
PREFIX   ?= /usr/local
BUILD    ?= build

WARN      = -Wall -Wextra -Wpointer-arith -Wno-unused-parameter -Werror
HARDEN    = -g -O2 -fstack-protector-strong -Wformat -Werror=format-security \
            -Wdate-time -D_FORTIFY_SOURCE=2 -fPIC
LDHARDEN  = -Wl,-z,relro -Wl,-z,now

CFLAGS   ?= $(HARDEN)
LDFLAGS  ?= $(LDHARDEN)

PGINC    := -I$(shell pg_config --includedir 2>/dev/null || echo /usr/include/postgresql)
VERSION  := 0.1.0

ALL_CFLAGS = $(CFLAGS) $(WARN) -D_GNU_SOURCE -DREFERRAL_VERSION='"$(VERSION)"' \
             -Isrc/core

CORE_SRC   = $(wildcard src/core/*.c)
WORKER_SRC = $(wildcard src/worker/*.c)
CTL_SRC    = $(wildcard src/ctl/*.c)
TEST_SRC   = $(wildcard t/core/*_test.c)
FUZZ_SRC   = $(wildcard t/core/*_fuzz.c)

CORE_OBJ   = $(CORE_SRC:%.c=$(BUILD)/%.o)
WORKER_OBJ = $(WORKER_SRC:%.c=$(BUILD)/%.o)
CTL_OBJ    = $(CTL_SRC:%.c=$(BUILD)/%.o)
TESTS      = $(TEST_SRC:t/core/%.c=$(BUILD)/t/%)
FUZZERS    = $(FUZZ_SRC:t/core/%.c=$(BUILD)/fuzz/%)

MODULE     = $(BUILD)/ngx_http_referral_module.so


.PHONY: all module worker ctl test test-asan fuzz install clean help core-tests

all: module worker ctl

module: $(MODULE)
worker: $(BUILD)/referral-worker
ctl: $(BUILD)/referralctl

$(MODULE): config $(wildcard src/module/*.[ch]) $(wildcard src/core/*.[ch])
	tools/build-module

$(BUILD)/libreferral.a: $(CORE_OBJ)
	rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/referral-worker: $(WORKER_OBJ) $(BUILD)/libreferral.a
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lpq -lhiredis -lcrypto -lpthread

$(BUILD)/referralctl: $(CTL_OBJ) $(BUILD)/libreferral.a
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lpq -lhiredis -ljansson -lcrypto -lpthread

$(BUILD)/src/worker/%.o $(BUILD)/src/ctl/%.o: ALL_CFLAGS += $(PGINC)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

core-tests: $(TESTS)

$(BUILD)/t/%: t/core/%.c $(BUILD)/libreferral.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka -lcrypto -lpthread

$(BUILD)/fuzz/%: t/core/%.c $(CORE_SRC)
	@mkdir -p $(@D)
	clang -g -O1 -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Isrc/core \
	    -o $@ $^ -lcrypto -lpthread

clean:
	rm -rf $(BUILD)

-include $(CORE_OBJ:.o=.d) $(WORKER_OBJ:.o=.d) $(CTL_OBJ:.o=.d)
