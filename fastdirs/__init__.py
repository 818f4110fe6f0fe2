"""fastdirs: find, look at, name and render interpretable directions of pretrained GANs.

    generator = fastdirs.load_generator("celeba-faces-64")   # zoo name, file or package.module:factory
    bank = fastdirs.discover(generator, "sefa", num_directions=20)
    artifact = fastdirs.export_generator(generator, "out/celeba")  # ONNX, verified against torch
    runtime = fastdirs.open_runtime(artifact, backend="auto")      # numpy in, numpy out

The map, each level importing only from those above it:

    errors, registry                  every exception; folders as registries
    latents, images, manifest,        seeds to z; pixels; the JSON beside artefacts and atomic files;
      recipe                          what an export asks for (TOML)
    checkpoints/, machine, zoo/       safe readers; timing and machine facts; real generators as data
    directions, generators/           the direction bank; the generator contract, one file per family
    module_generator, identification, the user's own torch module; which family a checkpoint is of;
      shift_space, pairs,             the edited layers as one vector; what is shifted, along what, how far;
      deformators, reconstructors/,   direction and epsilon -> shift; an image pair -> direction and epsilon;
      mask_rules/, separation,        a mask of an image and the same shifted; how well it separates the two;
      shards, segmenters/             tar files of pairs; image -> saliency
    lowering/, interchange/,          pure rewrites before export; direction files of other programs;
      bank_editing, backends/,        labels, merge, select; one file per runtime;
      mask_dataset, mask_tail,        the folder of shards; what follows a synthesis to make pairs;
      mask_filters, mask_refinement,  what makes a pair; masks led to the edges of the picture;
      loading, graphs,                what the user names -> generator; what is traced;
      artifact, traversal             the exported folder; the plan: seeds x directions x epsilons
    parity, throughput, download,     error against torch; images per second; fetching zoo entries;
      tracing, graph_parts,           a module becomes one ONNX file; it is cut between stages;
      graph_precision, quantization,  f16 and bf16 in the graph; int8, calibrated on sampled latents;
      worst_image                     what an export changed most, as a picture
    training/, engines, verification  one loop for all methods that train; engines of exported graphs; graphs
                                      against torch at three batch sizes
    discovery/, selection, export,    one file per method; the fastest backend here; trace, verify, write;
      reconstructor_export, halves,   the same for reconstructors; what edits share is computed once;
      latents_of_z, tails             from z to latents, wherever the way was kept; what reads the images
    synthesis_parts                   a synthesis cut in two, or followed by what reads its images
    runtime, reconstructor_runtime,   an opened backend, for images and for what is seen in them;
      bench, writers/                 every backend measured; strips, grids, atlas, video
    traversal_folder, samples,        the folder of a traversal; what plain sampling renders;
      mask_settings                   what pairs are made with
    mask_pairs, strips                seeds in, images and masks out; strips of any seeds, in any process
    gallery, mask_page, mask_shards   the pipeline that fills a folder; how masks look; shards are filled
    masks, mask_scores, saliency/     datasets of pairs; which direction removes backgrounds; saliency models
    cluster, inspection               the same jobs on Ray; what a file holds
    rendering, evaluation/            plain sampling: images, a grid, or one array; how good directions are
    cli/                              click: parse, call one function, print
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastdirs.directions import DirectionBank as DirectionBank
    from fastdirs.directions import load_bank as load_bank
    from fastdirs.discovery import discover as discover
    from fastdirs.download import pull as pull
    from fastdirs.evaluation import evaluate as evaluate
    from fastdirs.export import export_generator as export_generator
    from fastdirs.gallery import traverse as traverse
    from fastdirs.generators import Generator as Generator
    from fastdirs.interchange import export_bank as export_bank
    from fastdirs.interchange import import_bank as import_bank
    from fastdirs.loading import convert as convert
    from fastdirs.loading import load_generator as load_generator
    from fastdirs.masks import make_masks as make_masks
    from fastdirs.module_generator import ModuleGenerator as ModuleGenerator
    from fastdirs.rendering import render as render
    from fastdirs.runtime import open_runtime as open_runtime
    from fastdirs.saliency.runtime import open_saliency as open_saliency
    from fastdirs.saliency.training import train_saliency as train_saliency

_PUBLIC = {
    "DirectionBank": "directions",
    "Generator": "generators",
    "ModuleGenerator": "module_generator",
    "convert": "loading",
    "discover": "discovery",
    "evaluate": "evaluation",
    "export_bank": "interchange",
    "export_generator": "export",
    "import_bank": "interchange",
    "load_bank": "directions",
    "load_generator": "loading",
    "make_masks": "masks",
    "open_runtime": "runtime",
    "open_saliency": "saliency.runtime",
    "pull": "download",
    "render": "rendering",
    "train_saliency": "saliency.training",
    "traverse": "gallery",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    # Public names are imported on first use, so that `fastdirs --help` never waits for torch.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fastdirs' has no attribute {name!r}")
    return getattr(import_module(f"fastdirs.{_PUBLIC[name]}"), name)
