#!/usr/bin/env bash
# Every gate, then every test. `make test` calls it; QUICK=1 leaves out the wheel's own environment.
# Each command has a line of its own: `set -e` does not see a failure inside `a && b` or `! a`.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
VENV=$(cd "$VENV" && pwd)
PYTHON=${PYTHON:-python3}
PATH="$VENV/bin:$PATH"
export MPLBACKEND=agg
export CI=${CI:-true} # the same generated examples in every run

say() { echo "== [$SECONDS s] $*"; }

# The tree as it is, so that work in progress is judged by what a tool changes, not by what is uncommitted.
tree() {
    { find nbs pla_nb README.md index_files -type f -not -path '*/.*' -not -path '*/__pycache__/*' -print0 2>/dev/null || true; } |
        sort -z | xargs -0 -r sha256sum
}
leaves_clean() { # command...
    local before after
    say "$* leaves the tree as it is"
    before=$(tree)
    "$@"
    after=$(tree)
    if [ "$before" != "$after" ]; then
        diff <(echo "$before") <(echo "$after") | awk '/^[<>]/{print "  changed:", $3}' | sort -u
        echo "'$*' changed these files: run 'make prepare' and commit them"
        exit 1
    fi
}

say "what nbdev does not check in a notebook"
python tools/nbcheck.py
leaves_clean nbdev_clean
leaves_clean nbdev_export
leaves_clean python tools/sidebar.py
leaves_clean python tools/readme.py
leaves_clean python tools/docs.py

say "the docs site is whole"
python tools/linkcheck.py
smalldocs check _proc
if grep -rl 'Traceback (most recent call last)' _docs --include='*.html'; then echo "a page shows an error"; exit 1; fi

say "the wheel, built from the sdist, carries every file of the package"
rm -rf dist
python -m build -o dist . >build.log 2>&1 || { tail -n 30 build.log; exit 1; }
rm build.log
python tools/wheelcheck.py dist/*.whl

if [ -z "${QUICK:-}" ]; then
    say "the wheel works in a clean environment with the newest dependencies (installs about 6 GB)"
    rm -rf .venv-wheel
    "$PYTHON" -m venv .venv-wheel
    wheel=$(echo "$PWD"/dist/*.whl)
    .venv-wheel/bin/python -I -m pip install -q "$wheel[starter]"
    .venv-wheel/bin/python -I -m pip check
    root=$PWD
    away=$(mktemp -d)
    # -I here and there: neither the repository nor PYTHONPATH can stand in for what the wheel lacks
    (cd "$away"; "$root/.venv-wheel/bin/python" -I "$root/tests/smoke_wheel.py")
    rm -rf .venv-wheel "$away"
fi

say "the tests"
python -m pytest -q
