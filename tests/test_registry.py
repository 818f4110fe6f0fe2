import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdirs.errors import ContractError, MissingDependencyError, UnknownNameError
from fastdirs.registry import Registry, install_hint, unknown_name

PACKAGE = "fastdirs_test_plugins"


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[str]]:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "alpha.py").write_text("PLUGIN = 'the alpha'\n")
    (folder / "beta.py").write_text("PLUGIN = 'the beta'\n")
    (folder / "_shared.py").write_text("PLUGIN = 'not a plug-in'\n")
    (folder / "empty.py").write_text("OTHER = 1\n")
    (folder / "needy.py").write_text("import package_that_nobody_wrote\nPLUGIN = 1\n")
    (folder / "accelerated.py").write_text("import tensorrt_that_is_missing.core\nPLUGIN = 1\n")
    (folder / "broken.py").write_text("import fastdirs.module_that_is_missing\nPLUGIN = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry(PACKAGE, "PLUGIN", "test plug-in")
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_file_names_are_the_registered_names(plugins: Registry[str]) -> None:
    assert plugins.names() == ["accelerated", "alpha", "beta", "broken", "empty", "needy"]


def test_listing_imports_nothing(plugins: Registry[str]) -> None:
    plugins.names()
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]


def test_load_returns_the_constant_and_imports_one_file(plugins: Registry[str]) -> None:
    assert plugins.load("alpha") == "the alpha"
    assert f"{PACKAGE}.alpha" in sys.modules
    assert f"{PACKAGE}.beta" not in sys.modules


def test_a_new_file_is_registered_at_once(plugins: Registry[str], tmp_path: Path) -> None:
    (tmp_path / PACKAGE / "gamma.py").write_text("PLUGIN = 'the gamma'\n")
    importlib.invalidate_caches()
    assert "gamma" in plugins.names()
    assert plugins.load("gamma") == "the gamma"


def test_unknown_name_gets_the_nearest_spelling_and_the_list(plugins: Registry[str]) -> None:
    with pytest.raises(
        UnknownNameError, match=r"no test plug-in 'alhpa'. Did you mean 'alpha'\? Known: accelerated, "
    ):
        plugins.load("alhpa")


def test_files_with_an_underscore_are_not_plug_ins(plugins: Registry[str]) -> None:
    with pytest.raises(UnknownNameError, match="_shared"):
        plugins.load("_shared")


def test_a_name_far_from_all_others_gets_no_guess(plugins: Registry[str]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        plugins.load("zzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_missing_package_names_the_pip_command(plugins: Registry[str]) -> None:
    with pytest.raises(
        MissingDependencyError, match=r"needs package_that_nobody_wrote.*pip install package_that"
    ):
        plugins.load("needy")


def test_a_missing_module_of_our_own_is_a_bug_not_a_missing_package(plugins: Registry[str]) -> None:
    with pytest.raises(ModuleNotFoundError, match="module_that_is_missing"):
        plugins.load("broken")


def test_file_without_the_constant_breaks_the_contract(plugins: Registry[str]) -> None:
    with pytest.raises(ContractError, match=f"{PACKAGE}.empty does not define PLUGIN"):
        plugins.load("empty")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("onnxruntime", "pip install 'fastdirs[cpu]'"),
        ("openvino.properties", "pip install 'fastdirs[cpu]'"),
        ("tensorrt", "pip install 'fastdirs[gpu]'"),
        ("tensorrt_rtx", "pip install 'fastdirs[rtx]'"),
        ("av", "pip install 'fastdirs[video]'"),
        ("some_package.part", "pip install some_package"),
    ],
)
def test_install_hint_prefers_an_extra(module: str, command: str) -> None:
    assert install_hint(module) == command


def test_unknown_name_without_any_names() -> None:
    assert str(unknown_name("thing", "x", [])) == "There is no thing 'x'. Known: none."


def test_listing_every_registry_imports_no_torch() -> None:
    code = (
        "import sys; from fastdirs.registry import Registry\n"
        "for folder in ('generators', 'discovery', 'backends', 'writers', 'lowering', 'checkpoints'):\n"
        "    assert Registry(f'fastdirs.{folder}', 'X', 'x').names(), folder\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
