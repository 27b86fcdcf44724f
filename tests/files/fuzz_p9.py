"""Coverage-guided fuzzing from a client's side, a program of its own: libFuzzer by way of atheris.

    POWERVIO_INTERPRETED=1 python -m tests.files.fuzz_p9 FOLDER -seed=1 -runs=1000 -max_total_time=10

Interpreted, so that the compiled modules too are instrumented. FOLDER takes the inputs that led somewhere new; then
they are played to the compiled modules (`test_p9_fuzz.py`). An input that fails is written to `FOLDER/crash-...`, and
becomes an `@example` there.
"""

from __future__ import annotations

import sys

import atheris

import powervio  # noqa: F401  its finder is in its place now, so that the one of atheris is in front of it

with atheris.instrument_imports(include=["powervio.files"]):
    from tests.files.p9_hostile import play


def main() -> None:
    folder, *options = sys.argv[1:]
    arguments = [sys.argv[0], folder, f"-artifact_prefix={folder}/", "-max_len=512", "-timeout=30", *options]
    atheris.Setup(arguments, play)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
