#!/usr/bin/env bash
# Check, then time everything on a GPU machine, in two parts of at most eight minutes each.
#
#   benchmarks/gpu_suite.sh check        is it right: kernels, synchronisation, graphs, side stream, fused forms, two precisions
#   benchmarks/gpu_suite.sh speed        how fast is it: ops, patch embedding, steps; rows are written as they come
#   benchmarks/gpu_suite.sh check --cpu  the same stages on the CPU with tiny models, to see that they run; also: speed --cpu
#
# On the CPU a stage has three times its limit below, which is that of two idle cores: at most 24 minutes a part on a busy machine.
#
# Each part ends with one table and one verdict: its status is 0 where every stage ran and passed, 1 where one did not, 3 where something
# is missing that the part needs, which it says before it starts. Results go to $OUT, or to benchmarks/results/gpu; `check` empties that.
#
# No network is needed. Python is $PYTHON, else .venv/bin/python, else python3. Packages that it lacks are taken from .carry/site, which is
# filled on another machine with the same Python version:
#   pip install --no-deps --target .carry/site -r benchmarks/gpu_wheels.txt
set -u -o pipefail
cd "$(dirname "$0")/.."
part=${1:-} device=cuda patience=1
[ "${2:-}" = --cpu ] && device=cpu patience=3
case "$part" in check | speed) ;; *) sed -n '2,15p' "$0" && exit 2 ;; esac
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}:$PWD/.carry/site" OUT=$out

"$python" -m benchmarks.gpu_suite --needs "$part" --device "$device" || exit 3
if [ "$part" = check ]; then rm -f "$out"/*.json "$out"/*.log "$out"/stages-*.tsv; fi
: > "$out/stages-$part.tsv"

stage() { # name, limit in seconds, command
  local name=$1 limit=$(($2 * patience)) began=$SECONDS status=0
  shift 2
  timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1 || status=$?
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" $((SECONDS - began)) "$limit" >> "$out/stages-$part.tsv"
  echo "$name: status $status, $((SECONDS - began)) of $limit s (log: $out/$name.log)"
}
tests() { # name, limit, marker, files and options
  local name=$1 limit=$2 marker=$3
  shift 3
  stage "tests-$name" "$limit" "$python" -m pytest -q -p no:cacheprovider -m "$marker" "$@"
}

ops=tests/extensions graphs=tests/tools/test_accelerate_graphs.py
if [ "$part" = check ]; then
  if [ "$device" = cuda ]; then
    stage build 150 "$python" -m extensions.m2ae_ops.build --cuda
    tests kernels 80 gpu $ops/test_cuda.py $ops/test_emd.py $ops/test_rows.py $ops/test_chamfer_loss.py
    tests synchronisation 40 gpu tests/test_synchronisation.py tests/datasets tests/tools/test_accelerate_prefetch.py
    tests graphs 80 gpu $graphs
    tests fused 40 gpu $ops/test_fused.py $ops/test_patch_embed.py
    stage doctor 85 "$python" -m tools.doctor --device cuda --json "$out/doctor.json"
  else
    few="not gpu and not slow"
    stage build 60 "$python" -m extensions.m2ae_ops.build --cpu
    tests kernels 100 "$few" $ops/test_indexing.py $ops/test_rows.py
    tests synchronisation 90 "$few" tests/test_synchronisation.py -k "stand_ins and point-mae"
    tests graphs 80 "$few" $graphs -k "failure or numbers or memory"
    tests fused 60 "$few" $ops/test_fused.py -k "setting or registers or broken"
    stage doctor 90 "$python" -m tools.doctor --device cpu --methods point-mae,point-m2ae --json "$out/doctor.json"
  fi
else
  steps=("$python" -m benchmarks.steps.method_steps --device $device)
  if [ "$device" = cuda ]; then
    stage ops 80 "$python" -m benchmarks.gpu_ops --quick --budget 3 --repeats 15 --out "$out/ops-gpu.json"
    stage embed 50 "$python" -m benchmarks.gpu_embed --precisions bf16 --rounds 10 --budget 1 --out "$out/embed-gpu.json"
    stage steps 265 "${steps[@]}" --limit 33 --precisions bf16 --batches 128 --clouds 4096 --out "$out/method-steps-cuda.json"
    stage others 80 "${steps[@]}" --limit 40 --tasks fine-tuning,segmentation --methods point-m2ae --precisions bf16 --batches 32 \
      --clouds 1024 --out "$out/method-steps-others-cuda.json"
  else
    stage ops 90 "$python" -m benchmarks.ops.cpu --quick --size tiny --rows fps-2048,knn --threads 1 --out "$out/ops-cpu.json"
    stage steps 150 "${steps[@]}" --limit 180 --methods point-mae,point-m2ae --precisions fp32 --batches 20 --clouds 40 --size debug \
      --out "$out/method-steps-cpu.json"
    stage others 150 "${steps[@]}" --limit 180 --tasks fine-tuning,segmentation --methods point-m2ae --precisions fp32 --batches 20 \
      --size debug --out "$out/method-steps-others-cpu.json"
  fi
fi
"$python" -m benchmarks.gpu_suite "$out" --part "$part"
