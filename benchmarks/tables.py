"""Write the README's tables from the committed results, so that no figure is typed by hand.

python benchmarks/tables.py
"""

from pathlib import Path
from typing import Any

import numpy as np
from harness import load_results, short

from fastdirs.backends import BACKENDS

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def render() -> str:
    """All results as Markdown."""
    return "\n".join(table(result) for result in load_results())


def updated(readme: str) -> str:
    """The README with its tables replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render()}\n{END}{after}"


def table(result: dict[str, Any]) -> str:
    """One result as Markdown."""
    machine, settings = result["machine"], result["settings"]
    cores = f"{machine['cores']} cores of {machine['gpu'] or machine['processor']}"
    place = f"{cores}, bf16 unit: {machine['bf16_unit'] or 'none'}"
    if "networks" in settings:
        return _networks(result, place)
    if "attributes" in settings:
        return _true_directions(result, place)
    if result["suite"] == "saliency-chain":
        return _chain(result, place)
    if result["suite"] == "masks-memory":
        return _memory(result, place)
    if result["suite"] == "masks-speed":
        return _mask_pairs(result, place)
    if "gflop_per_pair" in settings:
        return _pairs(result, place)
    if "held_out_pairs" in settings:
        return _training(result, place)
    if "weights" in settings:
        return _centroid(result, place)
    lines = [
        f"**{result['suite']}** ({settings['generator']}, batch {settings['batch']}; {place})",
        "",
        "| | precision | images/s | quartiles | error: mean, max grey levels | share of matrix rate |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["failure"]:
            lines.append(f"| {row['name']} | {row['precision']} | not measured: {row['failure']} | | | |")
            continue
        share = f"{row['matrix_share']:.0%}" if row["matrix_share"] is not None else ""
        speed = f"{row['images_per_second']:,.0f} | {row['low']:,.0f}-{row['high']:,.0f}"
        error = f"{row['error_mean']:.2g}, {row['error_max']:.2g}"
        lines.append(f"| {row['name']} | {row['precision']} | {speed} | {error} | {share} |")
    return "\n".join([*lines, "", _remark(settings), ""])


def _networks(result: dict[str, Any], place: str) -> str:
    """A line for each way to run each network, then what is true of the network itself."""
    settings = result["settings"]
    lines = [
        f"**{result['suite']}** (full size, random weights; {place})",
        "",
        "| | precision | images/s | quartiles | error: mean, max grey levels | of matrix rate | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        start = f"| {row['name']} | {row['precision']} |"
        if row["failure"]:
            lines.append(f"{start} not measured: {row['failure']} | | | | |")
            continue
        speed = f"{short(row['images_per_second'])} | {short(row['low'])}-{short(row['high'])}"
        error = f"{row['error_mean']:.2g}, {row['error_max']:.2g}"
        rest = f"{row['matrix_share']:.0%} | {row['extra']['peak_mib']:,.0f} |"
        lines.append(f"{start} {speed} | {error} | {rest}")
    lines.append("")
    for name, facts in settings["networks"].items():
        if "parameters" not in facts:
            continue
        size = f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['gflop_per_image']:.3g} GFLOP per image"
        export = "no export" if "export_seconds" not in facts else (
            f"exported in {facts['export_seconds']:.0f} s with {facts['export_peak_mib']:,} MiB at most"
        )  # fmt: skip
        lines.append(f"- {name}: {size}, batch {facts['batch']}, {export}.{_against_published(name, result)}")
    return "\n".join([*lines, "", _matrix_rates(settings), ""])


def _against_published(network: str, result: dict[str, Any]) -> str:
    """How the fastest compiled graph compares with the loop of the published scripts."""
    speed = {
        (row["name"].partition(": ")[2], row["precision"]): row["images_per_second"]
        for row in result["rows"]
        if row["name"].startswith(f"{network}: ") and not row["failure"]
    }
    published = speed.get(("published loop", "f32"))
    compiled = {pair: rate for pair, rate in speed.items() if pair[0] in BACKENDS.names()}
    if not published or not compiled:
        return ""
    name, precision = max(compiled, key=lambda pair: compiled[pair])
    return f" {name} {precision}: {compiled[name, precision] / published:.1f}x the published loop."


def _pairs(result: dict[str, Any], place: str) -> str:
    """A line for each way to run each reconstructor, whose answers have no grey levels."""
    settings = result["settings"]
    size = f"{settings['img_resolution']} pixels, {settings['num_directions']} directions"
    lines = [
        f"**{result['suite']}** (random weights, {size}, batch {settings['batch']}; {place})",
        "",
        "| | precision | pairs/s | quartiles | error: mean, max share of largest answer | of matrix rate |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        start = f"| {row['name']} | {row['precision']} |"
        if row["failure"]:
            lines.append(f"{start} not measured: {row['failure']} | | | |")
            continue
        speed = f"{short(row['images_per_second'])} | {short(row['low'])}-{short(row['high'])}"
        lines.append(
            f"{start} {speed} | {row['error_mean']:.1g}, {row['error_max']:.1g} | {row['matrix_share']:.0%} |"
        )
    work = ", ".join(f"{kind} {gflop:.3g}" for kind, gflop in settings["gflop_per_pair"].items())
    return "\n".join([*lines, "", f"GFLOP per pair: {work}. {_matrix_rates(settings)}", ""])


def _mask_pairs(result: dict[str, Any], place: str) -> str:
    """A line for each way to make pairs of images and masks."""
    settings = result["settings"]
    lines = [
        f"**{result['suite']}** ({settings['generator']}, batch {settings['batch']} pairs; {place})",
        "",
        "| | precision | pairs/s | quartiles | images: mean, max grey levels | masks: IoU |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        speed = f"{short(row['images_per_second'])} | {short(row['low'])}-{short(row['high'])}"
        error = f"{row['error_mean']:.2g}, {row['error_max']:.2g} | {row['extra']['mask_iou']:.4f}"
        lines.append(f"| {row['name']} | {row['precision']} | {speed} | {error} |")
    ratios = ", ".join(f"{ratio}x the {name}" for name, ratio in settings["ratios"].items())
    remark = (
        f"{settings['best']}: {ratios}; with shards {settings['share_of_raw']:.0%} of the same without. "
        "All published filters are on; errors are against the published loop in f32."
    )
    return "\n".join([*lines, "", remark, ""])


def _memory(result: dict[str, Any], place: str) -> str:
    """Peak memory by pairs."""
    rows = [f"| {row['pairs']:,} | {row['peak_mib']:,} | {row['seconds']:,} |" for row in result["rows"]]
    head = f"**{result['suite']}** ({result['settings']['generator']}, with shards; {place})"
    return "\n".join([head, "", "| pairs | peak MiB | seconds |", "|---|---|---|", *rows, ""])


def _chain(result: dict[str, Any], place: str) -> str:
    """What each step of the chain reaches against the judge, the exact masks or people's masks."""
    settings = result["settings"]
    lines = [
        f"**{result['suite']}** ({settings['pairs']:,} pairs, {settings['steps']:,} steps; {place})",
        "",
        "| | against | images | IoU | MAE | max F | S | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        figures = " | ".join(
            f"{row[name]:.3f}" if name in row else "" for name in ("iou", "mae", "max_f", "s_measure", "kept")
        )
        lines.append(f"| {row['name']} | {row['against']} | {row['images']:,} | {figures} |")
    spent = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in settings["seconds"].items())
    return "\n".join([*lines, "", f"Faces: {spent}.", ""])


