"""Every record of the catalog leads somewhere: its functions are public, what checks it exists."""

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest

from attnjax import catalog
from attnjax.catalog import RECORDS, Record

ROOT = Path(__file__).resolve().parent.parent
FORMS = {"dense", "rows", "blocks", "cudnn", "pallas", "parallel", "chunked", "recurrent", "scan"}
each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record.index))


@functools.cache
def functions_in(file: str) -> set[str]:
    """Names of the functions at the top of a file, by reading it."""
    path = ROOT / file
    assert path.is_file(), f"no file {file}"
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_indices_are_unique_and_ascending():
    indices = [record.index for record in RECORDS]
    assert indices == sorted(set(indices))


@each_record
def test_functions_are_public(record: Record):
    assert record.functions
    for function in record.functions:
        assert callable(function)
        public = re.sub(r"\._\w+", "", function.__module__)
        assert getattr(importlib.import_module(public), function.__name__) is function
        assert "arXiv" in (inspect.getdoc(function) or "") or function.__module__.startswith("attnjax.")


@each_record
def test_what_checks_it_exists(record: Record):
    assert record.checked
    for place in record.checked:
        file, _, name = place.partition("::")
        assert file.startswith(("tests/", "experiments/"))
        assert name in functions_in(file), f"{file} has no function {name}"
        assert name.startswith("test_") or file.startswith("experiments/")


@each_record
def test_the_source_is_well_formed(record: Record):
    assert re.fullmatch(r"\d{4}\.\d{5}", record.source.arxiv)
    submitted = 2000 + int(record.source.arxiv[:2])
    assert record.source.year == submitted
    assert 1 <= int(record.source.arxiv[2:4]) <= 12
    assert record.source.authors
    assert record.title


@each_record
def test_cost_and_forms_are_given(record: Record):
    assert record.cost.time.startswith("O(")
    assert record.cost.memory.startswith("O(")
    assert set(record.forms) <= FORMS


def test_the_sources_named_by_functions_are_the_same():
    """A function that names a paper of the catalog names it by the identifier that is in its record."""
    for record in RECORDS:
        named = [function for function in record.functions if record.source.arxiv in (inspect.getdoc(function) or "")]
        modules = [inspect.getmodule(function) for function in record.functions]
        described = [module for module in modules if record.source.arxiv in (getattr(module, "__doc__", "") or "")]
        generic = {295}  # a framework: its functions are this library's own, from many sources
        assert named or described or record.index in generic, f"{record.index}: no function names {record.source.arxiv}"


def test_importing_the_package_does_not_import_the_catalog():
    source = (ROOT / "attnjax" / "__init__.py").read_text(encoding="utf-8")
    assert "catalog" not in source
    assert catalog.__doc__
