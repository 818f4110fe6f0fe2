"""What every writer promises, whatever it writes."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdirs.errors import MissingDependencyError, OutputError
from fastdirs.images import ENCODERS
from fastdirs.writers import WRITERS, Gallery, StripWriter, View


def load(name: str) -> Any:
    try:
        return WRITERS.load(name)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def of_kind(kind: type) -> list[str]:
    """Names of one kind; views whose package is missing are kept, so that their tests are seen to skip."""
    names = []
    for name in WRITERS.names():
        try:
            wanted = isinstance(WRITERS.load(name), kind)
        except MissingDependencyError:
            wanted = kind is View
        names += [name] if wanted else []
    return names


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def ignore(done: int, total: int) -> None:
    """A progress that nobody looks at."""


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, which writers meet as they would a full disk."""
    resource = pytest.importorskip("resource", reason="file size limits are a thing of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", WRITERS.names())
def test_is_a_writer_with_a_one_line_summary(name: str) -> None:
    writer = load(name)
    assert isinstance(writer, StripWriter | View)
    assert writer.summary
    assert "\n" not in writer.summary


@pytest.mark.parametrize(("name", "image_format"), list(itertools.product(of_kind(StripWriter), ENCODERS)))
def test_strip_writer_gives_equal_bytes_for_equal_images(name: str, image_format: str) -> None:
    writer = load(name)
    images = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    assert writer.encode(images, image_format) == writer.encode(images.copy(), image_format)
    assert writer.suffix(image_format).isalnum()


@pytest.mark.parametrize("name", of_kind(View))
@pytest.mark.parametrize("image_format", ENCODERS)
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_view_builds_the_same_files_twice(
    name: str, image_format: str, grey: bool, make_gallery: Callable[..., Gallery]
) -> None:
    gallery, view = make_gallery(image_format=image_format, grey=grey), load(name)
    strips = files_of(gallery.folder)
    first = {path: path.read_bytes() for path in view.build(gallery, ignore)}
    second = {path: path.read_bytes() for path in view.build(gallery, ignore)}
    assert first
    assert first == second
    assert files_of(gallery.folder) - strips == set(first), (
        "a file that was not reported, such as a temporary one"
    )


@pytest.mark.parametrize("name", of_kind(View))
@pytest.mark.parametrize("epsilons", [(0.0,), (1.0, 2.0), (-1.0, 0.0, 1.0)], ids=len)
def test_view_builds_with_few_epsilons_and_one_seed(
    name: str, epsilons: tuple[float, ...], make_gallery: Callable[..., Gallery]
) -> None:
    assert load(name).build(make_gallery(seeds=(7,), directions=(2,), epsilons=epsilons), ignore)


@pytest.mark.parametrize("name", of_kind(View))
def test_view_tells_progress_until_all_is_done(name: str, gallery: Gallery) -> None:
    told: list[tuple[int, int]] = []
    load(name).build(gallery, lambda done, total: told.append((done, total)))
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert told[-1] == (totals[0], totals[0])


@pytest.mark.parametrize("name", of_kind(View))
def test_view_that_cannot_be_written_leaves_nothing_behind(name: str, gallery: Gallery) -> None:
    view = load(name)
    before = files_of(gallery.folder)
    with largest_file(64), pytest.raises(OutputError, match="could not be written: File too large"):
        view.build(gallery, ignore)
    assert files_of(gallery.folder) == before
