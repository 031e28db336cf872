#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes: results as JSON under ${OUT:-reports/gpu}.
#
#   tests/gpu/run.sh              on a machine with a CUDA device
#   tests/gpu/run.sh --dry-run    the same code in small on the CPU; its figures mean nothing
#   STAGES="histograms:45" tests/gpu/run.sh    some stages only, each with its limit in seconds
#
# Stages are processes of their own with a limit each, so that one that fails or hangs leaves the others alone. What one
# leaves of its time the next may use: the last, which is the hardest to foresee, has what all others left.
set -u
cd "$(dirname "$0")/../.."
out=${OUT:-reports/gpu}
python=${PYTHON:-$(command -v python3 || echo python)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
failed=0
spare=0
stages=${STAGES:-pytest:110 histograms:45 overhead:85 counters:40 gradients:35 classes:110 examples:130}
for entry in $stages; do
  stage=${entry%%:*} limit=$((${entry##*:} + spare)) began=$SECONDS
  rm -f "$out/$stage.json"
  LIMIT=$limit timeout --kill-after=5 "$limit" "$python" "tests/gpu/stage_$stage.py" --out "$out" "$@"
  code=$?
  spare=$((limit - (SECONDS - began)))
  [ "$spare" -gt 0 ] || spare=0
  if [ ! -e "$out/$stage.json" ]; then
    printf '{"stage": "%s", "status": "failed", "reason": "ended with %d within %d s"}\n' \
      "$stage" "$code" "$limit" | tee "$out/$stage.json"
  fi
  [ "$code" -eq 0 ] || failed=1
done
exit $failed
