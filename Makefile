# Copyright (C) The nginx referral module authors
#
# "make help" lists the targets.  Everything that is built stands in build/.

VERSION   := 0.1.0

ifeq ($(origin CC),default)
CC         = gcc
endif

# fault points, for tests (src/core/referral_fault.h); the rest is untouched

ifeq ($(FAULTS),1)
BUILD     ?= build/faults
FAULT_DEF  = -DREFERRAL_FAULTS=1
endif

BUILD     ?= build
PREFIX    ?= /usr/local
SYSCONF   ?= /etc
NGINX     ?= $(shell PATH=$$PATH:/usr/sbin:/usr/local/sbin command -v nginx)
FUZZ_TIME ?= 30
JOBS      ?= 2
TESTS     ?= $(wildcard t/*.t) t/faults/model.t
CLICKS    ?= 1000000
DURATION  ?= 600

# Debian's flags where its tools are, the same by hand elsewhere

BUILDFLAGS = DEB_BUILD_MAINT_OPTIONS=hardening=+all dpkg-buildflags --get

ifndef CFLAGS
CFLAGS    := $(shell $(BUILDFLAGS) CFLAGS 2>/dev/null || \
             echo "-g -O2 -fstack-protector-strong -fstack-clash-protection" \
             "-Wformat -Werror=format-security -fPIE")
CPPFLAGS  ?= $(shell $(BUILDFLAGS) CPPFLAGS 2>/dev/null || \
             echo "-Wdate-time -D_FORTIFY_SOURCE=2")
endif

ifndef LDFLAGS
LDFLAGS   := $(shell $(BUILDFLAGS) LDFLAGS 2>/dev/null || \
             echo "-fPIE -pie -Wl,-z,relro -Wl,-z,now")
endif

# expanded here, once: they start programs

CPPFLAGS  := $(CPPFLAGS)
PGINC     := -I$(shell pg_config --includedir 2>/dev/null || \
             echo /usr/include/postgresql)

WARN       = -Wall -Wextra -Wpointer-arith -Wno-unused-parameter -Werror

SHARE      = $(PREFIX)/share/referral
DEFINES    = -D_GNU_SOURCE -DREFERRAL_VERSION='"$(VERSION)"' \
             -DREFERRAL_SQLDIR='"$(SHARE)/sql"' $(FAULT_DEF)

ALL_CFLAGS = $(CPPFLAGS) $(CFLAGS) $(WARN) $(DEFINES) -Isrc/core
LIBS       = -lcrypto -lpthread

CORE_SRC   = $(wildcard src/core/*.c)
WORKER_SRC = $(wildcard src/worker/*.c)
CTL_SRC    = $(wildcard src/ctl/*.c)
TEST_SRC   = $(wildcard t/core/*_test.c)
FUZZ_SRC   = $(wildcard t/core/*_fuzz.c)
AID_SRC    = $(filter-out $(TEST_SRC) $(FUZZ_SRC),$(wildcard t/core/*.c))

CORE_OBJ   = $(CORE_SRC:%.c=$(BUILD)/%.o)
WORKER_OBJ = $(WORKER_SRC:%.c=$(BUILD)/%.o)
CTL_OBJ    = $(CTL_SRC:%.c=$(BUILD)/%.o)
TEST_OBJ   = $(TEST_SRC:%.c=$(BUILD)/%.o)
AID_OBJ    = $(AID_SRC:%.c=$(BUILD)/%.o)
OBJ        = $(CORE_OBJ) $(WORKER_OBJ) $(CTL_OBJ) $(TEST_OBJ) $(AID_OBJ)

CORE_TESTS = $(TEST_SRC:t/core/%.c=$(BUILD)/t/%)
AIDS       = $(AID_SRC:t/core/%.c=$(BUILD)/t/%)
FUZZERS    = $(FUZZ_SRC:t/core/%.c=$(BUILD)/fuzz/%)
FUZZ_CORE  = $(CORE_SRC:%.c=$(BUILD)/fuzz/%.o)

LIB        = $(BUILD)/libreferral.a
MODULE     = $(BUILD)/ngx_http_referral_module.so

# a short line for each step; V=1 shows the commands

ifeq ($(V),1)
step       =
else
step       = @printf '  %-5s %s\n' $(1) $(2);
endif

SANITIZE   = -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined \
             -fno-sanitize-recover=undefined


.PHONY: all module worker ctl core-tests test test-packages test-asan fuzz \
        faults-build faults faults-random faults-long bench bench-packages \
        bench-sql install clean help
.DELETE_ON_ERROR:


# written only when they change, so that what depends on them is rebuilt

remember = $(shell mkdir -p $(BUILD); echo '$(subst ','\'',$(2))' \
           | cmp -s - $(BUILD)/$(1) \
           || echo '$(subst ','\'',$(2))' > $(BUILD)/$(1))

ifneq ($(filter-out clean help test-packages bench-packages,$(or $(MAKECMDGOALS),all)),)
$(call remember,.flags,$(CC) $(ALL_CFLAGS) $(PGINC) $(LDFLAGS))
$(call remember,.nginx,$(CC) $(MODULE_CFLAGS) $(FAULT_DEF) $(if $(NGINX),\
    $(shell $(NGINX) -V 2>&1)))
endif


all: module worker ctl

help:
	@echo 'make all            module, worker and ctl'
	@echo 'make module         $(MODULE), for the nginx installed here'
	@echo 'make worker         $(BUILD)/referral-worker'
	@echo 'make ctl            $(BUILD)/referralctl'
	@echo 'make test           every test; as root, what it needs is installed'
	@echo 'make test-asan      the same with sanitizers in nginx and programs'
	@echo 'make fuzz           every fuzz target, $(FUZZ_TIME) s each'
	@echo 'make faults         processes, servers, disk and clock fail: the table'
	@echo 'make faults-random  DURATION=600 SEED=1: random pairs of faults'
	@echo 'make faults-long    CLICKS=10000000: memory and journal under load'
	@echo 'make bench          what a click costs beside what it could; JSON=1'
	@echo 'make bench-sql      how long the database and publishing take; JSON=1'
	@echo 'make FAULTS=1       the same with fault points, for tests only, in'
	@echo '                    build/faults/'
	@echo 'make install        into PREFIX ($(PREFIX)), below DESTDIR'
	@echo 'make clean          removes $(BUILD)/'
	@echo
	@echo 'CC=clang CFLAGS= LDFLAGS= BUILD= NGINX= JOBS= FUZZ_TIME= PREFIX= V=1'
	@echo 'TESTS="t/a.t t/b.t" are taken from the command line.'


module: $(MODULE)
worker: $(BUILD)/referral-worker
ctl: $(BUILD)/referralctl


$(MODULE): config tools/build-module $(wildcard src/module/*.[ch]) \
           $(wildcard src/core/*.[ch]) $(BUILD)/.nginx
	@CC='$(CC)' BUILD='$(abspath $(BUILD))' NGINX='$(NGINX)' \
	    CFLAGS='$(strip $(MODULE_CFLAGS) $(FAULT_DEF))' tools/build-module

$(LIB): $(CORE_OBJ)
	$(call step,AR,$@) rm -f $@; $(AR) rcs $@ $^

$(BUILD)/referral-worker: $(WORKER_OBJ) $(LIB)
	$(call step,LD,$@) $(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lpq -lhiredis -lcurl -lmicrohttpd $(LIBS)

$(BUILD)/referralctl: $(CTL_OBJ) $(LIB)
	$(call step,LD,$@) $(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lpq -lhiredis -ljansson $(LIBS)

$(CORE_TESTS): $(BUILD)/t/%: $(BUILD)/t/core/%.o $(LIB)
	$(call step,LD,$@) $(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

$(AIDS): $(BUILD)/t/%: $(BUILD)/t/core/%.o $(LIB)
	$(call step,LD,$@) $(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(WORKER_OBJ) $(CTL_OBJ): ALL_CFLAGS += $(PGINC)

$(OBJ): $(BUILD)/%.o: %.c $(BUILD)/.flags
	@mkdir -p $(@D)
	$(call step,CC,$<) $(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<


core-tests: $(CORE_TESTS) $(AIDS)

test-packages:
	@tools/packages test

# prove's closing line has to be the last one

test: test-packages faults-build
	@$(MAKE) --no-print-directory -j$(JOBS) all core-tests
	@REFERRAL_BUILD='$(abspath $(BUILD))' REFERRAL_NGINX='$(NGINX)' \
	    CMOCKA_MESSAGE_OUTPUT=TAP \
	    prove -j$(JOBS) --timer -It/lib $(TESTS) $(CORE_TESTS)

# the module is linked in: each dynamic one would define ngx_modules again

test-asan: test-packages
	@BUILD='$(abspath $(BUILD))' NGINX='$(NGINX)' tools/build-module --asan
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/asan CFLAGS='$(SANITIZE)' \
	    CPPFLAGS= LDFLAGS='-fsanitize=address,undefined' \
	    -j$(JOBS) worker ctl core-tests
	@REFERRAL_BUILD='$(abspath $(BUILD))/asan' REFERRAL_MODULE= \
	    REFERRAL_NGINX='$(abspath $(BUILD))/asan/nginx' REFERRAL_ASAN=1 \
	    CMOCKA_MESSAGE_OUTPUT=TAP \
	    prove -j$(JOBS) --timer -It/lib $(TESTS) \
	    $(CORE_TESTS:$(BUILD)/%=$(BUILD)/asan/%)


# every scenario, one after the other; SCENARIOS="..." are some of them

FAULT_BUILD = $(BUILD)/faults
FAULT_TABLE = $(BUILD)/faults.table
FAULT_ENV   = REFERRAL_BUILD='$(abspath $(FAULT_BUILD))' REFERRAL_NGINX='$(NGINX)'

faults-build:
	@$(MAKE) --no-print-directory FAULTS=1 BUILD=$(FAULT_BUILD) -j$(JOBS) \
	    all core-tests

faults: test-packages faults-build
	@rm -f $(FAULT_TABLE)
	@rc=0; $(FAULT_ENV) REFERRAL_FAULTS_TABLE='$(abspath $(FAULT_TABLE))' \
	    REFERRAL_SCENARIOS='$(SCENARIOS)' \
	    prove --timer -It/lib $(wildcard t/faults/*.t) || rc=1; \
	echo; perl -It/lib -MReferral::Test::Scenario \
	    -e 'print Referral::Test::Scenario::table(shift)' \
	    $(FAULT_TABLE); exit $$rc

faults-random: test-packages faults-build
	@$(FAULT_ENV) DURATION='$(DURATION)' SEED='$(SEED)' \
	    perl -It/lib t/faults/random.pl


# memory and journal under load; CLICKS=10000000 takes some minutes

faults-long: test-packages
	@$(MAKE) --no-print-directory -j$(JOBS) all
	@REFERRAL_BUILD='$(abspath $(BUILD))' REFERRAL_NGINX='$(NGINX)' \
	    CLICKS=$(CLICKS) perl -It/lib t/faults/long.pl


# BENCH="--fast click" are options and groups, see tools/bench --help

bench-packages:
	@tools/packages bench >&2

bench: bench-packages
	@$(MAKE) --no-print-directory -j$(JOBS) all core-tests >&2
	@BUILD='$(abspath $(BUILD))' NGINX='$(NGINX)' tools/bench \
	    $(if $(JSON),--json) $(BENCH)

bench-sql: test-packages
	@$(MAKE) --no-print-directory -j$(JOBS) all >&2
	@REFERRAL_BUILD='$(abspath $(BUILD))' REFERRAL_NGINX='$(NGINX)' \
	    tools/bench-sql $(if $(JSON),--json) $(BENCH)


fuzz: $(FUZZERS)
	@for target in $(FUZZERS:$(BUILD)/fuzz/%=%); do \
	    mkdir -p $(BUILD)/fuzz/corpus/$$target; \
	    echo "$$target, $(FUZZ_TIME) s"; \
	    (cd $(BUILD)/fuzz && ./$$target -max_total_time=$(FUZZ_TIME) \
	        -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
	        -artifact_prefix=$$target- corpus/$$target \
	        > $$target.log 2>&1) \
	    || { tail -n 40 $(BUILD)/fuzz/$$target.log; \
	         echo "$$target: failed, see $(BUILD)/fuzz/$$target.log"; exit 1; }; \
	    grep number_of_executed_units $(BUILD)/fuzz/$$target.log; \
	done; echo 'fuzz: every target passed'

$(FUZZERS): $(BUILD)/fuzz/%: $(BUILD)/fuzz/t/core/%.o $(FUZZ_CORE)
	$(call step,LD,$@) clang -fsanitize=fuzzer,address,undefined -o $@ $^ $(LIBS)

$(BUILD)/fuzz/%.o: %.c
	@mkdir -p $(@D)
	$(call step,CC,$<) clang -g -O1 -fsanitize=fuzzer-no-link,address,undefined \
	    -fno-sanitize-recover=undefined $(WARN) $(DEFINES) -Isrc/core \
	    -MMD -MP -c -o $@ $<


MODULES_PATH = $(shell $(NGINX) -V 2>&1 | \
               sed -n 's/.*--modules-path=\([^ ]*\).*/\1/p' | grep . || \
               echo /usr/lib/nginx/modules)

install: all
	@test -z '$(FAULT_DEF)' || \
	    { echo 'a build with fault points is not to be installed'; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SHARE)/sql \
	    $(DESTDIR)$(MODULES_PATH) $(DESTDIR)$(SYSCONF)/referral \
	    $(DESTDIR)$(PREFIX)/lib/systemd/system \
	    $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
	install -m 755 $(BUILD)/referral-worker $(BUILD)/referralctl \
	    $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(MODULE) $(DESTDIR)$(MODULES_PATH)
	install -m 644 sql/[0-9]*.sql $(DESTDIR)$(SHARE)/sql
	install -m 644 README.md $(DESTDIR)$(SHARE)
	sed 's#@PREFIX@#$(PREFIX)#g; s#@SYSCONF@#$(SYSCONF)#g' \
	    contrib/referral-worker.service \
	    > $(DESTDIR)$(PREFIX)/lib/systemd/system/referral-worker.service
	install -m 644 contrib/sysusers.conf \
	    $(DESTDIR)$(PREFIX)/lib/sysusers.d/referral.conf
	install -m 644 contrib/tmpfiles.conf \
	    $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/referral.conf
	test -e $(DESTDIR)$(SYSCONF)/referral/referral-worker.conf || \
	    install -m 644 contrib/referral-worker.conf \
	    $(DESTDIR)$(SYSCONF)/referral/referral-worker.conf

clean:
	rm -rf $(BUILD)


-include $(OBJ:.o=.d) $(FUZZ_CORE:.o=.d)