def _training(result: dict[str, Any], place: str) -> str:
    """A line for each way to train: steps per second, and held-out accuracy along the way."""
    settings, rows = result["settings"], result["rows"]
    steps = list(rows[0]["accuracy"])
    what = f"{settings['generator']}, K = {settings['directions']}, batch {settings['batch']}"
    lines = [
        f"**{result['suite']}** ({what}; {place})",
        "",
        "| | precision | network | steps/s | quartiles | first loss: error | RCA after "
        + " | ".join(f"{int(step):,}" for step in steps)
        + " steps |",
        "|---|---|---|---|---|---|" + "---|" * len(steps),
    ]
    for row in rows:
        accuracies = " | ".join(f"{row['accuracy'][step]:.2f}" for step in steps)
        speed = f"{short(row['steps_per_second'])} | {short(row['low'])}-{short(row['high'])}"
        same = row["reconstructor"] == rows[0]["reconstructor"]
        error = f"{row['first_loss_error']:.1e}" if same else "other network"
        start = f"| {row['name']} | {row['precision']} | {row['reconstructor']} |"
        lines.append(f"{start} {speed} | {error} | {accuracies} |")
    pairs = f"{settings['held_out_pairs']} held-out pairs"
    remark = f"{settings['ratio']:.2f}x the steps per second of the straightforward loop; RCA on {pairs}."
    return "\n".join([*lines, "", remark, ""])


