"""The files of a store that hold what the steps of its derived layers have learnt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from featreg.derived import FittedRecipe, dump_fitted, load_fitted
from featreg.errors import StoreError
from featreg.stores.documents import damaged
from featreg.stores.layout import FitRecord, Pass
from featreg.stores.places.place import Place
from featreg.stores.staging import is_whole

__all__ = ["fit_record", "fitted_layers", "read_fit", "restore_fit", "write_fit"]


def write_fit(place: Place, fitted: FittedRecipe) -> FitRecord:
    """Write a fit and its copy. Several writers of one fit write the same: the name of a file tells its content."""
    data = dump_fitted(fitted)
    fit = FitRecord(hashlib.sha256(data).hexdigest())
    for name in (fit.name, fit.copy):
        if not is_whole(place, name, fit.sha256):
            place.write(name, data)
    return fit


def fit_record(fitted: FittedRecipe) -> FitRecord:
    """What :func:`write_fit` would give."""
    return FitRecord(hashlib.sha256(dump_fitted(fitted)).hexdigest())


def read_fit(place: Place, fit: FitRecord) -> FittedRecipe:
    """A fit, or what its copy has; raises StoreDamagedError where neither is what was written."""
    got = "nothing"
    for name in (fit.name, fit.copy):
        try:
            data = place.read(name)
        except FileNotFoundError:
            continue
        got = "another checksum"
        if hashlib.sha256(data).hexdigest() == fit.sha256:
            try:
                return load_fitted(data)
            except StoreError as error:  # written whole, by a version with another format
                got = error.got
    raise damaged(fit.name, got, "the fit that its pass names, here or in its copy")


def fitted_layers(place: Place, part: Pass) -> Mapping[str, FittedRecipe]:
    """What the derived layers of a pass have learnt, by their keys; those that learn nothing are not among them."""
    return {str(layer.key): read_fit(place, layer.fit) for layer in part.layers if layer.fit is not None}


def restore_fit(place: Place, fit: FitRecord) -> bool:
    """Make a damaged file of a fit anew from its copy, or the copy from it; False where both are damaged."""
    whole = [name for name in (fit.name, fit.copy) if is_whole(place, name, fit.sha256)]
    if not whole:
        return False
    for name in {fit.name, fit.copy} - set(whole):
        place.write(name, place.read(whole[0]))
    return True
