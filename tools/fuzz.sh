#!/usr/bin/env bash
# Run every fuzz target for SECONDS each (first argument), as many at once as there are processors: those of Rust by
# cargo-fuzz, those of Python by atheris, both on libFuzzer.
# The kept corpus in fuzz/corpus is read, never written: what a run finds goes to fuzz/target/corpus.
# Any crash, hang or memory beyond the limit fails the run, and the input stays in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?usage: tools/fuzz.sh SECONDS}
python=$PWD/.venv/bin/python
host=$(rustc -vV | sed -n 's/^host: //p')
# Sanitisers are unstable options; this lets the stable compiler take them.
export RUSTC_BOOTSTRAP=1
# Its own directory: the flags differ, and sharing one would rebuild both for ever.
export CARGO_TARGET_DIR=$PWD/fuzz/target
export PATH=$PWD/.tools/bin:$PATH

mapfile -t targets < <(cargo fuzz list)
if ((${#targets[@]} == 0)); then
  echo "no fuzz target found" >&2
  exit 1
fi
cargo fuzz build --target "$host"
mapfile -t python_targets < <(basename -s .py -a fuzz/fuzz_targets/*.py)
if "$python" -c 'import atheris' 2>/dev/null; then
  targets+=("${python_targets[@]}")
else
  echo "fuzz ${python_targets[*]}: left out, atheris is not there for this machine"
fi

fuzz_one() {
  local target=$1 corpus=fuzz/target/corpus/$1 log=fuzz/target/$1.log command
  mkdir -p "$corpus" "fuzz/artifacts/$target"
  if [[ -f fuzz/fuzz_targets/$target.py ]]; then
    command=("$python" "fuzz/fuzz_targets/$target.py" "$corpus" "-artifact_prefix=fuzz/artifacts/$target/")
  else
    command=(cargo fuzz run --target "$host" "$target" "$corpus")
    [[ -d fuzz/corpus/$target ]] && command+=("fuzz/corpus/$target")
    command+=(--)
  fi
  command+=(-max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 -print_final_stats=1)
  if PYTHONPATH=src "${command[@]}" >"$log" 2>&1; then
    echo "fuzz $target: ok, $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs in ${seconds} s"
  else
    tail -n 60 "$log"
    echo "fuzz $target: FAILED"
    return 1
  fi
}
export -f fuzz_one
export host python seconds
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'set -euo pipefail; fuzz_one {}'
