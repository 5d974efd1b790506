# The one list of commands. On a fresh machine `make test` or `make build` is all there is to do.
.PHONY: test setup build lint

test: setup lint ## formatting, lints, advisories and all tests
	cargo test --release

setup: ## libtorch, once; see .ci/setup
	@.ci/setup

build: setup
	cargo build --release

lint: setup
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	@.ci/advisories
