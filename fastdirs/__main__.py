"""`python -m fastdirs` is `fastdirs`."""

from fastdirs.cli import main

main()
