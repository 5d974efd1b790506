# The one list of commands. On a fresh machine `make quickstart` or `make test` is all there is to do.
.PHONY: quickstart test test-processors test-faults test-mounts test-gpu test-s3 setup build lint bench-sam bench-train bench-engine bench-refine bench-pixels

quickstart: build ## sets up, builds and runs all stages on the embedded data
	target/release/s2c-pipe run pipelines/quickstart.toml

test: setup lint ## formatting, lints, advisories and all tests
	cargo test --release

test-processors: setup ## all tests as on other x86-64 processors; S2C_SIMD=portable or avx2 holds our own arithmetic to that
	@.ci/test-processors

test-mounts: build ## file systems that are mounted one after the other at one path; needs root and mksquashfs
	cargo test --release --test it mounts:: -- --ignored

test-faults: build test-mounts ## the engine under faults, with 200 kills of `run` and of commands on its cache; the quickstart, killed 20 times; mounts, as root
	S2C_FAULTS=200 cargo test --release --test it -- faults:: kills:: --nocapture
	.ci/kill-quickstart 20

# What computes: against golden tensors, and twice to the same bytes.
GPU_TESTS = sam:: sam_vit:: sam_everything:: sam_refine:: backbone:: ssc:: train:: cpm:: affinity:: advcam:: cam_epoch::

test-gpu: ## the golden tests on a GPU; for a PyTorch 2.13.0 of CUDA, set LIBTORCH_USE_PYTORCH=1
	S2C_TEST_DEVICE=cuda NVIDIA_TF32_OVERRIDE=0 cargo test --release --test it -- $(GPU_TESTS)

test-s3: ## `cache push` and `cache pull` against an S3 server, moto, which it installs; needs no libtorch
	.ci/test-s3 --no-default-features --features s3

bench-engine: ## the engine against ninja, doit, DVC, Snakemake, redun and b3sum, which it installs; needs no libtorch
	cargo bench --no-default-features --no-run --bench engine
	python3 benches/engine/bench.py "$$(ls -t target/release/deps/engine-* | grep -v '\.d$$' | head -1)"

bench-sam: setup ## SAM against the public PyTorch code, which it installs (5 GB); PRECISION=bf16 for ours in bf16
	cargo bench --no-run --bench sam
	python3 benches/sam/bench.py "cargo bench -q --bench sam -- $(PRECISION)"

bench-train: setup ## a training step of S2C against the same in PyTorch f32, which it installs (5 GB)
	cargo bench --no-run --bench train
	python3 benches/train/bench.py "cargo bench -q --bench train --"

bench-refine: setup ## the dense CRF against pydensecrf, which it installs and compiles, and the threshold sweep
	cargo bench --no-run --bench refine
	python3 benches/refine/bench.py "cargo bench -q --bench refine --"

bench-pixels: ## decoding and resizing against Pillow, which it installs; IMAGES is a folder of JPEGs; needs no libtorch
	cargo bench --no-default-features --no-run --bench pixels
	python3 benches/pixels/bench.py "$$(ls -t target/release/deps/pixels-* | grep -v '\.d$$' | head -1)" $(if $(IMAGES),--images $(IMAGES))

setup: ## libtorch, once; see .ci/setup
	@.ci/setup

build: setup
	cargo build --release

lint: setup
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	@.ci/advisories
