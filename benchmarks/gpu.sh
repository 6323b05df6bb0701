#!/usr/bin/env bash
# Does everything that needs a GPU, on a machine that has one and no network, in about 8 minutes:
#
#     benchmarks/gpu.sh OUT
#
# builds the package for the GPU at hand, runs the tests marked cuda, memcheck and racecheck, and
# the benchmarks; logs and result files go to the folder OUT. It needs torch, pybind11,
# scikit-build-core, ninja, cmake, pytest and nvcc, and goes on after a failure, so that one visit
# tells as much as it can. The exit status is that of the tests and of the memory checks.
set -uo pipefail
out=$(mkdir -p "${1:?usage: benchmarks/gpu.sh OUT}" && cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
failed=0

# Runs a command with a time limit in seconds, keeps its output, and notes how long it took.
stage() {
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  echo "$name: status $status, $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
  tail -n 3 "$out/$name.log"
  return $status
}

nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv >"$out/gpu.txt"
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
export CUDAARCHS="${capability}-real"
stage build 150 "$python" -m pip install --no-build-isolation --no-deps --no-index \
  -C cmake.define.FASTSAMPLE_CUDA=ON . || exit 1

# The installed package is tested and timed, not the source folder, which has no native module.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r tests benchmarks pyproject.toml README.md docs csrc "$work"
cd "$work" || exit 1

# Files that import packages which such a machine may lack are left out; none of them has CUDA tests.
pytest=("$python" -m pytest -q -m cuda -p no:cacheprovider)
if "$python" -c "import xdist" 2>/dev/null; then pytest+=(-n 0); fi
mapfile -t lacking < <(grep -rlE "^(import|from) (hypothesis|diffusers|scipy|torchmetrics)" tests)
skips=("${lacking[@]/#/--ignore=}")
stage tests 150 "${pytest[@]}" "${skips[@]}" tests || failed=1
# Every kernel once under memcheck; only these two share memory between threads.
stage memcheck 75 compute-sanitizer --tool memcheck --error-exitcode 9 \
  "${pytest[@]}" -x tests/native/test_cuda.py -k "test_bits or test_noise" || failed=1
stage racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 9 \
  "${pytest[@]}" -x tests/ops/test_row_gradients.py tests/ops/test_elbo_sums.py -k float32 || failed=1
stage sass 30 "$python" benchmarks/sass.py --arch "sm_${capability}" --json "$out/sass.json"
stage step 60 "$python" -m benchmarks.bench_step --device cuda --dtype bfloat16 --seconds 0.3 --no-compile
stage step32 45 "$python" -m benchmarks.bench_step --device cuda --dtype float32 --seconds 0.2 --no-compile
stage loop 45 "$python" -m benchmarks.bench_loop --device cuda --seconds 0.3
stage models 60 "$python" -m benchmarks.bench_models --device cuda --seconds 0.5
stage elbo 45 "$python" -m benchmarks.bench_profile --device cuda
cp benchmarks/results/*cuda*.json "$out" 2>/dev/null
echo "in all $SECONDS s" | tee -a "$out/summary.txt"
exit $failed
