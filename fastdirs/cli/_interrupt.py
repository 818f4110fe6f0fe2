"""Ctrl-C that is neither swallowed nor misunderstood."""

import signal
import threading
from types import FrameType, TracebackType

_AGAIN_S = 0.05


class Interruptible:
    """A block in which Ctrl-C raises KeyboardInterrupt, but amid an import only after the end of it.

    Large libraries swallow it while they are imported, or are left half-imported and fail later. Others turn
    it into an error of their own, so an error that follows a Ctrl-C is taken for a KeyboardInterrupt. Whoever
    presses it twice does not wait for imports.
    """

    def __init__(self) -> None:
        self._presses = 0
        # Ignored, as under nohup, or the business of a program that runs these commands.
        self._ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
            # Windows has no timer to try again with; Python's own Ctrl-C has to do there.
            and hasattr(signal, "setitimer")
        )

    def __enter__(self) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._handle)
            signal.signal(signal.SIGALRM, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if error is not None and self._presses:
            raise KeyboardInterrupt from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._presses += number == signal.SIGINT
        if self._presses > 1 or not _importing(frame):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
