"""What every test of an experiment needs: ranks as users have them, and a way to run one."""

import jax
import pytest

from experiments.framework.context import Context, new_progress


@pytest.fixture(autouse=True)
def ranks_as_users_have_them():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def run(tmp_path):
    """`run(experiment, config)`, the result."""

    def run(experiment, config):
        with new_progress() as progress:
            return experiment.run(config, Context(out=tmp_path, seed=config.seed, quick=True, progress=progress))

    return run
