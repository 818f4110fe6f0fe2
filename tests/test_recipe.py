from pathlib import Path
from typing import Any

import pytest

from fastdirs.errors import RecipeError
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Graph, Recipe, Tolerance, load_recipe, usual_batch

RECIPES = sorted((Path(__file__).parent.parent / "export").glob("*.toml"))
WHOLE = """
generator = "toy"
weights_sha256 = "00ff"
required = ["f32", "bf16"]

[graph]
lowering = "subpixel"
opset = 20

[batch]
opt = 3
max = 9

[accept.f32]
mean = 0.001
max = 1
psnr = 100.0

[accept.bf16]
mean = 0.5
max = 8.0
psnr = 45
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_there_are_recipes() -> None:
    assert {"celeba-faces-64", "toy"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert path.stem.startswith(recipe.generator) or recipe.generator.startswith("../assets/")
    assert recipe.required == tuple(dict.fromkeys(("f32", *recipe.graph.precisions)))
    if recipe.weights_sha256 is None:
        assert "Not measured with these weights" in path.read_text()
        return
    assert len(recipe.weights_sha256) == 64, "a recipe names the weights it was measured with"
    # A recipe is measured, so it asks for no less than what is usual.
    for precision, tolerance in recipe.accept.items():
        assert tolerance.mean <= DEFAULT_ACCEPT[precision].mean
        assert tolerance.psnr >= DEFAULT_ACCEPT[precision].psnr


def test_reads_every_key(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path, WHOLE)) == Recipe(
        generator="toy",
        weights_sha256="00ff",
        graph=Graph(lowering="subpixel", opset=20),
        batch=Batch(opt=3, max=9),
        accept={
            "f32": Tolerance(mean=0.001, max=1, psnr=100.0),
            "bf16": Tolerance(mean=0.5, max=8.0, psnr=45),
        },
        required=("f32", "bf16"),
    )


def test_takes_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path, 'generator = "toy"')) == Recipe(generator="toy")
    assert Recipe(generator="toy").accept == {name: DEFAULT_ACCEPT[name] for name in ("f32", "bf16")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('generatr = "toy"', r"There is no key 'generatr'\. Did you mean 'generator'\?"),
        ('generator = "toy"\n[grph]\nopset = 18', r"There is no key 'grph'\. Did you mean 'graph'\?"),
        ('generator = "toy"\n[graph]\nlowring = "auto"', r"\[graph\]: There is no key 'lowring'.*'lowering'"),
        ('generator = "toy"\n[batch]\nmaximum = 8', r"\[batch\]: There is no key 'maximum'"),
        (
            'generator = "toy"\n[accept.f32]\nmean = 1\nmax = 1\npsnr = 1\nsnr = 1',
            r"\[accept\.f32\]: There is no key 'snr'.*'psnr'",
        ),
        (
            WHOLE.replace("accept.bf16", "accept.bf61"),
            r"\[accept\.bf61\]: There is no precision 'bf61'\. Did you mean 'bf16'\?",
        ),
        ("[batch]\nopt = 8", "generator is missing"),
        ('generator = "toy"\n[accept.f32]\nmean = 1\nmax = 1', r"\[accept\.f32\]: psnr is missing"),
        ("generator = 3", "generator is 3. Expected str"),
        ('generator = "toy"\nweights_sha256 = 7', "weights_sha256 is 7. Expected str"),
        ('generator = "toy"\ngraph = "auto"', "graph is 'auto'. Expected dict"),
        ('generator = "toy"\n[graph]\nopset = "18"', r"\[graph\]: opset is '18'\. Expected int"),
        ('generator = "toy"\n[batch]\nmax = 8.0', r"\[batch\]: max is 8\.0\. Expected int"),
        ('generator = "toy"\n[batch]\nmax = true', r"\[batch\]: max is True\. Expected int"),
        (
            'generator = "toy"\n[accept.f32]\nmean = "low"\nmax = 1\npsnr = 1',
            r"\[accept\.f32\]: mean is 'low'\. Expected float",
        ),
        ('generator = "toy"\naccept = 3', "accept is 3. Expected tables"),
        ('generator = "toy"\n[accept]\nf32 = 3', r"\[accept\.f32\] is 3\. Expected a table"),
        ('generator = "toy"\nrequired = "f32"', "required is 'f32'. Expected a list"),
        ('generator = "toy"\nrequired = [32]', r"required is \[32\]\. Expected a list"),
        (
            'generator = "toy"\nrequired = ["bf16"]\n[accept.f32]\nmean = 1\nmax = 1\npsnr = 1',
            r"required names 'bf16', but there is no \[accept\.bf16\] to require",
        ),
        (
            'generator = "toy"\n[batch]\nopt = 9\nmax = 8',
            r"batch\.opt is 9\. Expected 1 to batch\.max, which is 8",
        ),
        ('generator = "toy"\n[batch]\nopt = 0', r"batch\.opt is 0\. Expected 1 to"),
        ("generator: toy", "is not valid TOML"),
        ("<html></html>", "is not valid TOML"),
        ("", "generator is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_no_text_at_all(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(bytes(range(256)))
    for path in (binary, tmp_path / "missing.toml", tmp_path):
        with pytest.raises(RecipeError, match=r"cannot be read as a recipe"):
            load_recipe(path)


@pytest.mark.parametrize("values", [{"batch": Batch(opt=2, max=1)}, {"required": ("f16",)}])
def test_recipes_made_in_python_are_checked_too(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Recipe(generator="toy", **values)


@pytest.mark.parametrize(
    ("img_resolution", "opt"), [(16, 64), (64, 64), (128, 32), (256, 8), (512, 2), (1024, 2), (4096, 2)]
)
def test_usual_batch_sizes_follow_the_image_size(img_resolution: int, opt: int) -> None:
    assert usual_batch(img_resolution) == Batch(opt=opt, max=2 * opt)
    assert usual_batch(64) == Batch(), "what a recipe takes by itself"