def _centroid(result: dict[str, Any], place: str) -> str:
    """A line for each generator and weight of the centroid loss: means and range over seeds."""
    settings, rows = result["settings"], result["rows"]
    names = {
        "rca": "RCA", "consistency": "consistency", "likeness": "likeness of others",
        "change_consistency": "same change", "smoothness": "smoothness", "bend": "bend, degrees",
    }  # fmt: skip
    lines = [
        f"**{result['suite']}** (manifolds, {settings['steps']:,} steps, {settings['seeds']} seeds; {place})",
        "",
        f"| generator | K | weight | {' | '.join(names.values())} |",
        "|---|---|---|" + "---|" * len(names),
    ]
    keys = dict.fromkeys((row["generator"], row["directions"], row["weight"]) for row in rows)
    for generator, count, weight in keys:
        mine = [row for row in rows if (row["generator"], row["weight"]) == (generator, weight)]
        cells = [[row[name] for row in mine] for name in names]
        digits = [1 if name == "bend" else 2 for name in names]
        texts = [
            f"{np.mean(cell):.{n}f} ({min(cell):.{n}f}-{max(cell):.{n}f})"
            for cell, n in zip(cells, digits, strict=True)
        ]
        lines.append(f"| {generator} | {count} | {weight:g} | {' | '.join(texts)} |")
    remark = (
        "Means over directions, then over seeds (lowest to highest seed). Consistency: cosine of a pair's "
        "features to the centroid of its direction without it; likeness: the same between centroids of "
        "different directions; same change and smoothness look at the pictures alone."
    )
    return "\n".join([*lines, "", remark, ""])


def _true_directions(result: dict[str, Any], place: str) -> str:
    """A line for each method and number of directions: how close it comes to the true ones."""
    settings = result["settings"]
    size = f"{settings['img_resolution']} pixels, {settings['seeds']} seeds"
    lines = [
        f"**{result['suite']}** ({settings['generator']}, {size}; {place}, {settings['threads']} thread)",
        "",
        "| method | K | cosine with the true direction | over seeds | worst direction | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cosines = np.array(row["cosines"])
        means = cosines.mean(axis=0)
        worst = f"{settings['attributes'][means.argmin()]} {means.min():.2f}"
        over = f"{cosines.mean(axis=1).min():.2f}-{cosines.mean(axis=1).max():.2f}"
        time = f"{np.median(row['seconds']):.1f}"
        lines.append(
            f"| {row['name']} | {row['directions']} | {cosines.mean():.2f} | {over} | {worst} | {time} |"
        )
    chance = ", ".join(f"{cosine:.2f} (K = {count})" for count, cosine in settings["chance"].items())
    remark = (
        "Each true direction is assigned a found one of its own, so that the sum of cosines is largest. "
        "A line gives the mean over directions and seeds, the seeds' means from lowest to highest, the "
        f"direction found worst, and the median time. Methods that train ran {settings['steps']:,} steps. "
        f"Random vectors of the space that the true ones span reach {chance}: what does no better has found "
        "that space alone. The weights that sefa factorises hold the true directions as they are, in this "
        "generator alone."
    )
    return "\n".join([*lines, "", remark, ""])


def _matrix_rates(settings: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate} TFLOP/s {name}" for name, rate in settings["matrix_tflops"].items())
    return f"Matrix product measured in the same run: {rates}."


def _remark(settings: dict[str, Any]) -> str:
    if "ratios" in settings:
        best, int8 = (
            ", ".join(f"{ratio}x {name}" for name, ratio in settings[each].items())
            for each in ("ratios", "ratios_int8")
        )
        return (
            f"Best ({settings['best']}): {best}. For those who accept its error ({settings['best_int8']}): "
            f"{int8}. {_matrix_rates(settings)}"
        )
    if "calibration_images" in settings:
        return f"int8 calibrated on {settings['calibration_images']} latents. {_matrix_rates(settings)}"
    if "evaluations" in settings:
        run, whole = settings["evaluations"]
        what = f"layers {settings['edited_layers']}, {settings['steps']} steps x {settings['directions']}"
        return (
            f"{settings['ratio']:.2f}x where what a seed's images share is computed once ({what} directions, "
            f"{settings['seeds']} seeds, {settings['rendered']} images on {settings['backend']}): {run:,} of "
            f"{whole:,} stage evaluations; largest difference: {settings['difference']:.2g} grey levels."
        )
    if "share_of_raw" in settings:
        what = f"{settings['images']:,} images on {settings['backend']}"
        return f"With files: {settings['share_of_raw']:.0%} of the raw runtime rate ({what})."
    first, *_, last = settings["resident_mib"]
    curve = settings["curve"]
    shown = [curve[round(at * (len(curve) - 1) / 5)] for at in range(6)]
    points = "; ".join(f"{images:,} in {seconds:.0f} s, {mib:,} MiB" for images, seconds, mib in shown)
    return (
        f"Resident memory along the way, MiB: {first} ... {last}; growth {settings['growth_mib']} MiB. "
        f"Images, time, memory: {points}."
    )


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
