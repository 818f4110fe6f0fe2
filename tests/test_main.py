import subprocess
import sys

import fastdirs


def test_the_package_can_be_run() -> None:
    command = [sys.executable, "-m", "fastdirs", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert fastdirs.__version__ in done.stdout
