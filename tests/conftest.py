"""What every test runs under: eight simulated devices, no silent broadcasting of ranks, fixed seeds, nothing cached."""

import importlib.util
import itertools
import os

import hypothesis
import jax
import jaxtyping
import pytest

SEED = 20240607
DEVICES = 8

# Through the configuration and not XLA_FLAGS: child processes that a test starts see the machine as a user does.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)

# The same examples on every machine; a failing one is printed so that it can be kept with @hypothesis.example.
hypothesis.settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, max_examples=50, print_blob=True
)
hypothesis.settings.load_profile("fixed")


def pytest_report_header() -> str:
    return f"jax {jax.__version__}, {DEVICES} simulated CPU devices, keys from seed {SEED}, hypothesis derandomized"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip comparisons with packages that are not installed, naming them and what installs them."""
    for item in items:
        for mark in item.iter_markers("oracle"):
            missing = [name for name in mark.args if importlib.util.find_spec(name) is None]
            if missing:
                reason = f"{', '.join(missing)} not installed: pip install -e '.[oracles]'"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def getkey():
    """A function that returns a new random key at every call, the same ones in every run."""
    print(f"keys from seed {SEED}")
    root, count = jax.random.key(SEED), itertools.count()
    return lambda: jax.random.fold_in(root, next(count))


@pytest.fixture
def x64():
    """float64 for this test only; elsewhere arrays are float32, as users have them."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def without_run_time_types():
    """Annotations are not checked here: what is tested is what a user without the tests' hook reads."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
