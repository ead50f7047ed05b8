"""From a :class:`RunConfig` to the run that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

import featreg
from featreg.engine.planning.estimate import Estimate
from featreg.engine.runfile.choices import LayerChoice
from featreg.engine.runfile.runconfig import RunConfig
from featreg.errors import SpecError
from featreg.pool import Pool
from featreg.sources import Source, open_source
from featreg.spec import Layer
from featreg.stores import FeatureStore

__all__ = ["arguments", "check_config", "estimate_config", "run_config"]

_REQUEST = ("weights", "output_stride", "device", "dtype")
_ESTIMATED = ("batch_size", "limit", "fraction", "seed", "num_workers", "fit_from", "overwrite")
_RUNNING = ("part", "on_error", "max_error_rate", "metrics", "engine", "num_gpus", "address")
_ADDING = ("batch_size", "num_workers", "part", "max_error_rate", "metrics")
_DERIVING = ("derive", "concat", "fit_from", "store_dtype")


def run_config(
    config: RunConfig, *, progress: bool = False, on_begin: Callable[[Estimate], object] = lambda _: None
) -> FeatureStore:
    """Run what a configuration describes; raises SpecError for what is missing, and as :func:`~featreg.extract`.

    ``on_begin`` is told the estimate when everything is ready to begin.
    """
    check_config(config)
    if config.add_layers or config.append:
        return _add(config, progress, on_begin)
    more = {name: getattr(config, name) for name in _RUNNING}
    return featreg.extract(**arguments(config), **more, progress=progress, on_estimate=on_begin)


def estimate_config(config: RunConfig) -> Estimate:
    """What a run would take; nothing is tried out where layers or rows are added. Raises as :func:`run_config` does."""
    from featreg.engine.additions import estimate_layers, estimate_rows

    check_config(config)
    assert config.store is not None
    if config.append:
        return estimate_rows(config.store, source=_source(config))
    if config.add_layers:
        return estimate_layers(config.store, **_added(config))
    return featreg.estimate(**arguments(config))


def arguments(config: RunConfig) -> dict[str, Any]:
    """What :func:`~featreg.extract` and :func:`~featreg.estimate` have in common."""
    choices = config.layers
    request = {name: getattr(config, name) for name in _REQUEST if getattr(config, name) is not None}
    pool, flatten = _pooling(choices, config.pool), _flattening(choices, config.flatten)
    return {
        "source": _source(config),
        "store": config.store,
        "model": config.model,
        "layers": [choice.layer for choice in choices] or None,
        **({} if pool is None else {"pool": pool}),
        **({"flatten": flatten} if flatten else {}),
        **({"options": dict(config.options)} if config.options else {}),
        **request,
        "derive": (*config.derive, *config.concat),
        "store_dtype": _dtypes(choices, config),
        **{name: getattr(config, name) for name in _ESTIMATED},
    }


def check_config(config: RunConfig) -> None:
    """Raise SpecError where something is missing, or where things do not go together."""
    if config.source is None or config.store is None:
        raise SpecError("the source or the store is not given", "SOURCE and STORE, or both in a run file")
    if config.add_layers or config.append:
        _check_addition(config)
    elif config.model is None or not (config.layers or config.derive or config.concat):
        raise SpecError(
            "what to extract is not given",
            "--model, and --layer or --derive or --concat",
            remedy="featreg describe MODEL",
        )
    elif config.engine == "local" and (config.num_gpus is not None or config.address is not None):
        raise SpecError("num_gpus and address are those of Ray", "--engine ray, or neither of them", "engine='local'")


def _check_addition(config: RunConfig) -> None:
    plain = RunConfig()
    changed = {
        field.name for field in attrs.fields(RunConfig) if getattr(config, field.name) != getattr(plain, field.name)
    }
    known = {"source", "store", "kind", "source_options", "add_layers", "append", *_ADDING}
    besides = sorted(changed - known - set(_DERIVING if config.add_layers else ()))
    if besides or (config.add_layers and config.append):
        raise SpecError(
            "--add-layer and --append take the model from the store, and go one after the other; "
            f"leave out {', '.join(map(_flag, besides)) or 'one of them'}"
        )


def _flag(name: str) -> str:
    """The flag of an option: of several layers each is one."""
    singular = {"layers": "layer", "options": "option", "source_options": "source-option"}
    return f"--{singular.get(name, name).replace('_', '-')}"


def _add(config: RunConfig, progress: bool, on_begin: Callable[[Estimate], object]) -> FeatureStore:
    """More layers, or more rows where there are none of them; all that decides the values is that of the store."""
    from featreg.engine.additions import add_layers, append

    run: dict[str, Any] = {name: getattr(config, name) for name in _ADDING if getattr(config, name) is not None}
    assert config.store is not None
    if config.append:
        return append(config.store, source=_source(config), progress=progress, on_estimate=on_begin, **run)
    return add_layers(config.store, **_added(config), progress=progress, on_estimate=on_begin, **run)


def _added(config: RunConfig) -> dict[str, Any]:
    """What :func:`~featreg.engine.add_layers` and its estimate have in common."""
    choices = config.add_layers
    return {
        "layers": [choice.layer for choice in choices],
        "pool": _pooling(choices, None),
        "flatten": _flattening(choices, False) or None,
        "derive": (*config.derive, *config.concat),
        "fit_from": config.fit_from,
        "store_dtype": _dtypes(choices, config),
        "source": _source(config),
    }


def _source(config: RunConfig) -> Source | str:
    """A path as it is, which the model may help to understand; or a source that kind and options decide."""
    assert config.source is not None
    if config.kind is None and not config.source_options:
        return config.source
    return open_source(config.source, kind=config.kind, **config.source_options)


def _pooling(choices: tuple[LayerChoice, ...], rest: Pool | None) -> Any:
    """One pooling for all, or those of the layers that have their own, ``rest`` for the others."""
    if all(choice.pool is None for choice in choices):
        return rest
    return [(choice.layer, choice.pool or rest) for choice in choices]


def _flattening(choices: tuple[LayerChoice, ...], common: bool) -> bool | list[Layer]:
    """All, none, or the layers that say so themselves."""
    return common or [choice.layer for choice in choices if choice.flatten]


def _dtypes(choices: tuple[LayerChoice, ...], config: RunConfig) -> str | dict[Layer, str] | None:
    """One type for all, or one by layer: that which a layer says itself, else that which goes for all."""
    own: dict[Layer, str] = {choice.layer: choice.dtype for choice in choices if choice.dtype is not None}
    common = config.store_dtype
    if isinstance(common, Mapping):
        return {**common, **own}
    if not own or common is None:
        return own or common
    names = [choice.layer for choice in choices] + [recipe.name for recipe in (*config.derive, *config.concat)]
    return {**dict.fromkeys(names, common), **own}
