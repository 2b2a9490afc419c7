# Every target sets up what it needs on a Debian machine with Python 3.11 or later (with venv).
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
OUTPUT ?= runs/digits
# A script whose `envtest` prints a folder with etcd, kube-apiserver and kubectl, and whose `up` starts a cluster.
export TESTBED ?= ../shared/testbed/cluster

.PHONY: demo test check backend test-backend test-sanitized tools test-apiserver e2e bench bench-allocation bench-serving gpu-check nightly lock generate format clean

demo: .venv/local  ## The main job on real data: search, select, allocate, serve, report
	$(BIN)/ensemble run examples/digits.yaml --output $(OUTPUT)

test: .venv/dev  ## Every test that needs no whole cluster: unit, handler, real Ray, Triton and S3, and a real API server
	$(BIN)/python -m pytest -m "not apiserver and not e2e and not nightly"
	@if [[ -n "$$KUBEBUILDER_ASSETS" || -x "$(TESTBED)" ]]; then $(MAKE) --no-print-directory test-apiserver; else \
		echo "left out: tests against a real API server (KUBEBUILDER_ASSETS is not set)"; fi

backend: .venv/local  ## The averaging backend in C++, which is built at the first use otherwise; needs cmake and a C++ compiler
	$(BIN)/python -m ensemble_core.serving.native

# Each sanitizer is a build of its own.
BACKEND = allocator/triton/averaging
test-backend:  ## Unit tests of the backend's C++: plain, and under the address, undefined and thread sanitizers
	set -e; for sanitizer in "" address,undefined thread; do folder=build/averaging-$${sanitizer:-plain}; \
	cmake -S $(BACKEND) -B $$folder -D AVERAGING_TESTS=ON -D AVERAGING_SANITIZER=$$sanitizer; \
	cmake --build $$folder --parallel $$(nproc); ctest --test-dir $$folder --output-on-failure; done

# Helm, and the Lua that Argo CD runs health checks in.
HELM = helm.sh/helm/v3/cmd/helm@v3.19.2
GLUA = github.com/yuin/gopher-lua/cmd/glua@v1.1.1
GO_BIN = $(shell go env GOPATH 2>/dev/null)/bin
tools:
	test -x $(GO_BIN)/helm || go install $(HELM)
	test -x $(GO_BIN)/glua || go install $(GLUA)

test-apiserver: .venv/dev tools  ## Tests against a real kube-apiserver; KUBEBUILDER_ASSETS names the folder of its binaries
	set -e; assets="$${KUBEBUILDER_ASSETS:-$$($(TESTBED) envtest)}"; \
		KUBEBUILDER_ASSETS="$$assets" $(BIN)/python -m pytest -m "apiserver and not nightly"

e2e: .venv/dev tools  ## From images to answers on a cluster: that of $KUBECONFIG, or else of the test bed
	set -e; settings="$$(tests/e2e/cluster.sh)"; eval "$$settings"; $(BIN)/python -m pytest -m "e2e and not nightly" --capture=no

check: .venv/dev  ## Lint, types, layers, drift of generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py
	$(BIN)/lint-imports
	$(BIN)/python -m ensemble_core.api.generate --check

bench: .venv/dev tools  ## Side-by-side measurements; their tables go to benchmarks/RESULTS.md
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/reconcile.py

bench-allocation: .venv/dev  ## Allocators on simulated V100 nodes, then with real members on two cores; needs a quiet machine
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/allocation.py --hostile --large --jobs $$(nproc)
	$(BIN)/python benchmarks/real_members.py

bench-serving: .venv/local  ## What averaging costs, with fake members; needs a quiet machine, cmake and a C++ compiler
	$(BIN)/python benchmarks/serving.py

gpu-check: .venv/local  ## On a machine with a GPU, in NVIDIA's Triton image: ONNX Runtime's and TensorRT's answers, and profiles
	$(BIN)/python benchmarks/gpu_check.py

test-sanitized: .venv/dev  ## The averaging suite on the real server, whose backend in C++ is built with sanitizers
	set -e; for sanitizer in address,undefined thread; do \
	AVERAGING_SANITIZER=$$sanitizer $(BIN)/python -m pytest tests/integration/averaging -k native -m "not nightly"; done

nightly: .venv/dev tools test-sanitized  ## What takes longer: sanitizers, five seeds
	$(BIN)/python -m pytest -m "nightly and not e2e"
	$(BIN)/python benchmarks/seeds.py

generate: .venv/dev  ## Write the CRDs and the API reference from the models
	$(BIN)/python -m ensemble_core.api.generate

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv resolves and installs; its own version is pinned with hashes too.
.venv/uv: requirements/uv.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	touch $@

INSTALL = $(BIN)/uv pip install --quiet --python .venv
# The server's wheel asks for numpy<2, which only its own Python client needs: installed without dependencies.
define install
	$(INSTALL) --require-hashes -r $(1)
	$(INSTALL) --require-hashes --no-deps -r requirements/triton.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@
endef

.venv/local: .venv/uv requirements/local.txt requirements/triton.txt pyproject.toml
	$(call install,requirements/local.txt)

.venv/dev: .venv/uv requirements/dev.txt requirements/triton.txt pyproject.toml
	$(call install,requirements/dev.txt)
	touch .venv/local

PINNED = --constraint requirements/dev.txt
# What torch's build for CUDA does not load on a machine without GPUs; requirements/cpu.txt leaves it out.
CUDA_ONLY = triton nvidia-cusolver nvidia-cuda-cccl nvidia-nvtx cuda-bindings cuda-pathfinder cuda-toolkit
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --python-version 3.11 --no-emit-index-url --no-header
lock: .venv/uv  ## Pin the newest versions that fit pyproject.toml, with hashes and without index addresses
	$(COMPILE) requirements/uv.in -o requirements/uv.txt
	$(COMPILE) --no-deps requirements/triton.in -o requirements/triton.txt
	$(COMPILE) --all-extras pyproject.toml requirements/build.in -o requirements/dev.txt
	$(COMPILE) --extra trainer --extra serving $(PINNED) pyproject.toml requirements/build.in -o requirements/local.txt
	$(COMPILE) --extra serving $(PINNED) pyproject.toml requirements/build.in -o requirements/core.txt
	$(COMPILE) --extra trainer --extra serving $(PINNED) $(CUDA_ONLY:%=--no-emit-package %) \
		pyproject.toml requirements/build.in -o requirements/cpu.txt
	$(COMPILE) $(PINNED) requirements/operator.in -o requirements/operator.txt
	$(COMPILE) $(PINNED) requirements/build.in -o requirements/build.txt
	$(COMPILE) $(PINNED) requirements/s3.in -o requirements/s3.txt

clean:
	rm -rf .venv build runs .mypy_cache .ruff_cache .pytest_cache
