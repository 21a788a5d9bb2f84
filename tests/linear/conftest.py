"""What tests of linear attention share."""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_to_compile(request):
    """Programs that run once or twice at tiny sizes are not worth optimizing; long tests are."""
    if "slow" in request.keywords:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
