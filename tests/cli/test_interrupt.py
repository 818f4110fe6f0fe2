"""Each in a process of its own: a signal that goes astray would end all tests."""

import subprocess
import sys
from pathlib import Path

import pytest

_BEGIN = """
import importlib, os, signal, sys, time
from contextlib import suppress
from fastdirs.cli._interrupt import Interruptible

def press():
    os.kill(os.getpid(), signal.SIGINT)

def interrupted(work):
    try:
        with Interruptible():
            work()
    except KeyboardInterrupt:
        return True
    return False

"""
_LIBRARY = """
import os, signal
for _ in range({presses}):
    os.kill(os.getpid(), signal.SIGINT)
"""


def python(code: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_interrupts(tmp_path: Path) -> None:
    python("assert interrupted(press); assert not interrupted(lambda: None)", tmp_path)


@pytest.mark.parametrize(("presses", "complete"), [(1, True), (2, False)])
def test_an_import_is_finished_first_unless_it_is_pressed_twice(
    presses: int, complete: bool, tmp_path: Path
) -> None:
    (tmp_path / "library.py").write_text(_LIBRARY.format(presses=presses))
    code = f"""
begun = time.perf_counter()
assert interrupted(lambda: (importlib.import_module("library"), time.sleep(20)))
assert time.perf_counter() - begun < 10
assert ("library" in sys.modules) is {complete}
"""
    python(code, tmp_path)


def test_an_error_that_follows_is_no_error(tmp_path: Path) -> None:
    code = """
def work():
    with suppress(KeyboardInterrupt):
        press()
    raise ValueError("half a library")

assert interrupted(work)
"""
    python(code, tmp_path)


def test_other_errors_pass(tmp_path: Path) -> None:
    code = """
def work():
    raise ValueError("broken")

try:
    interrupted(work)
except ValueError:
    sys.exit(0)
sys.exit("swallowed")
"""
    python(code, tmp_path)


def test_afterwards_all_is_as_before(tmp_path: Path) -> None:
    code = """
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
assert interrupted(press)
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before
assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
"""
    python(code, tmp_path)


def test_whoever_ignores_it_is_left_alone(tmp_path: Path) -> None:
    code = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
assert not interrupted(press)
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""
    python(code, tmp_path)
