import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastdirs.cli import main
from fastdirs.cli._interrupt import Interruptible

_LIBRARY = """
import os, signal
for _ in range({presses}):
    os.kill(os.getpid(), signal.SIGINT)
complete = True
"""


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(params=[1, 2])
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module amid whose import Ctrl-C is pressed, once or twice."""
    name = f"library_{request.param}"
    (tmp_path / f"{name}.py").write_text(_LIBRARY.format(presses=request.param))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def interrupted(work: Callable[[], object]) -> bool:
    try:
        with Interruptible():
            work()
    except KeyboardInterrupt:
        return True
    return False


def test_it_interrupts() -> None:
    assert interrupted(press)
    assert not interrupted(lambda: None)


def test_an_import_is_finished_first_unless_it_is_pressed_twice(library: str) -> None:
    def work() -> None:
        importlib.import_module(library)
        time.sleep(5)

    start = time.perf_counter()
    assert interrupted(work)
    assert time.perf_counter() - start < 4
    assert (library in sys.modules) == (library == "library_1")


def test_an_error_that_follows_is_no_error() -> None:
    def work() -> None:
        with suppress(KeyboardInterrupt):
            press()
        raise ValueError("half a library")

    assert interrupted(work)


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="broken"), Interruptible():
        raise ValueError("broken")


def test_afterwards_all_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    assert interrupted(press)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_whoever_ignores_it_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not interrupted(press)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "impatient.py").write_text(
        "import os, signal\ndef make(): os.kill(os.getpid(), signal.SIGINT)\n"
    )
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["discover", "--generator", "impatient:make", "--out", "out"])
    sys.modules.pop("impatient")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Interrupted.")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix) == ["impatient.py"]
