"""The house as a whole: what an import costs, who imports whom, and that everything public is explained."""

import ast
import graphlib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import attnjax

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("attnjax", "pallas_kernels", "experiments")
ALLOWED_AT_IMPORT = {"attnjax", "jax", "jaxlib", "jaxtyping", "numpy"}


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What `import attnjax` does.


def test_import_adds_nothing_but_attnjax_and_its_three_requirements():
    code = """
import sys, jax, jax.numpy, jax.extend.core, jax.interpreters.mlir, jaxtyping, numpy
before = set(sys.modules)
import attnjax
new = set(sys.modules) - before
print(*sorted({name.partition('.')[0] for name in new} - set(sys.stdlib_module_names)))
print(*[name for name in new if 'pallas' in name])
"""
    packages, pallas = run_python(code).split("\n")[:2]
    assert set(packages.split()) <= ALLOWED_AT_IMPORT
    assert pallas == "", "a kernel was imported, or what it takes to write one"


def test_import_takes_no_device():
    # The number of devices can be set only as long as nobody has asked for one.
    code = """
import jax, attnjax
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 3)
print(jax.device_count())
"""
    assert run_python(code).split() == ["3"]


def test_import_opens_nothing_but_modules():
    code = """
import sys, jax, jax.numpy, jax.extend.core, jax.interpreters.mlir, jaxtyping, numpy
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)
import attnjax
print(*[path for path in opened if '.py' not in path and not path.endswith('.so')], sep='\\n')
"""
    assert run_python(code).split() == []


# Who imports whom: arrows point down only (attnjax <- experiments, pallas_kernels <- attnjax, no circles).


