import threading
from pathlib import Path

import pytest

from fastdirs.errors import OutputError
from fastdirs.manifest import Json, manifest, write_json
from fastdirs.traversal_folder import KIND, earlier_run, remove_leftovers, remove_traversal, sole_run
from fastdirs.writers import INDEX_FILE, PLAN_FILE

ASKED: Json = {"seeds": [1, 2], "psi": 1.0, "class": None}


def _fill(folder: Path, **changes: object) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / PLAN_FILE, manifest(KIND, {**ASKED, "runtime": {}, "batch_size": 4, **changes}))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(OutputError) as error, sole_run(tmp_path / "out"):
            pass
        refused.append(str(error.value))

    with sole_run(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "is being filled by another run" in refused[0]
    with sole_run(tmp_path / "out"):
        pass
    assert not any((tmp_path / "out").iterdir()), "the lock is gone"


def test_an_earlier_run_is_known_by_what_it_was_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert earlier_run(out, ASKED, False) is None
    out.mkdir()
    assert earlier_run(out, ASKED, False) is None
    _fill(out)
    found = earlier_run(out, ASKED, False)
    assert found is not None
    assert found["batch_size"] == 4
    assert earlier_run(out, ASKED, True) is None, "force begins anew"
    with pytest.raises(OutputError, match="with other psi"):
        earlier_run(out, {**ASKED, "psi": 0.5}, False)
    _fill(out, seeds=[1])
    with pytest.raises(OutputError, match="with other seeds"):
        earlier_run(out, ASKED, False)


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match="holds no traversal, so it is left alone"):
            earlier_run(tmp_path, ASKED, force)


def test_what_is_removed(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "strips").mkdir()
    names = [
        "strips/a.jpg",
        f".{INDEX_FILE}.12.tmp",
        "strips/.a.jpg.7.tmp",
        "mine.txt",
        ".mine.tmp",
        INDEX_FILE,
    ]
    for name in names:
        (tmp_path / name).write_text(name)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [PLAN_FILE, "a.jpg", "mine.txt", ".mine.tmp", INDEX_FILE]
    )
    remove_traversal(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "mine.txt"]
