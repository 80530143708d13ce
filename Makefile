# aaunit: build, check and test. "make help" lists what there is.
#
# It needs make and Go. Everything else is installed by the targets that need
# it, from Debian. What is made goes to build/.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO := $(or $(shell command -v $(or $(GO),go) 2>/dev/null),$(wildcard /usr/local/go/bin/go),go)
export GO
export PATH := $(dir $(GO)):$(PATH)

# What a package or program is called, and the time of everything in it. Both
# come from git. Where there is none the version is 0.1.0~dev, and the time that of
# the last entry of the changelog.
describe := $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null)
VERSION ?= $(or $(shell echo '$(describe)' | sed -n 's/^v\([^-]*\)-\([0-9]*\)-g/\1+\2.g/p; s/^v\([^-]*\)$$/\1/p'),0.1.0~dev)
export VERSION
export SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),$(shell date -d "$$(sed -n 's/^ -- .*>  //p' packaging/deb/changelog | head -n 1)" +%s))
ARCH := $(shell $(GO) env GOARCH 2>/dev/null)
export ARCH
DEB = build/deb/aaunit_$(VERSION)-1_$(ARCH).deb

# The guests that vm tests on. PKG and RUN choose tests, as in go test -run RUN
# PKG. Those of GUEST_PACKAGES run inside a guest; those of HOST_PACKAGES drive
# one from outside.
SUITES := bookworm trixie
SUITE ?= $(SUITES)
GUEST_PACKAGES := ./internal/apparmor ./internal/sockopt ./internal/units ./test/vm/guest
HOST_PACKAGES := ./test/vm/host
PKG ?= $(GUEST_PACKAGES) $(HOST_PACKAGES)
RUN ?=
# LONG=yes adds the tests of a package's life, of storms, crashes and hostile
# input, which take an hour and more (the tag long).
LONG ?=
# SHARE=yes runs each test on one of the suites, but for those that say "On every
# suite.", which takes little more than half the time.
SHARE ?=
VM_TIMEOUT ?= $(if $(LONG),240m,60m)
vm_tags = vm$(if $(LONG),$(comma)long)
comma := ,

# Not git's word on the checkout: it may be another user's, or there is no git.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)
# Static programs that come out the same anywhere.
build := CGO_ENABLED=0 $(GO) build -trimpath
ldflags := -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22
	@echo '  make vm SUITE=trixie PKG=./test/vm/guest RUN=TestAFailedAttachIsUndone'

# Every target begins here.
.PHONY: need-go
need-go:
	@tools/need-go $(GO)

##
## What people start
##

.PHONY: test
test: need-go setup check generate-check prometheus page lint-deb demo ## everything that has to pass, from a bare Debian on
	@$(MAKE) --no-print-directory vm SHARE=yes

.PHONY: test-all
test-all: need-go setup check generate-check prometheus page lint lint-deb demo ## the same on every suite, the slower linters, and the tests that take long
	@$(MAKE) --no-print-directory vm LONG=yes
	@$(MAKE) --no-print-directory vm-crash

.PHONY: check
check: need-go setup-check fmt vet staticcheck man sh race ansible ## what needs no guest: formatting, linters, unit tests, manual

.PHONY: deb
deb: need-go programs docs build/tools/nfpm ## the Debian package, in build/deb
	rm -rf build/deb && mkdir -p build/deb
	build/tools/nfpm package --config packaging/nfpm.yaml --packager deb --target $(DEB)

.PHONY: collection
collection: ## the Ansible collection, in build
	@tools/need-packages ansible-core
	@tools/ansible build

.PHONY: setup
setup: need-go setup-check setup-vm ## install the Debian packages that building and testing need

.PHONY: clean
clean: ## remove build/ (guest images are kept elsewhere, see test/vm/README.md)
	rm -rf build

.PHONY: demo
demo: need-go setup-vm deb build/agent ## the main job in a throw-away machine, from install to undo
	@$(GO) run ./test/vm/demo $(DEB) build/agent

##
## Checks
##

.PHONY: setup-check
setup-check: need-go
	@tools/need-packages ca-certificates git gcc libc6-dev dbus-daemon apparmor mandoc shellcheck