def modules_of(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of a package, without importing any."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(name: str, path: Path) -> Iterator[str]:
    """Dotted names that a module imports, at its top or inside functions; relative ones resolved."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


IMPORTS = [
    (name, wanted) for package in PACKAGES for name, path in modules_of(package) for wanted in imports_of(name, path)
]


def imports_from(package: str) -> list[tuple[str, str]]:
    return [(name, wanted) for name, wanted in IMPORTS if (name + ".").startswith(package + ".")]


def offenders(pairs: list[tuple[str, str]], *forbidden: str) -> list[str]:
    return [f"{name} imports {wanted}" for name, wanted in pairs if wanted.split(".")[0] in forbidden]


def test_kernels_import_no_other_room():
    assert offenders(imports_from("pallas_kernels"), "attnjax", "experiments", "tests", "benchmarks", "colab") == []


def test_the_library_imports_nothing_that_is_built_on_it():
    assert offenders(imports_from("attnjax"), "experiments", "tests", "benchmarks", "colab") == []


def test_only_nn_imports_flax():
    others = [(name, wanted) for name, wanted in imports_from("attnjax") if not name.startswith("attnjax.nn")]
    assert offenders(others, "flax") == []


def test_the_library_imports_no_package_of_the_experiments():
    pairs = imports_from("attnjax")
    assert offenders(pairs, "optax", "orbax", "chex", "matplotlib", "tyro", "rich", "jinja2", "scipy", "torch") == []


def room_of(dotted: str) -> str:
    """The room of a dotted name: "attention" of attnjax.attention.masks, and "attnjax" of what no room holds."""
    parts = dotted.split(".")
    inside = len(parts) > 1 and (
        (ROOT / "attnjax" / parts[1]).is_dir() or (ROOT / "attnjax" / f"{parts[1]}.py").is_file()
    )
    return parts[1] if inside else "attnjax"


def room_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for name, wanted in imports_from("attnjax"):
        if wanted.split(".")[0] == "attnjax" and room_of(name) != room_of(wanted):
            graph.setdefault(room_of(name), set()).add(room_of(wanted))
    return graph


def test_attention_and_linear_know_nothing_of_the_rooms_above_them():
    ground = {"attention", "linear"}
    above = {
        (room, wanted) for room, all_wanted in room_graph().items() if room in ground for wanted in all_wanted - ground
    }
    assert [f"{room} imports {wanted}" for room, wanted in above if not wanted.startswith("_")] == []


def test_rooms_form_no_circle():
    # The package's own __init__ gathers the rooms; a room that says `import attnjax` stands above those it gathers.
    graph = room_graph()
    assert "nn" not in graph["attnjax"], "import attnjax would import flax"
    graphlib.TopologicalSorter(graph).prepare()


# Everything public is explained.


def public_modules() -> list[str]:
    found = ["attnjax"]
    for module in pkgutil.walk_packages(attnjax.__path__, "attnjax."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            found.append(module.name)
    return found


def public_objects() -> dict[str, object]:
    """Functions and classes of the library by the shortest public name that reaches them."""
    found: dict[int, tuple[str, object]] = {}
    for module_name in sorted(public_modules(), key=lambda name: name.count(".")):
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
            thing = getattr(module, name)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith("attnjax"):
                found.setdefault(id(thing), (f"{module_name}.{name}", thing))
    return dict(sorted(found.values(), key=lambda pair: pair[0]))


PUBLIC = public_objects()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring(name):
    doc = inspect.getdoc(PUBLIC[name])
    assert doc, f"{name} has no docstring"
    if inspect.isclass(PUBLIC[name]):
        # dataclasses write "Name(field, ...)" and named tuples an alias for those who forget.
        assert not doc.startswith(name.rpartition(".")[2] + "("), f"{name} has no docstring of its own"


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if inspect.isfunction(thing)])
def test_public_function_has_an_example(name):
    assert ">>>" in (inspect.getdoc(PUBLIC[name]) or ""), f"{name} has no doctest example"


@pytest.mark.parametrize("name", public_modules())
def test_public_module_has_a_docstring(name):
    assert importlib.import_module(name).__doc__, f"{name} has no docstring"


# The files.

TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jinja", ".txt", ".ipynb", ".sh", ".svg", ".html", ""}
ROOMS = (*PACKAGES, "tests", "benchmarks", "colab", "docs", ".ci")


def text_files() -> Iterator[Path]:
    for start in (*(ROOT / room for room in ROOMS), ROOT):
        paths = start.iterdir() if start == ROOT else start.rglob("*")
        yield from (p for p in paths if p.is_file() and p.suffix in TEXT and "__pycache__" not in p.parts)


def occurrences(pattern: str) -> list[str]:
    wanted = re.compile(pattern)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        if path != Path(__file__).resolve() and path.name != "LICENSE"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if wanted.search(line)
    ]


def test_files_name_no_path_of_one_machine():
    assert occurrences(r"(?<![\w.:/-])/(work|root|home|opt|Users|tmp/v)/\w") == []


def test_files_name_no_package_registry():
    assert occurrences(r"(?i)pypi\.org|pythonhosted|npmjs\.|download\.pytorch|debian\.org|conda\.anaconda") == []


def test_shape_strings_are_not_postponed():
    # jaxtyping checks annotations while tests run; postponed ones are strings and would be skipped.
    assert occurrences(r"^from __future__ import annotations") == []


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version_is_the_installed_one():
    assert importlib.metadata.version("attnjax") == PROJECT["version"], "reinstall: pip install -e ."


def names(requirements: list[str]) -> set[str]:
    """Names of distributions, without versions and extras."""
    return {re.split(r"[<>=~ \[]", requirement)[0] for requirement in requirements}


def test_experiments_declare_what_they_import():
    declared = names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["experiments"])
    declared |= names(PROJECT["optional-dependencies"]["nn"])
    own = {*PACKAGES, *sys.stdlib_module_names}
    imported = {wanted.split(".")[0] for _, wanted in imports_from("experiments")} - own
    distributions = importlib.metadata.packages_distributions()
    undeclared = {name for name in imported if not declared & {d.lower() for d in distributions.get(name, [name])}}
    assert undeclared == set()
