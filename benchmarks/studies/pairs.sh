#!/usr/bin/env bash
# Point-MAE, PCP-MAE and Point-JEPA on the same data with the same encoder and budget, three seeds each: what their features are worth, and
# what a step costs at the published sizes. Run it from the repository; runs that are there already are not repeated. A run takes about ten
# minutes of one core.
set -euo pipefail
groups=()
for method in point-mae pcp-mae point-jepa; do
  runs=experiments/pre-training/$method/mini/mini
  [ -e "$runs/seed2/ckpt-last.pth" ] ||
    python main.py --config "cfgs/pre-training/$method/mini.yaml" --exp_name mini --seeds 0,1,2 --val_freq 24
  groups+=("$method=$runs")
done
python -m benchmarks.studies.frozen "${groups[@]}" --published_C --out benchmarks/results/pairs.json --section frozen
python -m benchmarks.steps.method_steps --methods point-mae,pcp-mae,point-jepa --precisions fp32 --batches 4 \
  --out benchmarks/results/pairs-steps.json
