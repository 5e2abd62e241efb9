#!/usr/bin/env bash
# Build, check and time everything on a GPU machine in under nine minutes; a short table comes last.
#
#   benchmarks/gpu_suite.sh              results in $OUT, or in benchmarks/results/gpu
#   benchmarks/gpu_suite.sh --cpu        the same stages on the CPU with tiny models, to see that they run
#
# No network is needed. Python is $PYTHON, else .venv/bin/python, else python3; packages that it lacks are taken from .carry/site,
# which `pip install --no-deps --target .carry/site PACKAGE...` fills elsewhere. Each stage has a limit in seconds and may fail without
# stopping the rest; the status is that of the worst stage.
set -u -o pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}:$PWD/.carry/site"
export OUT=$out

device=cuda marker=gpu build=--cuda
limit=150 rest=30 steps=(--precisions bf16 --batches 128,512 --clouds 4096)
others=(--methods point-m2ae --precisions bf16 --batches 32 --clouds 1024) tests=(tests/extensions tests/models tests/tools)
if [ "${1:-}" = --cpu ]; then
  device=cpu marker="not gpu and not slow" build=--cpu
  limit=600 rest=120 steps=(--batches 20 --clouds 40 --size debug)
  others=(--methods point-m2ae --batches 20 --size debug) tests=(tests/extensions/test_sampling.py tests/extensions/test_neighbors.py)
fi

worst=0
stage() { # name, limit in seconds, command
  local name=$1 limit=$2 began=$SECONDS status=0
  shift 2
  timeout "$limit" "$@" > "$out/$name.log" 2>&1 || status=$?
  [ "$status" -gt "$worst" ] && worst=$status
  printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - began)) >> "$out/stages.tsv"
  echo "$name: status $status, $((SECONDS - began)) s (log: $out/$name.log)"
}

: > "$out/stages.tsv"
stage build 120 "$python" -m extensions.m2ae_ops.build $build
stage tests 120 "$python" -m pytest -q -p no:cacheprovider -m "$marker" "${tests[@]}"
if [ "$device" = cuda ]; then
  stage ops 70 "$python" -m benchmarks.gpu_ops --quick --budget 3 --repeats 15 --out "$out/ops-gpu.json"
  stage embed 50 "$python" -m benchmarks.gpu_embed --precisions bf16 --rounds 10 --budget 1 --out "$out/embed-gpu.json"
else
  stage ops 90 "$python" -m benchmarks.ops.cpu --quick --size tiny --rows fps-2048,knn --threads 1 --out "$out/ops-cpu.json"
fi
timed=("$python" -m benchmarks.steps.method_steps --device $device --limit 60)
stage steps $limit "${timed[@]}" "${steps[@]}" --out "$out/method-steps-$device.json"
stage others $rest "${timed[@]}" --tasks fine-tuning,segmentation "${others[@]}" --out "$out/method-steps-others-$device.json"
"$python" -m benchmarks.gpu_suite "$out"
exit "$worst"
