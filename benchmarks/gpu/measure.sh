#!/usr/bin/env bash
# What there is to measure on a GPU, the most telling first: a part that fails or takes too long does not stop the rest,
# and is named at the end. Rows go to benchmarks/results.csv.
#
#     bash benchmarks/gpu/measure.sh FOLDER [PART ...]
#
# FOLDER holds the random weights and is made where it does not exist. PARTs, in this order where none is named:
# tests, whole, published, compiled, published-compiled, savings, vae, memory, layers, faces, engines. The published ones need LIPSTREAM_PUBLISHED to
# name a checkout of the published code. LIMIT_S is the longest that one command may take, seconds [240], PYTHON the
# interpreter [python3]. SMALL=1 tries all of it at a small size on a CPU, and adds no rows.
set -euo pipefail

folder=$(realpath -m "${1:?usage: bash benchmarks/gpu/measure.sh FOLDER [PART ...]}")
parts=("${@:2}")
[[ ${#parts[@]} -gt 0 ]] || parts=(tests whole published compiled published-compiled savings vae memory layers faces engines)
published=${LIPSTREAM_PUBLISHED:+$(realpath "$LIPSTREAM_PUBLISHED")}
python=${PYTHON:-python3}
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 # also where lipstream is not installed

whole=(--seconds 8 --rounds 3)
beside=(--windows 4 --rounds 3)
savings=(--full --device cuda --precision fp16 --steps 20 --rounds 3)
vae=(--device cuda --precision fp16)
faces=(--device cuda)
engines=()
batch=auto device=cuda
if [[ -n ${SMALL:-} ]]; then
  whole=(--narrow --device cpu --seconds 1 --steps 2 --rounds 1 --no-row)
  beside=(--narrow --device cpu --windows 2 --steps 2 --rounds 1 --no-row)
  savings=(--steps 1 --windows 1 --rounds 1 --no-row)
  vae=(--narrow --device cpu --frames 2 --rounds 1)
  faces=(--frames 2 --rounds 1 --no-row)
  engines=(--narrow --device cpu --engines torch onnxruntime --steps 2 --rounds 1 --no-row)
  batch=2 device=cpu
fi

failed=()
try() {
  local begun_s=$SECONDS
  echo "== $*"
  timeout "${LIMIT_S:-240}" "$python" "$@" || failed+=("$*")
  echo "== took $((SECONDS - begun_s)) s"
}

each_resolution() {
  try -m "$1" "$folder" "${@:2}" --resolution 256
  try -m "$1" "$folder" "${@:2}" --resolution 512
}

beside_published() {
  if [[ -z $published ]]; then
    echo "== LIPSTREAM_PUBLISHED names no checkout: the published code is left out"
  else
    each_resolution benchmarks.gpu.published --published "$published" "${beside[@]}" --batch $batch "$@"
  fi
}

for part in "${parts[@]}"; do
  case $part in
    tests) try -m pytest -m gpu --continue-on-collection-errors ;; # some need what is not installed
    whole) each_resolution benchmarks.gpu.full_size "${whole[@]}" --batch $batch ;;
    published) beside_published ;;
    compiled) each_resolution benchmarks.gpu.full_size "${whole[@]}" --batch $batch --compile ;;
    published-compiled) beside_published --compile ;;
    savings) try -m benchmarks.denoise_savings "${savings[@]}" --compile ;;
    vae) try -m benchmarks.gpu.vae "${vae[@]}" ;;
    memory) try -m benchmarks.memory_counted --precision fp16 --batch 1 ;; # beside the peaks of `whole` and `vae`
    layers) try -m benchmarks.quantization --layers --device "$device" ;; # fp8 and int8 layer by layer
    faces) try -m benchmarks.face_geometry "${faces[@]}" ;;
    engines) LIMIT_S=${LIMIT_S:-1800} each_resolution benchmarks.gpu.engines "${engines[@]}" ;; # each builds for minutes
    *) failed+=("$part (no such part)") ;;
  esac
done

if [[ ${#failed[@]} -gt 0 ]]; then
  printf '== failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
