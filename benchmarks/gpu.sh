#!/usr/bin/env bash
# Tests and benchmarks on a CUDA machine that has no network.
#
#   benchmarks/gpu.sh pack          where there is a network: wheels into .whl/
#   benchmarks/gpu.sh run [FOLDER]  on the CUDA machine, in a copy of this tree with .whl/:
#                                   pytest -m gpu; on CUDA the training step against open_clip's
#                                   (MFU, profiler's kernels, largest batches), the loss's memory,
#                                   the text tower; our side of the loader; pretraining on text
#                                   against transformers' loop and Trainer; a factorial of text
#                                   encoders ten times the size of configs/text/small. JSON results
#                                   and logs into FOLDER (build/gpu), about 20 minutes on an H200
#                                   without the last two, which have not been timed there.
#   benchmarks/gpu.sh run FOLDER STAGE ...   only these of: tests train_step loss_memory text_tower
#                                   loader text_pretrain factorial
#
# TEXTS is a folder with the texts of configs/text/small (data/text_en). Without it text_pretrain
# takes generated captions, and factorial is left out.
#
# The CUDA machine has Python 3.12 and an image for machine learning: torch 2.11, torchvision 0.26,
# numpy, Pillow and pyarrow with what they need. Set PROVIDED to pack for another one.
# The rest of what `run` imports is packed, in the versions of requirements.lock, under 60 MB.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
WANTED="open_clip_torch timm transformers tokenizers safetensors webdataset simplejpeg omegaconf
  pyyaml ftfy rich accelerate pytest pytest-timeout hypothesis"
TEXTS=${TEXTS:-data/text_en}
PROVIDED=${PROVIDED:-"torch torchvision numpy pillow pyarrow filelock fsspec jinja2 markupsafe
  networkx sympy mpmath typing-extensions setuptools"}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() { echo "gpu.sh: $1" >&2; exit "${2:-2}"; }

pack() {
  "$PYTHON" -m venv "$scratch/venv"
  "$scratch/venv/bin/python" -m pip install --quiet uv
  printf '%s\n' $PROVIDED > "$scratch/provided.txt"
  printf '%s\n' $WANTED > "$scratch/wanted.in"
  "$scratch/venv/bin/uv" pip compile --quiet --no-header --no-annotate --no-emit-index-url \
    --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
    --constraints requirements.lock --excludes "$scratch/provided.txt" \
    --output-file "$scratch/closure.txt" "$scratch/wanted.in"
  rm -rf .whl && mkdir .whl
  # pip takes each platform literally: 2_28 would not find a wheel for 2_17.
  "$scratch/venv/bin/python" -m pip download --quiet --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp \
    $(seq -f '--platform manylinux_2_%g_x86_64' 5 28) --platform manylinux2014_x86_64 \
    --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
    --dest .whl --requirement "$scratch/closure.txt"
  local kilobytes; kilobytes=$(du -sk .whl | cut -f1)
  echo ".whl: $(ls .whl | wc -l) wheels, $((kilobytes / 1024)) MB"
  [ "$kilobytes" -lt 61440 ] || fail ".whl is above 60 MB; name what the machine has in PROVIDED"
}

# Four arms of text encoders, three seeds; texts as configs/text/small names them.
factorial() {
  local seed pair settings=(runs="$1/runs" cache="$1/cache" clip=) folders=()
  [ -d "$TEXTS" ] || { echo "factorial: left out, there is no folder $TEXTS; set TEXTS"; return 0; }
  for pair in abstracts=pubmedqa_abstracts cases=pamj_cases_en patients=medquad_qa \
    captions=figure_captions; do
    settings+=("corpora.${pair%=*}.path=$TEXTS/${pair#*=}.jsonl")
  done
  : > "$1/factorial.log"
  for seed in 0 1 2; do
    folders+=("$1/runs/x10-$seed")
    "$PYTHON" -m vlp.text_pretrain configs/text/small/factorial_x10.yaml "name=x10-$seed" \
      "seed=$seed" "${settings[@]}" >> "$1/factorial.log" 2>&1 ||
      { echo "factorial failed:"; tail -5 "$1/factorial.log"; return 1; } >&2
  done
  "$PYTHON" -m vlp.text.arms_report "${folders[@]}"
}

run() {
  local out=${1:-build/gpu} site="$scratch/site" failed=0
  [ $# -gt 0 ] && shift
  local stages=${*:-tests train_step loss_memory text_tower loader text_pretrain factorial}
  "$PYTHON" -c 'import torch; print(torch.cuda.is_available())' > "$scratch/cuda" 2>&1 ||
    fail "$PYTHON has no torch that can be imported: $(tail -1 "$scratch/cuda"); set PYTHON"
  [ "$(tail -1 "$scratch/cuda")" = True ] ||
    fail "there is no CUDA device on this machine: nothing was tested or measured" 3
  [ -d .whl ] || fail "no .whl/: run 'benchmarks/gpu.sh pack' where there is a network, copy it"
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" .whl/*.whl
  export PYTHONPATH="$site:$PWD"
  local module
  for module in torchvision numpy PIL pyarrow open_clip transformers simplejpeg omegaconf; do
    "$PYTHON" -c "import $module" || fail "$module can't be imported; add it to WANTED and pack"
  done
  mkdir -p "$out"
  local stage settings results=()
  for stage in $stages; do
    case $stage in
      tests)
        "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider \
          $(grep -rl --include='test_*.py' 'pytest.mark.gpu' tests) 2>&1 |
          tee "$out/tests.log" || failed=1
        continue ;;
      train_step | loss_memory | text_tower) settings=(device=cuda) ;;
      loader) settings=(peer=) ;;
      text_pretrain)
        settings=(device=cuda groups=true trainer_steps=100)
        [ ! -d "$TEXTS" ] || settings+=("texts=$TEXTS/*.jsonl") ;;
      factorial)
        factorial "$out" || failed=1
        continue ;;
      *) fail "no stage '$stage': tests, train_step, loss_memory, text_tower, loader, text_pretrain,
  factorial" ;;
    esac
    # One that fails must not take the others' results along.
    if "$PYTHON" -m "benchmarks.$stage" "${settings[@]}" out="$out/$stage.json" \
      > "$out/$stage.log" 2>&1; then
      results+=("$out/$stage.json")
    else
      failed=1; echo "benchmarks.$stage failed:" >&2; tail -5 "$out/$stage.log" >&2
    fi
  done
  [ ${#results[@]} = 0 ] || "$PYTHON" -m benchmarks.measure "${results[@]}"
  [ ! -f "$out/tests.log" ] || echo "GPU tests: $(tail -1 "$out/tests.log")"
  exit "$failed"
}

case "${1:-}" in
  pack) pack ;;
  run) shift; run "$@" ;;
  *) fail "say 'benchmarks/gpu.sh pack' or 'benchmarks/gpu.sh run [FOLDER [STAGE ...]]'" ;;
esac
