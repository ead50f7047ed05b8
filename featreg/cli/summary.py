"""What ``featreg extract`` says of the store that it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featreg.cli.tables import format_table

if TYPE_CHECKING:
    from featreg.stores import FeatureStore
    from featreg.stores.progress import PassWork

__all__ = ["document", "report"]

SHOWN_ERRORS = 3


def _layers(store: FeatureStore) -> list[dict[str, Any]]:
    return [
        {
            "key": record.key,
            "name": record.info.name,
            "kind": record.info.kind,
            "shape": [len(store), *record.shape],
            "dtype": record.dtype,
            **({} if record.recipe is None else {"recipe": str(record.recipe)}),
        }
        for record in store.manifest.layers
    ]


def document(store: FeatureStore) -> dict[str, Any]:
    """What a run has left, as plain data."""
    summary = store.summary
    return {
        "store": store.uri,
        "model": store.manifest.request.model,
        "weights": store.manifest.request.weights,
        "rows": summary.rows,
        "failed": summary.failed,
        "skipped": summary.skipped,
        "classes": store.classes,
        "stray": store.manifest.source.stray,
        "done_before": summary.done_before,
        "added": [
            {"layers": list(one.layers), "rows": [one.start, one.stop], "done_before": one.before}
            for one in summary.worked
            if one.number
        ],
        "seconds": summary.seconds,
        "images_per_second": summary.images_per_second,
        "layers": _layers(store),
        "errors": store.errors,
    }


def report(store: FeatureStore) -> str:
    """What a run has left, for people."""
    summary, request = store.summary, store.manifest.request
    speed = "" if summary.images_per_second is None else f", images/s: {summary.images_per_second:.1f}"
    rows = [(layer["key"], "x".join(map(str, layer["shape"])), layer["dtype"]) for layer in _layers(store)]
    lines = [
        *_worked(store),
        format_table(("layer", "shape", "dtype"), rows),
        "",
        f"rows: {summary.rows}, failed: {summary.failed}, files skipped: {summary.skipped}{speed}",
        f"classes: {_classes(store)}",
        *_failures(store),
        f"model: {request.model}, weights: {request.weights or 'random (seeded), no pretrained weights'}",
        f"store: {store.uri}",
    ]
    return "\n".join(lines)


def _worked(store: FeatureStore) -> list[str]:
    """What was added to a store that was there, and what a run that was resumed had done of it before."""
    summary = store.summary
    if not summary.worked and summary.done_before:
        pending = f", and {summary.pending} rows are pending in other layers" if summary.pending else ""
        what = (
            "the store is finished: nothing was left to do in its" if not pending else "nothing was left to do in the"
        )
        return [f"{what} {summary.rows} rows{pending}", ""]
    lines = [line for one in summary.worked for line in _told(one)]
    if summary.pending:
        lines.append(f"{summary.pending} rows are pending in other layers: featreg worker STORE")
    return [*lines, ""] if lines else []


def _told(work: PassWork) -> list[str]:
    """A pass of more layers or more rows, and what was finished of one that was resumed."""
    rows, layers = work.stop - work.start, ", ".join(map(str, work.layers))
    before = f"resumed: {work.before} of {rows} rows were finished before"
    if not work.number:
        return [before] if work.before else []
    count = f"{rows} row{'s' * (rows != 1)}"
    added = f"added {layers} to {count}" if not work.start else f"added {count} of {layers}"
    return [f"{added}; {before}" if work.before else added]


def _classes(store: FeatureStore) -> str:
    """How many classes there are; where stray images are why there are none, their number."""
    stray = store.manifest.source.stray
    if store.classes is not None:
        return str(len(store.classes))
    images = "image lies" if stray == 1 else "images lie"
    return f"none ({stray} {images} outside of any sub-folder)" if stray else "none"


def _failures(store: FeatureStore) -> list[str]:
    """The first errors, a line each; the key in quotes, since a file name may hold anything."""
    lines = [f"  {key!r}: {error.splitlines()[0]}" for key, error in list(store.errors.items())[:SHOWN_ERRORS]]
    more = len(store.errors) - len(lines)
    return [*lines, f"  and {more} more: open_store(...).errors"] if more > 0 else lines
