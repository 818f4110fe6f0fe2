"""The package keeps its own rules: who imports whom, which libraries stay where, sizes, no unsafe readers."""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import fastdirs

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastdirs"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *ROOT.glob("*.py")])

# A module imports only from the levels above its own; modules of one level do not know each other.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("errors", "registry"),
    ("latents", "images", "manifest", "recipe"),
    ("checkpoints", "machine", "zoo"),
    ("directions", "generators"),
    (
        "module_generator",
        "identification",
        "shift_space",
        "reconstructors",
        "pairs",
        "deformators",
        "shards",
        "mask_rules",
        "separation",
        "segmenters",
    ),
    (
        "mask_dataset",
        "mask_tail",
        "mask_filters",
        "mask_refinement",
        "lowering",
        "interchange",
        "bank_editing",
        "backends",
        "loading",
        "artifact",
        "graphs",
        "traversal",
    ),
    (
        "parity",
        "throughput",
        "download",
        "tracing",
        "graph_parts",
        "graph_precision",
        "quantization",
        "worst_image",
    ),
    ("training", "engines", "verification"),
    ("discovery", "selection", "export", "halves", "latents_of_z", "reconstructor_export", "tails"),
    ("synthesis_parts",),
    ("runtime", "reconstructor_runtime", "bench", "writers"),
    ("traversal_folder", "samples", "mask_settings"),
    ("mask_pairs", "strips"),
    ("gallery", "mask_page", "mask_shards"),
    ("masks", "mask_scores", "saliency"),
    ("cluster", "inspection"),
    ("rendering", "evaluation"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
# The only exception: registry and errors are one level because each is tiny, but unknown names are errors.
SAME_LEVEL = {("registry", "errors")}

# Folders in which a file is a plug-in.
FOLDERS = (
    "backends",
    "checkpoints",
    "cli",
    "discovery",
    "generators",
    "interchange",
    "lowering",
    "mask_rules",
    "reconstructors",
    "segmenters",
    "writers",
)

ONLY_IN = {
    "av": ("writers/mp4.py",),
    "click": ("cli/",),
    "cv2": ("mask_refinement.py",),
    "onnx": (
        "backends/_ort", "checkpoints/onnx_file.py", "export.py", "generators/onnx_graph.py",
        "inspection.py", "tracing.py", "graph_parts.py", "graph_precision.py", "quantization.py", "halves.py",
        "verification.py", "backends/_tensorrt", "backends/trt.py", "tails.py", "synthesis_parts.py",
    ),
    "onnxruntime": ("backends/ort", "backends/_ort", "generators/onnx_graph.py", "quantization.py"),
    "onnxscript": ("tracing.py",),
    "jinja2": ("evaluation/report.py", "mask_page.py", "mask_scores.py", "saliency/report.py"),
    "lightning_fabric": ("training/fabric.py",),
    "openvino": ("backends/openvino_cpu.py",),
    "monai": ("segmenters/",),
    "PIL": ("images.py", "writers/"),
    "py_sod_metrics": ("saliency/metrics.py",),
    "ray": ("cluster.py",),
    "scipy": ("mask_filters.py",),
    "webdataset": ("shards.py",),
    "rich": ("cli/",),
    "subprocess": ("download.py",),
    "tensorrt": ("backends/trt.py", "backends/_tensorrt"),
    "tensorrt_rtx": ("backends/trt.py", "backends/_tensorrt"),
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def unit(path: Path) -> str:
    """The module or folder directly below fastdirs that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, inside functions too: `fastdirs.errors.ShapeError`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[list[str]]:
    """What a file imports from fastdirs, as parts below it: `["errors", "CheckpointError"]`."""
    for name in imports(path):
        root, *parts = name.split(".")
        if root == "fastdirs" and parts and parts != ["__version__"]:
            yield parts


def everywhere(paths: list[Path]) -> object:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(ROOT).as_posix())


def test_every_module_has_a_level() -> None:
    units = {unit(path) for path in FILES} - {"__init__"}
    missing = units - set(LEVEL)
    assert not missing, (
        f"give {sorted(missing)} a level in {__file__} and a line in the map of fastdirs/__init__.py"
    )


def test_the_map_of_the_package_shows_the_same_levels() -> None:
    assert fastdirs.__doc__
    places = fastdirs.__doc__.partition("The map")[2].split("\n")
    lines = {}
    for number, line in enumerate(places):
        # Names stand on the left of what is said about them, at least two spaces apart.
        for name in line.strip().partition("  ")[0].split(","):
            lines[name.strip().rstrip("/")] = number
    shown = [[name for name in names if not name.startswith("__")] for names in LEVELS]
    missing = [name for names in shown for name in names if name not in lines]
    assert not missing, f"the map in fastdirs/__init__.py leaves out {missing}"
    for above, below in pairwise(shown):
        assert all(lines[a] < lines[b] for a in above for b in below), f"{above} must stand above {below}"


# The package's own __init__ is left out: it imports public names on first use only.
@everywhere([path for path in FILES if path != PACKAGE / "__init__.py"])
def test_imports_come_from_the_levels_above(path: Path) -> None:
    mine = unit(path)
    for parts in own_imports(path):
        other = parts[0]
        allowed = other == mine or LEVEL[other] < LEVEL[mine] or (mine, other) in SAME_LEVEL
        assert allowed, f"{name_of(path)} (level {LEVEL[mine]}) imports {other} (level {LEVEL[other]})"


@everywhere(FILES)
def test_the_package_itself_gives_only_its_version(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "fastdirs"
        ):
            assert node.attr == "__version__", f"{name_of(path)}:{node.lineno} uses fastdirs.{node.attr}"


@everywhere([path for path in FILES if path.parent.name in FOLDERS])
def test_plug_ins_do_not_know_each_other(path: Path) -> None:
    siblings = {other.stem for other in path.parent.glob("*.py") if not other.stem.startswith("_")}
    for parts in own_imports(path):
        if parts[0] == path.parent.name and len(parts) > 1:
            assert parts[1] not in siblings, f"{name_of(path)} imports its sibling {parts[1]}"


@everywhere(FILES)
def test_plug_ins_are_reached_through_their_registry(path: Path) -> None:
    # Readers of files are the exception: banks and generators are written in one of these formats.
    closed = set(FOLDERS) - {"checkpoints", path.parent.name}
    for parts in own_imports(path):
        if parts[0] in closed and len(parts) > 1:
            plug_in = PACKAGE / parts[0] / f"{parts[1]}.py"
            assert not plug_in.exists(), f"{name_of(path)} imports the plug-in {'.'.join(parts[:2])}"


@everywhere(FILES)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    for name in imports(path):
        places = ONLY_IN.get(name.partition(".")[0])
        if places is not None:
            assert name_of(path).startswith(places), f"{name_of(path)} imports {name}; only {places} may"


@everywhere([path for path in FILES if unit(path) != "cli"])
def test_only_the_command_line_prints(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name_of(path)}:{node.lineno} prints"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout.write", "sys.stderr.write"):
            pytest.fail(f"{name_of(path)}:{node.lineno} writes to the terminal")


def keyword(call: ast.Call, name: str) -> object:
    """The constant passed as a keyword, None if there is none."""
    values = [k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)]
    return values[0] if values else None


@everywhere([*FILES, *SCRIPTS])
def test_no_file_can_run_code(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called, where = ast.unparse(node.func), f"{path.relative_to(ROOT)}:{node.lineno}"
        forbidden = (
            "eval",
            "exec",
            "pickle.load",
            "pickle.loads",
            "pickle.Unpickler",
            "os.system",
            "torch.load",
            "torch.jit.load",
        )
        assert called not in forbidden, f"{where} calls {called}"
        assert keyword(node, "shell") is not True, f"{where} starts a shell"
        if called in ("np.load", "numpy.load"):
            assert keyword(node, "allow_pickle") is not True, f"{where} lets numpy read pickles"


@everywhere([*FILES, *SCRIPTS])
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            broad = caught in ("everything", "Exception", "BaseException")
            assert not broad or reraises, f"{path.relative_to(ROOT)}:{node.lineno} catches {caught}"


@everywhere([*FILES, *SCRIPTS, *sorted((ROOT / "tests").rglob("*.py"))])
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc", "tools")


@everywhere([*FILES, *SCRIPTS])
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "a sentence or two that a newcomer can use"


def covering(path: Path) -> list[str]:
    """Test files, any of which covers a module: its own, or for shared parts of a folder the contract's."""
    inside = path.relative_to(PACKAGE)
    folder, stem = inside.parent, inside.stem
    own = f"tests/{folder}/test_{stem.strip('_')}.py".replace("/./", "/")
    shared = [f"tests/{folder}/test_contract.py", f"tests/test_{folder.name or 'fastdirs'}.py"]
    if stem == "__init__":
        return shared
    # Commands are thin: what they share is tested in one place.
    return [own, *shared] if folder.name == "cli" or (folder.name and stem.startswith("_")) else [own]


@everywhere(FILES)
def test_every_module_has_its_tests(path: Path) -> None:
    tests = covering(path)
    assert any((ROOT / test).is_file() for test in tests), f"{name_of(path)} is tested by none of {tests}"


def test_every_plug_in_folder_is_a_registry() -> None:
    for folder in FOLDERS:
        assert "fastdirs.registry.Registry" in set(imports(PACKAGE / folder / "__init__.py")), folder
