#!/usr/bin/env bash
# `make test-wheel`: build the wheel, install it into a new environment outside the checkout, and use it from
# another folder: help, version, a tiny study and its report, without any of the optional packages.
#
# The default dependencies are really installed (40 s with a local package index), not borrowed from the checkout's
# environment: only so does the run prove that they suffice. torch comes from where pip takes it for `make`.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
fail() { echo "test-wheel: $*" >&2; exit 1; }

mkdir "$work/source" "$work/elsewhere"
cp -r pyproject.toml README.md LICENSE bench conf "$work/source" # a build leaves files in its folder
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$work/source"
wheel=$(echo "$work"/*.whl)
"$work/venv/bin/pip" install --quiet --no-compile "$wheel"
"$work/venv/bin/pip" check
export PATH="$work/venv/bin:$PATH"
cd "$work/elsewhere"

# The wheel holds every config file and every template of the checkout.
diff <(cd "$checkout" && find conf bench/report/templates -type f | sort) \
  <(python -m zipfile --list "$wheel" | sed -n 's#^bench/conf/#conf/#p; /^bench.report.templates/p' | cut -d ' ' -f 1 | sort)
bench --help >help
grep -q '^  strategy=.*clip' help || fail "bench --help lists no strategies"
[ "$(bench --version)" = "bench $(sed -n 's/^version = "\(.*\)"/\1/p' "$checkout/pyproject.toml")" ] \
  || fail "bench --version prints $(bench --version)"

# None of the optional packages is there, and the command to install one is named.
python - <<'END'
from bench.config.installation import EXTRAS, is_installed
found = [package for package in EXTRAS if is_installed(package)]
assert not found, f"default dependencies bring {found}"
END
if bench train logger=wandb 2>errors; then fail "logger=wandb runs without wandb"; fi
grep -qx "bench: logger.wandb needs the package wandb: pip install 'pretraining-bench\[wandb\]'" errors \
  || fail "logger=wandb: $(cat errors)"

# The quickstart's strategies, data and tasks, for a few steps.
bench train -m experiment=quickstart study=tiny model=0.2m budget=64kb seed=0 budget.tokens=8192
bench status study=tiny
bench report study=tiny
bench verify study=tiny
[ "$(find experiments/tiny/records -name '*.json' | wc -l)" = 4 ] || fail "not 4 records"
grep -q '"commit": *"unknown"' experiments/tiny/records/*.json || fail "a record names a commit"
for path in reports/tiny/report.html reports/tiny/report.md data; do
  [ -e "$path" ] || fail "$path is not in the current folder"
done
echo "test-wheel: $(basename "$wheel") works when installed"
