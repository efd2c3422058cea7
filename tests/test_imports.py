"""The layers of the package: what may import what, and what stays unloaded until it is needed."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from package_layers import LAYERS, OWNERS

import onnxprune
from onnxprune.options.judging import Judging
from onnxprune.pipeline import arguments

PACKAGE = Path(onnxprune.__file__).parent


@functools.cache
def modules() -> dict[str, Path]:
    paths = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")} - {Path("__init__")}
    return {".".join(path.parts).removesuffix(".__init__"): PACKAGE / path.with_suffix(".py") for path in paths}


@functools.cache
def imports_of(path: Path, *, of_types: bool) -> frozenset[str]:
    """Return the full name of everything that a module imports, at any depth."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not of_types:
            hidden |= {inner for statement in node.body for inner in ast.walk(statement)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in hidden:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node not in hidden:
            assert node.level == 0, f"{path.name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_imports(path: Path) -> set[str]:
    """Return the modules of the package that a module imports, types included."""
    known = modules()
    names = {
        name.removeprefix("onnxprune.") for name in imports_of(path, of_types=True) if name.startswith("onnxprune.")
    }
    return {name if name in known else name.rpartition(".")[0] for name in names} - {""}


def layer(module: str) -> int:
    """Return the layer of a module: that of its longest prefix that is in one."""
    parts = module.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next(n for prefix in prefixes for n, names in enumerate(LAYERS) if prefix in names)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_downward_only(module):
    upward = {name for name in own_imports(modules()[module]) if layer(name) > layer(module)}
    assert upward == set()


def test_imports_within_a_layer_go_in_no_circle():
    graph = {module: own_imports(path) - {module} for module, path in modules().items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("third_party", sorted(OWNERS))
def test_third_party_has_its_owners(third_party):
    users = {
        module
        for module, path in modules().items()
        if any(name.split(".")[0] == third_party for name in imports_of(path, of_types=False))
    }
    assert {
        user for user in users if not any(f"{user}.".startswith(f"{owner}.") for owner in OWNERS[third_party])
    } == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import onnxprune",
        "import onnxprune.cli",
        "from onnxprune.cli import main; main(['--help'], standalone_mode=False)",
    ]
    + [
        f"from onnxprune.cli import main; main(['{name}', '--help'], standalone_mode=False)"
        for name in ("prune", "check")
    ],
)
def test_import_and_help_stay_light(statement):
    heavy = {"torch", "onnxruntime", "onnx", "onnx_graphsurgeon", "numpy", "scipy", "PIL", "rich", "bokeh", "jinja2"}
    code = f"{statement}\nimport sys\nprint('loaded:', *sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_the_main_job_needs_no_extra(tiny_path, samples, tmp_path):
    """Without the extras (torch, Bokeh, matplotlib, Dask, rapidfuzz, pycocotools) a model is pruned, repaired, checked and swept."""
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "onnxscript", "bokeh", "jinja2", "matplotlib", "dask", "distributed", "rapidfuzz", "pycocotools"}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from onnxprune.cli import main
for command in (
    "prune {tiny_path} -o {tmp_path}/a.onnx --reduce flops=40% --round-to 1 --data {samples} --no-latency",
    "prune {tiny_path} -o {tmp_path}/b.onnx --reduce flops=40% --round-to 1 --data {samples} --no-latency --schedule progressive --steps 2",
    "prune {tiny_path} -o {tmp_path}/c.onnx --plan {tmp_path}/a.plan.json --repair none --no-latency --report {tmp_path}/c.md",
    "sensitivity {tiny_path} --data {samples}",
    "check {tmp_path}/a.onnx --baseline {tiny_path} --no-latency",
    "sweep {tiny_path} -o {tmp_path}/sizes --targets flops=30% --round-to 1 --data {samples} --no-latency",
):
    try:
        main([*command.split(), "--quiet"])
    except SystemExit as end:
        assert not end.code, command
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", onnxprune.__all__)
def test_public_name_resolves(name):
    assert getattr(onnxprune, name).__name__ == name
    assert name in dir(onnxprune)


def test_arguments_are_the_fields_of_the_options():
    kinds = (onnxprune.Options, onnxprune.BenchmarkConfig, Judging)
    assert set(arguments.Fields.__annotations__) == {name for kind in kinds for name in kind.__dataclass_fields__}


def test_version_is_public():
    assert onnxprune.__version__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = onnxprune.nothing_like_it


@pytest.mark.parametrize("package", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()))
def test_packages_list_their_imports(package):
    documented = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8")))
    listed = re.search(
        r"^It imports (.*?)(?:,? and modules of the root|modules of the root)\.", documented, re.M | re.S
    )
    if listed is None:
        assert package in ("cli", "options")  # these import what they show
        return
    inside = {path for name, path in modules().items() if name.split(".")[0] == package}
    found = {name.split(".")[0] for path in inside for name in own_imports(path)}
    packages = {name for name in found if (PACKAGE / name).is_dir()} - {package, "options"}
    assert set(re.findall(r"`(\w+)`", listed[1])) == packages
