"""One model of every backend over the sample photos: ``python -m nox -s quickstart``.

Weights are random (seeded) unless ``--pretrained`` is given, which downloads the libraries' own.
"""

from __future__ import annotations

from pathlib import Path

import click

import featreg
from featreg.cli.tables import format_table

RUNS = {  # model: layers, pretrained weights
    "timm:resnet50": (["C2", "C5", "pooled"], "default"),
    "torchvision:resnet50": (["C2", "C5", "pooled"], "default"),
    "open_clip:ViT-B-32": (["C5", "embedding"], "laion2b_s34b_b79k"),
    "mindspore:resnet50": (["C2", "C5", "pooled"], "default"),
}
PHOTOS = Path(__file__).parent.parent / "photos"


@click.command()
@click.option("--photos", type=click.Path(path_type=Path), default=PHOTOS, help="A folder of images.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("features"), help="Where the stores go.")
@click.option("--pretrained", is_flag=True, help="Download the libraries' weights; random (seeded) ones otherwise.")
def main(photos: Path, out: Path, pretrained: bool) -> None:
    """Extract, then show every layer of every store."""
    rows = []
    for model, (layers, tag) in RUNS.items():
        weights = tag if pretrained else None
        path = out / f"{model.replace(':', '-')}.zarr"
        store = featreg.extract(photos, path, model, layers, weights=weights, overwrite=True, progress=True)
        backend, _, name = model.partition(":")
        for layer in layers:
            shape = "x".join(map(str, store[layer].shape[1:]))
            rate = f"{store.summary.images_per_second:.1f}"
            rows.append([backend, name, layer, shape, f"{store.summary.ok}/{len(store)}", rate, str(path)])
    click.echo(format_table(["backend", "model", "layer", "shape", "rows ok", "images/s", "store"], rows))
    if not pretrained:
        click.echo("\nWeights are random (seeded): --pretrained downloads the libraries' own.")


if __name__ == "__main__":
    main()