.PHONY: fmt
fmt: need-go
	@unformatted=$$(gofmt -l cmd internal packaging test) && test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }

# The tests for guests are built with the tag vm.
.PHONY: vet
vet: need-go
	$(GO) vet ./...
	$(GO) vet -tags vm ./...
	$(GO) vet -tags vm,long ./...
	$(GO) vet -tags page ./test/page
	$(GO) vet -tags crash ./cmd/aaunitd

# ST1005: our error texts may begin with the name of a setting ("Unit= is …").
.PHONY: staticcheck
staticcheck: need-go build/tools/staticcheck
	build/tools/staticcheck -checks inherit,-ST1005 ./...
	build/tools/staticcheck -checks inherit,-ST1005 -tags vm ./...
	build/tools/staticcheck -checks inherit,-ST1005 -tags vm,long ./...
	build/tools/staticcheck -checks inherit,-ST1005 -tags page ./test/page
	build/tools/staticcheck -checks inherit,-ST1005 -tags crash ./cmd/aaunitd

.PHONY: race
race: need-go
	CGO_ENABLED=1 $(GO) test -race ./...

# mandoc looks for pages that are not installed, and finds the lines that come
# from the catalogue of reasons long.
# What is asked of Prometheus, as Prometheus itself understands it. Debian's package
# is unpacked and not installed: that would start a server.
.PHONY: prometheus
prometheus: need-go build/tools/prometheus ## alert rules with their tests, and the metrics' text, by promtool
	cd packaging/prometheus && $(CURDIR)/build/tools/prometheus/usr/bin/promtool check rules aaunit.rules.yml
	cd packaging/prometheus && $(CURDIR)/build/tools/prometheus/usr/bin/promtool test rules aaunit.rules.test.yml
	build/tools/prometheus/usr/bin/promtool check metrics < internal/metrics/testdata/metrics.prom

build/tools/prometheus:
	@rm -rf $@ && mkdir -p $@
	@tools/unpack-package prometheus $@

# The report's page in Chromium; pictures of it are left in build/page.
.PHONY: page
page: need-go ## the report's page, looked at in a real browser (build/page)
	@tools/need-packages chromium fonts-dejavu-core
	$(GO) test -tags page -count=1 ./test/page

