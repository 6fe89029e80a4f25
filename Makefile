# Versions of the tools that are not in go.mod, each in this one place.
CLANG_VERSION ?= 19
GOLANGCI_VERSION ?= v2.15.0
GOTESTSUM_VERSION ?= v1.13.0

CLANG ?= clang-$(CLANG_VERSION)
CLANG_FORMAT ?= clang-format-$(CLANG_VERSION)
LLVM_STRIP ?= llvm-strip-$(CLANG_VERSION)
GOLANGCI ?= go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
GOTESTSUM ?= go run gotest.tools/gotestsum@$(GOTESTSUM_VERSION)
TESTFLAGS ?= -count=1 -p 1 -timeout 30m
FUZZTIME ?= 10s

GENERATED = tracer/bpf_bpfel.go tracer/bpf_bpfel.o tracer/bpftest_bpfel_test.go tracer/bpftest_bpfel_test.o

.DEFAULT_GOAL := build

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# finwait without the agent is smaller in memory, and quicker to start; it runs
# finwait-serve, which is all of it, as `finwait serve`.
build: ## Build ./finwait and ./finwait-serve; needs Go alone
	CGO_ENABLED=0 go build -trimpath -tags noserve -o finwait ./cmd/finwait
	CGO_ENABLED=0 go build -trimpath -o finwait-serve ./cmd/finwait

demo: build ## Build and show live transitions (root)
	./finwait trace --demo --duration 10s

test: ## Run all tests; those that need root are skipped without
	go test $(TESTFLAGS) ./...

test-twice: ## Run all tests, and once more those that fail, if they are few
	$(GOTESTSUM) --format pkgname --format-hide-empty-pkg --hide-summary=skipped \
		--rerun-fails=1 --rerun-fails-max-failures=6 --packages=./... -- $(TESTFLAGS)

test-vm: ## Run what tells the most on other kernels, or on KERNEL, in virtual machines
	./test/vm/run.sh $(KERNEL)

test-vm-all: ## The same with all that can be run there: one or two hours
	RUNS=runs-all ./test/vm/run.sh $(KERNEL)

vm-shell: ## Open a shell in a virtual machine with Linux KERNEL
	./test/vm/run.sh --shell $(KERNEL)

test-systemd: ## Install the package in a virtual machine that runs systemd (Debian, root)
	./test/install.sh mmdebstrap
	./test/deploy/systemd.sh

packages: ## Build the .deb and the .rpm into dist/
	./deploy/packages/build.sh dist

dashboard: ## Generate the Grafana dashboard
	go test ./deploy/grafana -run TestDashboard -update

lint: ## Check formatting, vet, other systems, linters, shell scripts
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "not formatted: run 'make fmt'"; exit 1; }
	$(CLANG_FORMAT) --dry-run -Werror bpf/*.c bpf/*.h
	go vet ./...
	go vet -tags noserve ./cmd/finwait
	GOOS=darwin go vet ./...
	GOOS=linux GOARCH=s390x go build ./...
	GOOS=linux GOARCH=arm64 go vet ./...
	$(GOLANGCI) run
	shellcheck .ci/run test/all.sh test/install.sh test/collector/build.sh
	shellcheck -xa test/vm/run.sh test/vm/init test/vm/checks/* test/deploy/systemd.sh
	shellcheck test/deploy/install.sh test/deploy/systemd/check deploy/packages/build.sh deploy/packages/deb/* deploy/packages/rpm/*

fmt: ## Format Go and C
	gofmt -w .
	$(CLANG_FORMAT) -i bpf/*.c bpf/*.h

generate: ## Compile bpf/ into tracer/ (needs clang and libbpf headers)
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(LLVM_STRIP) \
	BPF2GO_CFLAGS="-I/usr/include/$$(uname -m)-linux-gnu" go generate ./gen.go

check-generate: generate ## Fail if the committed objects are not what bpf/ compiles to
	@git diff --exit-code -- $(GENERATED) || { echo "bpf/ and tracer/ differ: run 'make generate' and commit"; exit 1; }

fuzz: ## Fuzz everything that parses, FUZZTIME each
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
		done; \
	done

bench: bench-events bench-census bench-doctor bench-micro ## Run all benchmarks (root, and nothing else going on)

bench-events: build ## Measure what finwait and other tracers cost under load (Debian, root)
	./test/install.sh libbpf-tools bpftrace linux-perf util-linux iproute2
	go run ./test/bench -finwait ./finwait $(BENCHFLAGS)

bench-census: build ## Measure finwait count, netstat and ss on up to a million sockets (Debian, root)
	./test/install.sh net-tools iproute2
	go run ./test/bench -census -finwait ./finwait $(CENSUSFLAGS)

bench-doctor: build ## Measure what finwait doctor takes on up to 100,000 sockets (root)
	go run ./test/bench -doctor -finwait ./finwait -sizes 1000,100000 $(DOCTORFLAGS)

bench-records: build ## Measure what records take as JSON (root; some minutes)
	go run ./test/bench -records -finwait ./finwait $(RECORDSFLAGS)

bench-micro: ## Run the Go benchmarks (root for those of the kernel side)
	go test -p 1 -run '^$$' -bench . -benchmem ./...

bench-smoke: build ## Run every benchmark once, so that they stay alive
	./test/install.sh net-tools iproute2
	go run ./test/bench -finwait ./finwait -rounds 1 -spell 200ms -patterns all -tools 'finwait trace'
	go run ./test/bench -census -finwait ./finwait -rounds 1 -sizes 100
	go run ./test/bench -doctor -finwait ./finwait -rounds 1 -sizes 100
	go test -p 1 -run '^$$' -bench . -benchtime 1x ./...

clean: ## Remove what was built
	rm -rf finwait finwait-serve dist

.PHONY: help build demo test test-twice test-vm test-vm-all vm-shell test-systemd packages dashboard lint fmt generate check-generate fuzz bench bench-events bench-census bench-doctor bench-records bench-micro bench-smoke clean
