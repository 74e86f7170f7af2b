# Everything starts here: each target is complete on a fresh Debian or Ubuntu with Python 3.11 to 3.14.
#   DEVICE=cpu|cuda12|tpu   overrides the detected device        PYTHON=python3.13   picks the interpreter
.DEFAULT_GOAL := help
.PHONY: help install dev demo serve test test-slow check format acceptance parity train compile doctor lock clean

export DEVICE PYTHON
PY := .venv/bin/python
# Two workers on two cores, four at most: each has a JAX of its own and needs up to 2 GB.
# A test's programs run briefly: without LLVM's passes they are compiled in two thirds of the time.
PYTEST := XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0" $(PY) -m pytest -q --numprocesses=auto --maxprocesses=4 --dist=worksteal
CONFIG ?= configs/tiny.py
STUDENT ?= configs/tiny_driven.py
KNOT ?= configs/tiny_knot.py
WORKDIR ?= runs/tiny

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## create .venv and install what this machine needs (done by every target)
	@./setup.sh

demo: install ## an embedded portrait speaks an embedded recording: talk.mp4
	$(PY) -m infer.stream --output=talk.mp4 --overwrite

serve: install ## live calls in a browser; prints the page's address
	$(PY) -m infer.serve

dev:
	@./setup.sh --dev

test: dev ## all tests but the slow ones
	$(PYTEST) -m "not slow and not acceptance and not parity"

test-slow: dev ## the slow tests
	$(PYTEST) -m "slow and not acceptance and not parity"

parity: ## the networks against diffusers and transformers, live, installed in .venv-parity
	@./setup.sh --parity
	.venv-parity/bin/python -m pytest -q -m parity tests/parity

check: dev ## format, lint, types and fast tests: what a commit must pass
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright
	$(PYTEST) -m "not slow and not acceptance and not parity"

format: dev ## let ruff rewrite the sources
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

acceptance: dev ## the promised figures, all or one AREA=first_light, written to docs/acceptance.md
	AVATAR_ACCEPTANCE_WRITE=docs/acceptance.md $(PY) -m pytest -q -m acceptance tests/acceptance$(AREA:%=/test_%*.py)

DRIVEN = $(WORKDIR)/driven
DRAWN = --config=$(STUDENT) --vae=$(WORKDIR)/vae/vae.safetensors
WINDOWS = --latents=$(DRIVEN)/latents=1,$(DRIVEN)/acted=2
LEARNED = --config=$(STUDENT) $(WINDOWS)
TAUGHT = --teacher=$(DRIVEN)/pretrain/dit.safetensors --watch=$(DRIVEN)/watched --checkpoint=$(WORKDIR)/vae
train: install ## the whole tiny recipe, four-step student included, resumable at any point: WORKDIR=runs/tiny
	$(PY) -m train.vae --config=$(CONFIG) --workdir=$(WORKDIR)/vae
	$(PY) -m train.latents --config=$(CONFIG) --vae=$(WORKDIR)/vae/vae.safetensors --workdir=$(WORKDIR)/latents
	$(PY) -m train.pretrain --config=$(CONFIG) --latents=$(WORKDIR)/latents --workdir=$(WORKDIR)/pretrain
	$(PY) -m train.latents $(DRAWN) --workdir=$(DRIVEN)/latents
	$(PY) -m train.latents $(DRAWN) --workdir=$(DRIVEN)/acted --config.data.seed=2 --config.data.clips=600 \
	  --config.data.performed=1.0 --config.data.twinned=True
	$(PY) -m train.latents $(DRAWN) --workdir=$(DRIVEN)/watched --config.data.seed=1 --config.data.clips=8
	$(PY) -m train.pretrain $(LEARNED) --init=$(WORKDIR)/pretrain/dit.safetensors --workdir=$(DRIVEN)/pretrain
	$(PY) -m train.pretrain --config=$(KNOT) $(WINDOWS) --init=$(DRIVEN)/pretrain/dit.safetensors \
	  --workdir=$(WORKDIR)/knot
	$(PY) -m train.follow $(LEARNED) $(TAUGHT) --workdir=$(DRIVEN)/follow
	$(PY) -m train.distill $(LEARNED) $(TAUGHT) --student=$(DRIVEN)/follow/student.safetensors --workdir=$(DRIVEN)/distill \
	  --config.train.distill.patience=300

compile: install ## the full-size programs for absent devices: TARGET=h200, v5p, v6e, v5e
	@wanted=$$($(PY) -m infer.aot.targets $(TARGET)) && { [ -z "$$wanted" ] || $(PY) -m pip install -q --no-deps $$wanted; }
	$(PY) -m infer.compile --target=$(TARGET)

doctor: install ## what this machine has and whether it works
	@$(PY) -m infer.doctor

lock: dev ## resolve constraints.txt again, for all Pythons and devices at once
	@$(PY) -m pip install -q uv
	@{ sed -n '1,/^$$/p' constraints.txt | grep '^#'; echo; \
	  { sed 's/^jax\[cuda12\]/jax[cuda12,tpu]/' requirements.txt; cat requirements-dev.txt; } \
	  | .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate -; } >constraints.new
	@mv constraints.new constraints.txt

clean: ## remove .venv, .venv-parity and caches (not runs/)
	rm -rf .venv .venv-parity .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