.PHONY: man
man: need-go build/man/aaunit-reasons.7
	@if mandoc -T lint -W style packaging/man/* build/man/aaunit-reasons.7 2>/dev/null | \
		grep -v -e 'referenced manual not found' -e 'aaunit-reasons.*longer than 80 bytes'; then exit 1; fi

.PHONY: sh
sh:
	@shellcheck .ci/run tools/need-* tools/share tools/unpack-package tools/ansible packaging/deb/postinst packaging/deb/prerm packaging/deb/postrm packaging/deb/notices

# See tools/ansible for what of ansible-test does without a network.
.PHONY: ansible
ansible:
	@tools/need-packages ansible-core ansible-lint python3-pytest pycodestyle shellcheck
	@tools/ansible check

# Building golangci-lint takes minutes, so it is not part of check.
.PHONY: lint
lint: need-go build/tools/golangci-lint ## golangci-lint, with .golangci.yml
	build/tools/golangci-lint run ./...

.PHONY: lint-deb
lint-deb: need-go deb ## lintian on the package
	@tools/need-packages lintian
	lintian --fail-on error,warning --info $(DEB)

##
## Guests
##

.PHONY: setup-vm
setup-vm: need-go
	@tools/need-packages ca-certificates mmdebstrap qemu-system-x86 qemu-utils e2fsprogs openssh-client \
		$(if $(LONG),ansible-core) $(if $(filter-out 0,$(shell id -u)),fakeroot uidmap)

# A guest waits much: the suites run side by side, and each prints what it has to
# say when it has ended. One suite alone prints as it goes.
#
# host/ upgrades to the package of a higher version. It is made first, since it
# goes through the same build/deb.
.PHONY: vm
vm: need-go setup-vm build/agent build/aaunitd-crash build/vmexec $(if $(filter $(HOST_PACKAGES),$(PKG)),build/tools/prometheus) ## the tests on real machines (SUITE=, PKG=, RUN=, LONG=)
ifneq ($(LONG),)
	@$(MAKE) --no-print-directory VERSION='$(VERSION)+newer' deb
	mv build/deb/*.deb build/newer-package
endif
	@$(MAKE) --no-print-directory deb
	@$(MAKE) --no-print-directory -j$(words $(SUITE)) $(if $(word 2,$(SUITE)),--output-sync=target) $(SUITE:%=vm-%)

# -p 1: one guest at a time for each suite. Of the adapters' tests, those named
# VM need a guest; the others belong to check.
go-test-vm = $(GO) test -tags $(vm_tags) -count=1 -v -p 1 -timeout $(VM_TIMEOUT) -run
adapters = $(filter ./internal/%,$(filter $(GUEST_PACKAGES),$(PKG)))
inside = $(filter ./test/%,$(filter $(GUEST_PACKAGES),$(PKG)))
part_bookworm = 0
part_trixie = 1
# $(call chosen,suite,prefix,directories,otherwise)
chosen = $(if $(SHARE),"$$(tools/share $(part_$1) $2 $(addsuffix /*_test.go,$3))",'$4')
.PHONY: $(SUITES:%=vm-%)
$(SUITES:%=vm-%): export AAUNIT_VM_PAYLOAD = $(CURDIR)/$(DEB):$(CURDIR)/build/agent:$(CURDIR)/build/aaunitd-crash
$(SUITES:%=vm-%): vm-%:
ifneq ($(adapters),)
	AAUNIT_VM_SUITE=$* CGO_ENABLED=0 $(go-test-vm) $(call chosen,$*,TestVM,$(adapters),$(or $(RUN),VM)) -exec $(CURDIR)/build/vmexec $(adapters)
endif
ifneq ($(inside),)
	AAUNIT_VM_SUITE=$* CGO_ENABLED=0 $(go-test-vm) $(call chosen,$*,Test,$(inside),$(RUN)) -exec $(CURDIR)/build/vmexec $(inside)
endif
ifneq ($(filter $(HOST_PACKAGES),$(PKG)),)
	AAUNIT_VM_SUITE=$* $(if $(LONG),AAUNIT_VM_PAYLOAD=$$AAUNIT_VM_PAYLOAD:$(CURDIR)/build/newer-package) \
		$(go-test-vm) $(call chosen,$*,Test,$(HOST_PACKAGES),$(RUN)) $(filter $(HOST_PACKAGES),$(PKG))
endif

# LONG=yes kills aaunitd, and cuts the power, once at each kind of step.
.PHONY: vm-crash
vm-crash: ## kill aaunitd at every single step, and cut the machine's power at each kind of step (SUITE=)
	@AAUNIT_CRASH=all $(MAKE) --no-print-directory vm LONG=yes PKG='./test/vm/guest ./test/vm/host' RUN='TestKilledAtAnyStep|TestPowerCutAtAnyStep'

# Times mean nothing on an emulated machine; the ratios are measured in one run.
# BENCH chooses parts: attach, gate, check, proof, sockopts, verify, start, policy, many.
# It is a pattern, so that BENCH='verify|start' chooses two.
BENCH ?= .
.PHONY: bench
bench: need-go setup-vm deb build/agent build/aaunitd-crash build/vmexec ## measure in a guest, against a baseline in the same run, into build/bench (SUITE=)
	@mkdir -p build/bench
	AAUNIT_VM_SUITE=$(firstword $(SUITE)) AAUNIT_VM_PAYLOAD=$(CURDIR)/$(DEB):$(CURDIR)/build/agent:$(CURDIR)/build/aaunitd-crash CGO_ENABLED=0 \
		AAUNIT_VM_RESULT=$(CURDIR)/build/bench/$(firstword $(SUITE)).json \
		$(GO) test -tags vm -count=1 -v -run '^$$' -bench 'Aaunit/($(BENCH))' -benchtime 1x -timeout 120m -exec $(CURDIR)/build/vmexec ./test/vm/guest
	@$(MAKE) --no-print-directory bench-report

# Time and memory for each host are to be the same, whatever their number.
.PHONY: bench-report
bench-report: need-go ## measure a merged report of 500 and of 5000 hosts, and answers of a compiled policy
	$(GO) test -run '^$$' -bench Merge -benchtime 3x ./internal/report
	$(GO) test -run '^$$' -bench 'File|Network|Proof|Witness' ./internal/apparmor/policydb

##
## What is generated and committed: the BPF object, and the table of names of socket
## options. Building needs neither clang nor the kernel's headers.
##

# Debian 12 and 13 both have this version, and the source includes nothing, so the
# object comes out the same on both, byte by byte.
BPF_CLANG := 19
BPF_CLANG_VERSION := 19.1.7
generated = internal/sockopt/bpf_bpfel.go internal/sockopt/bpf_bpfeb.go internal/sockopt/bpf_bpfel.o internal/sockopt/bpf_bpfeb.o
bpf2go = GOPACKAGE=sockopt build/tools/bpf2go -cc clang-$(BPF_CLANG) -strip llvm-strip-$(BPF_CLANG) -target bpfel,bpfeb \
	-type seen_key -type seen_value -type allow_key -type settings -type lost \
	-cflags '-O2 -Wall -Wextra -Werror -mcpu=v3' -output-dir $1 bpf internal/sockopt/bpf/sockopt.bpf.c

.PHONY: setup-generate
setup-generate: need-go
	@tools/need-packages clang-$(BPF_CLANG) llvm-$(BPF_CLANG)
	@clang-$(BPF_CLANG) --version | grep -q ' $(BPF_CLANG_VERSION) ' || \
		{ echo "cannot generate the BPF object: it is made with clang $(BPF_CLANG_VERSION), and clang-$(BPF_CLANG) is another; see internal/sockopt/bpf"; exit 1; }

.PHONY: generate
generate: need-go setup-generate build/tools/bpf2go ## make the BPF object anew (internal/sockopt)
	@$(call bpf2go,internal/sockopt)

.PHONY: generate-check
generate-check: need-go setup-generate build/tools/bpf2go ## compare the committed BPF object with what its source gives, byte by byte
	@rm -rf build/generated && mkdir -p build/generated
	@$(call bpf2go,build/generated) >/dev/null
	@for f in $(generated); do cmp "$$f" "build/generated/$${f##*/}" || \
		{ echo "$$f is not what its source gives: make generate"; exit 1; }; done

