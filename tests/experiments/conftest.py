"""What every test of an experiment needs: ranks as users have them, and a way to run one."""

import functools

import jax
import pytest

from experiments.framework import inline


@pytest.fixture(autouse=True)
def ranks_as_users_have_them():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def run(tmp_path):
    """`run(experiment, config)`, the result."""
    return functools.partial(inline.run, out=tmp_path)
