#!/usr/bin/env bash
# Builds quadric with its CUDA kernels, tests it and measures it, on a machine with an NVIDIA GPU, CUDA 13, CMake, Ninja
# and a Python that has torch, pybind11 and what the tests need. Nothing is fetched, and nothing is installed outside
# build/gpu.
#
#   bash bench/gpu.sh                                     # all of it
#   bash bench/gpu.sh [build] [test] [sanitize] [bench]   # some of it, in this order
#
#   PYTHON          the interpreter; python3
#   CMAKE_ARGS      more words for CMake
#   JOBS            compilers at once; all cores
#   WHEELS          a folder of wheels that this Python lacks; they go where quadric goes
#   TESTS           what pytest gets, options too
#   SUITE           words that pick calls for the sanitizers; all
#   TOOLS           the sanitizers; "memcheck racecheck"
#   BENCHMARKS      modules; all of bench/*/bench_*_gpu.py
#   RESULTS         where tables go; bench/results
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
jobs=${JOBS:-$(nproc)}
root=$PWD/build/gpu
site=$root/site
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1

step() { printf '\n==> [%3d s] %s\n' "$SECONDS" "$*"; }
die() {
    echo "bench/gpu.sh: $*" >&2
    exit 1
}

# A driver and a device, asked for without anything that would have to be built first.
needs_gpu() {
    "$python" - <<'END' || die "it measures GPUs, and none is visible here"
import ctypes
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    raise SystemExit(f"no NVIDIA driver: {error}")
count = ctypes.c_int(0)
status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
if status or count.value == 0:
    raise SystemExit(f"the NVIDIA driver shows no device (status {status})")
END
}

needs_package() {
    reason=$("$python" -c 'from quadric import cuda_library; print(cuda_library.why_missing() or "")') ||
        die "quadric is not built: bash bench/gpu.sh build"
    [ -z "$reason" ] || die "$reason"
}

build() {
    step "build"
    command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || die "no nvcc: CUDA 13 is needed"
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$headers/Python.h" ] || die "$python has no headers: $headers/Python.h is missing"
    mkdir -p "$site/quadric"
    if [ -n "${WHEELS:-}" ]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$WHEELS"/*.whl
    fi
    # shellcheck disable=SC2086
    cmake -S . -B "$root/cmake" -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUADRIC_PYTHON=ON -DQUADRIC_CUDA=ON \
        -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
        -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
        -DCMAKE_INSTALL_PREFIX="$site/quadric" -DCMAKE_INSTALL_LIBDIR=lib ${CMAKE_ARGS:-}
    cmake --build "$root/cmake" --parallel "$jobs"
    cmake --install "$root/cmake" --component core >/dev/null
    cmake --install "$root/cmake" --component python >/dev/null
    cp -r python/quadric/. "$site/quadric/"
    "$python" -c 'import quadric; quadric.show_config()'
    needs_package
}

run_tests() {
    step "test"
    needs_package
    # Each process has a context on the GPU, so not one for every core.
    # shellcheck disable=SC2086
    # pytest-benchmark, where it is installed, warns of -n, and a warning is an error here.
    QUADRIC_TEST_BACKEND=cuda "$python" -m pytest -p no:benchmark -n "$((jobs < 8 ? jobs : 8))" \
        ${TESTS:-tests/linalg tests/sketch tests/sweep tests/transport tests/woodbury tests/adapters tests/cuda}
}

sanitize() {
    needs_package
    sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || die "no compute-sanitizer"
    # Of the kernels of this library: cuBLAS is not ours to check, and takes long. The option has had two names.
    case $("$sanitizer" --help) in
        *--kernel-regex*) ours=(--kernel-regex kns=quadric) ;;
        *--kernel-name*) ours=(--kernel-name kernel_substring=quadric) ;;
        *) ours=() ;;
    esac
    for tool in ${TOOLS:-memcheck racecheck}; do
        step "$tool"
        # racecheck itself breaks down in the kernels of cuBLAS for 16-bit numbers, which are all that gram launches.
        local words=${SUITE:-}
        [ "$tool" != racecheck ] || words="$words -sweep.gram"
        # shellcheck disable=SC2086
        "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all "${ours[@]}" \
            "$python" -m tests.cuda.sanitizer_suite $words || die "$tool has found errors"
    done
}

measure() {
    needs_package
    for name in ${BENCHMARKS:-$(ls bench/*/bench_*_gpu.py)}; do
        module=${name%.py}
        step "${module//\//.}"
        "$python" -m "${module//\//.}" --out "${RESULTS:-bench/results}"
    done
}

stages=("$@")
[ $# -gt 0 ] || stages=(build test sanitize bench)
for stage in "${stages[@]}"; do
    case $stage in build | test | sanitize | bench) ;; *) die "no stage $stage: build, test, sanitize, bench" ;; esac
done
needs_gpu
for stage in build test sanitize bench; do
    case " ${stages[*]} " in *" $stage "*) ;; *) continue ;; esac
    case $stage in
        build) build ;;
        test) run_tests ;;
        sanitize) sanitize ;;
        bench) measure ;;
    esac
done
step "done"
