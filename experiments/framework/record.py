"""Run one experiment and write its folder: claims.json, result.json and the figures."""

import dataclasses
import hashlib
import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.framework import plotting
from experiments.framework.context import Context, UsageError, new_progress
from experiments.registry import EXPERIMENTS

MAX_WRITTEN_ENTRIES = 2000  # larger arrays are summarized in result.json
_PACKAGES = ("attnjax", "jax", "jaxlib", "numpy", "scipy", "diffrax", "flax", "optax", "orbax-checkpoint", "matplotlib")


class Record(NamedTuple):
    """What a run left in its folder.

    Attributes:
        out: The folder.
        claims: Content of claims.json.
        result: Content of result.json.
    """

    out: Path
    claims: list[dict[str, Any]]
    result: dict[str, Any]


def prepare_folder(out: Path) -> Path:
    """Create `out` and check that files can be written in it.

    Raises:
        UsageError: The folder cannot be created or written to.
    """
    probe = out / ".writable"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--out {out} is not a folder that can be written to ({error.strerror}); name another one."
        ) from error
    return out


def execute(name: str, config: Any, *, out: Path, quick: bool, command: str, console: Console) -> Record:
    """Run the experiment `name` and write everything it found to `out`.

    `claims.json` is written last, so a folder that has it is complete.

    Args:
        name: Key of `EXPERIMENTS`.
        config: Instance of the experiment's `Config`.
        out: Folder to write to.
        quick: Whether these are the small sizes.
        command: The command line, to be recorded.
        console: Where progress is shown.

    Raises:
        UsageError: `out` cannot be written to, or the experiment refuses its config.
    """
    experiment = EXPERIMENTS[name]
    prepare_folder(out)
    (out / "claims.json").unlink(missing_ok=True)
    started = time.perf_counter()
    with new_progress(console) as progress:
        context = Context(out=out, seed=config.seed, quick=quick, progress=progress, command=command)
        result = experiment.run(config, context)
    ran = time.perf_counter()
    claims = [claim.as_dict() for claim in experiment.claims(result)]
    figures = plotting.save(experiment.plot(result), out)
    document = {
        **identity(name, config),
        "quick": quick,
        "seed": config.seed,
        "command": command,
        "versions": versions(),
        "device": device(),
        "timings": {"run_s": round(ran - started, 3), "claims_and_figures_s": round(time.perf_counter() - ran, 3)},
        "figures": figures,
        "result": as_json(result),
    }
    _write(out / "result.json", document)
    _write(out / "claims.json", claims)
    return Record(out, claims, document)


def finished(name: str, config: Any, out: Path) -> Record | None:
    """The complete record in `out` of the same experiment, config, code and device; None where there is none."""
    try:
        result = json.loads((out / "result.json").read_text())
        claims = json.loads((out / "claims.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    wanted = json.loads(json.dumps({**identity(name, config), "versions": versions(), "device": device()}))
    return Record(out, claims, result) if all(result.get(key) == value for key, value in wanted.items()) else None


def identity(name: str, config: Any) -> dict[str, Any]:
    """What a run is a function of, besides versions and device."""
    return {"experiment": name, "config": as_json(config), "code": _code_digest()}


def versions() -> dict[str, str]:
    """Python and the packages that results may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """Platform, kind and number of the devices in use."""
    first = jax.devices()[0]
    return f"{first.platform}: {len(jax.devices())} x {first.device_kind}"


def as_json(value: Any) -> Any:
    """Turn configs, named tuples and arrays into JSON-ready data; large arrays are summarized."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: as_json(entry) for name, entry in zip(value._fields, value, strict=True)}  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return _array_as_json(np.asarray(value))
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)


def _array_as_json(array: np.ndarray) -> Any:
    if array.size > MAX_WRITTEN_ENTRIES:
        ends = {"min": array.min(), "max": array.max(), "mean": array.mean()}
        return {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            **{k: as_json(v.item()) for k, v in ends.items()},
        }
    return as_json(array.tolist())


def _code_digest() -> str:
    """Hash of every Python source that a result may depend on, so that a changed program is run again."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder in ("attnjax", "experiments", "pallas_kernels"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