##
## What is built. go build knows best what is out of date: it is always asked.
##

.PHONY: programs build/agent build/aaunitd-crash build/vmexec
programs: need-go
	$(build) $(ldflags) -o build/bin/ ./cmd/aaunitd ./cmd/aaunitctl ./cmd/aaunit-sockopts ./cmd/aaunit-metrics

build/agent: need-go
	$(build) -o $@ ./test/vm/agent

# The daemon that a test can kill on the way: never part of the package.
build/aaunitd-crash: need-go
	$(build) -tags crash $(ldflags) -o $@ ./cmd/aaunitd

build/vmexec: need-go
	$(build) -o $@ ./test/vm/vmexec

build/tools/%: tools/go.mod tools/go.sum | need-go
	$(GO) build -C tools -o ../$@ $$($(GO) -C tools list -f '{{.ImportPath}}' tool | grep '/$*$$')

build/tools/golangci-lint: tools/golangci-lint/go.mod | need-go
	$(GO) build -C tools/golangci-lint -o ../../$@ tool

.PHONY: docs build/man/aaunit-reasons.7
docs: programs build/man/aaunit-reasons.7
	rm -rf build/completion build/doc && mkdir -p build/completion build/doc
	for shell in bash zsh fish; do build/bin/aaunitctl completion $$shell > build/completion/$$shell || exit; done
	cp packaging/man/* build/man
	gzip -9 -n -f build/man/*.[1-8]
	sed '1s/([^)]*)/($(VERSION)-1)/' packaging/deb/changelog | gzip -9 -n > build/doc/changelog.Debian.gz
	packaging/deb/notices build/bin/aaunitd build/bin/aaunitctl build/bin/aaunit-sockopts build/bin/aaunit-metrics > build/doc/NOTICES
	gzip -9 -n build/doc/NOTICES

build/man/aaunit-reasons.7: need-go
	@mkdir -p build/man
	$(GO) run ./packaging/reasons "$$(LC_ALL=C date -u -d @$(SOURCE_DATE_EPOCH) '+%B %-d, %Y')" > $@
