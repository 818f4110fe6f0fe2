"""Write the README's tables from the committed results, so that no figure is typed by hand.

python benchmarks/tables.py
"""

from pathlib import Path
from typing import Any

from harness import load_results, short

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
    return "\n".join([*lines, "", *_remarks(settings), ""])


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
        lines.append(f"- {name}: {size}, batch {facts['batch']}, {export}.")
    return "\n".join([*lines, "", _matrix_rates(settings), ""])


def _matrix_rates(settings: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate} TFLOP/s {name}" for name, rate in settings["matrix_tflops"].items())
    return f"Matrix product measured in the same run: {rates}."


def _remarks(settings: dict[str, Any]) -> list[str]:
    if "ratios" in settings:
        ratios = ", ".join(f"{ratio}x {name}" for name, ratio in settings["ratios"].items())
        return [f"Best ({settings['best']}): {ratios}. {_matrix_rates(settings)}"]
    if "share_of_raw" in settings:
        what = f"{settings['images']:,} images on {settings['backend']}"
        return [f"With files: {settings['share_of_raw']:.0%} of the raw runtime rate ({what})."]
    first, *_, last = settings["resident_mib"]
    return [f"Resident memory along the way, MiB: {first} ... {last}; growth {settings['growth_mib']} MiB."]


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
