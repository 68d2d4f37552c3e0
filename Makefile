# `make demo` and `make test` do all the set-up on a fresh Debian machine with root, git, make and rustup's stable Rust.
SHELL := /bin/bash
CARGO ?= cargo
# As setup.sh: cargo's own directory, and that of nft and its like, are often not on root's PATH.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/sbin:/sbin
BIN := target/debug
STATE_DIR ?= /var/lib/causeway
# The folder of the sources is in no program.
REMAP := --remap-path-prefix=$(CURDIR)=/causeway --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo
PACKAGES ?= --workspace

# The image of node/deploy: a static program for glibc's target, since the agent tunes glibc's allocator.
IMAGE_TARGET := $(shell uname -m)-unknown-linux-gnu
IMAGE_PROFILE ?= release
IMAGE ?= target/causeway-image.tar
IMAGE_BIN := target/$(IMAGE_TARGET)/$(IMAGE_PROFILE:dev=debug)

.PHONY: help demo down test test-full lint build release reproducible sbom image

help: ## Show this list
	@awk -F': .*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Bring up three nodes, run a Service on them and show each step
	@./setup.sh run
	@$(CARGO) build --workspace --locked
	@STATE_DIR=$(STATE_DIR) IMAGE=$(IMAGE) examples/demo.sh $(DEMO_FLAGS)

down: ## Remove the cluster and everything it made
	@$(BIN)/causeway down --state-dir $(STATE_DIR)

build: ## Build all programs into target/debug
	@./setup.sh build
	@$(CARGO) build --workspace --locked

release: ## Build all programs into target/release (or PACKAGES="-p …"): the same bits in every folder
	@./setup.sh build
	@RUSTFLAGS="$(REMAP)" $(CARGO) build --release --locked $(PACKAGES)

reproducible: ## Build the CNI plugin (or PACKAGES="-p …") twice, in two folders, and compare the programs
	@tests/reproducible.sh $(if $(filter command line,$(origin PACKAGES)),$(PACKAGES),-p cni-plugin)

sbom: build ## Write what the programs are made of to target/causeway.cdx.json (CycloneDX)
	@$(BIN)/sbom > target/causeway.cdx.json

image: ## Build the image of node/deploy, without a registry, into target/causeway-image.tar
	@./setup.sh build
	@$(CARGO) build --workspace --locked --bin causeway-cluster
	@CARGO_TARGET_$(shell uname -m | tr a-z A-Z)_UNKNOWN_LINUX_GNU_RUSTFLAGS="-Ctarget-feature=+crt-static -Cstrip=symbols $(REMAP)" \
	  $(CARGO) build --locked --profile $(IMAGE_PROFILE) --target $(IMAGE_TARGET) -p node -p cni-plugin
	@$(BIN)/causeway-cluster image build --tag causeway:v0.1.0 --env PATH=/ --archive $(IMAGE) \
	  --from-binary $(IMAGE_BIN)/causeway --file $(IMAGE_BIN)/causeway-cni
	@ls -l $(IMAGE)

lint: ## Formatting and clippy, as CI wants them; cargo-deny where it is installed
	@./setup.sh lint
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@# Where it is not, the test supply_chain checks the same lists.
	@! $(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) deny --locked check bans licenses sources

test: ## Everything that a change must pass: lint, unit tests, kernel tests, a real cluster
	@./setup.sh test
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@# All targets, so that the tests' dependencies are built once, and not first without their features.
	@$(CARGO) build --workspace --all-targets --locked
	@$(CARGO) test --workspace --locked

test-full: ## test, and what is too long for every change
	@$(MAKE) test
	@# One after the other: faults that run together take each other's time.
	@CAUSEWAY_TEST_FULL=1 $(CARGO) test --locked -p tests --test store --test faults --test cluster -- --test-threads=1
	@for demo in 1 2 3 4 5; do $(CARGO) test --locked -p tests --test demo --test cluster --test lifecycle || exit 1; done
