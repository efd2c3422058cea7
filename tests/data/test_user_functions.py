"""Functions that a user names as `file.py:function`."""

from __future__ import annotations

import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from onnxprune.data import user_functions
from onnxprune.data.dataset import load_data
from onnxprune.data.input_spec import InputSpec
from onnxprune.errors import DataError, OptionError

METRIC = """
from __future__ import annotations
from dataclasses import dataclass
import beside_{name}

@dataclass
class Scale:
    factor: float = 2.0

def metric(predictions, labels):
    return Scale().factor * beside_{name}.total(predictions, labels)

constant = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = tmp_path.name
    (tmp_path / f"beside_{name}.py").write_text("def total(a, b):\n    return a + b\n")
    path = tmp_path / "my.py"
    path.write_text(METRIC.format(name=name))
    monkeypatch.chdir(tmp_path)
    return path


def test_absolute_and_relative_paths(file: Path) -> None:
    before, names = list(sys.path), set(sys.modules)
    for path in (str(file), "my.py", "./my.py", f"../{file.parent.name}/my.py"):
        assert user_functions.load(f"{path}:metric")(1, 2) == 6
    assert sys.path == before
    assert not [name for name in set(sys.modules) - names if name.startswith("onnxprune_user")]


def test_a_changed_file_is_read_again(file: Path) -> None:
    user_functions.load("my.py:metric")
    file.write_text("def metric(predictions, labels):\n    return 'another'\n")
    assert user_functions.load("my.py:metric")(1, 2) == "another"


def test_workers_get_functions_by_value(file: Path) -> None:
    file.write_text("def metric(predictions, labels):\n    return predictions - labels\n")
    content = cloudpickle.dumps(user_functions.load("my.py:metric"))
    file.unlink()
    assert cloudpickle.loads(content)(5, 2) == 3


@pytest.mark.parametrize("text", ["my.py", "my.py:", ":metric", "", "my.py:not a name", "C:\\my.py"])
def test_what_names_no_function(text: str, file: Path) -> None:
    with pytest.raises(OptionError, match=r"file\.py:function"):
        user_functions.load(text)


def test_missing_files_and_functions(file: Path) -> None:
    with pytest.raises(OptionError, match="no such file") as caught:
        user_functions.load("other.py:metric")
    assert caught.value.where == "other.py"
    with pytest.raises(OptionError, match="no such function") as caught:
        user_functions.load("my.py:other")
    assert caught.value.why == "the file has no other"
    with pytest.raises(OptionError, match="no such function") as caught:
        user_functions.load("my.py:constant")
    assert caught.value.why == "constant is of type int"
    file.rename(file.with_suffix(".txt"))
    with pytest.raises(OptionError, match="no Python file"):
        user_functions.load("my.txt:metric")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a = 1\nb = 1 / 0\n", "line 2: b = 1 / 0: ZeroDivisionError: division by zero"),
        ("\n\nimport nothing_like_it\n", "line 3: import nothing_like_it: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def f():\n    raise ValueError('bad\\nworse')\nf()\n", "line 2: raise ValueError('bad\\nworse'): ValueError: bad"),
        ("import sys\nsys.exit(4)\n", "line 2: sys.exit(4): SystemExit: 4"),
        ("a = 1\nb = (\n", "line 2: b = (: SyntaxError: "),
    ],
)  # fmt: skip
def test_the_line_that_failed_is_named(content: str, why: str, file: Path) -> None:
    before = list(sys.path)
    file.write_text(content)
    with pytest.raises(OptionError, match="cannot be imported") as caught:
        user_functions.load("my.py:metric")
    assert caught.value.why.startswith(why)
    assert caught.value.where == "my.py"
    assert sys.path == before


def test_an_error_in_a_module_beside_it(file: Path) -> None:
    other = next(file.parent.glob("beside_*.py"))
    other.write_text("1 / 0\n")
    with pytest.raises(OptionError) as caught:
        user_functions.load("my.py:metric")
    assert caught.value.why == f"line 4: import {other.stem}: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise RuntimeError('no disk')", "line 2: raise RuntimeError('no disk'): RuntimeError: no disk"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("yield 1 / 0", "line 2: yield 1 / 0: ZeroDivisionError"),
    ],
)
def test_a_loader_that_fails_is_named_with_its_line(body: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def load():\n    {body}\n")
    spec = InputSpec("x", np.dtype(np.float32), (None, 3))
    with pytest.raises(DataError, match="the function of your own failed") as error:
        load_data(f"{path}:load", [spec])
    assert told in error.value.why


def test_a_pair_of_a_loader_is_inputs_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\ndef load():\n    print('read')\n    return np.zeros((5, 3), np.float32), np.arange(5)\n"
    )
    data = load_data(f"{path}:load", [InputSpec("x", np.dtype(np.float32), (None, 3))])
    assert (len(data), data.name) == (5, f"{path}:load")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("body", ["yield 1 / 0", "import sys; yield sys.exit(0)"])
def test_batches_of_a_module_beside_the_loader_that_fail(body: str, tmp_path: Path) -> None:
    other = f"batches_{tmp_path.name}"
    (tmp_path / f"{other}.py").write_text(f"def batches():\n    {body}\n")
    path = tmp_path / "mine.py"
    path.write_text(f"import {other}\ndef load():\n    return {other}.batches()\n")
    with pytest.raises(DataError, match="the function of your own failed") as error:
        load_data(f"{path}:load", [InputSpec("x", np.dtype(np.float32), (None, 3))])
    assert error.value.where == f"{path}:load"
    assert error.value.why.startswith(f"{other}.py, line 2: {body}: ")


def test_an_array_of_a_loader_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Lazy:\n    def __array__(self, *a, **k):\n        raise OSError('no disk')\n"
        "def load():\n    return {'x': Lazy()}\n"
    )
    with pytest.raises(DataError, match="the function of your own failed") as error:
        load_data(f"{path}:load", [InputSpec("x", np.dtype(np.float32), (None, 3))])
    assert error.value.why == "line 3: raise OSError('no disk'): OSError: no disk"


def test_errors_of_this_program_are_not_blamed_on_a_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import numpy as np\ndef load():\n    yield np.zeros((5, 3), np.float32)\n")

    def broken(*_: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr("onnxprune.data.dataset.check_array", broken)
    with pytest.raises(TypeError, match="ours"):
        load_data(f"{path}:load", [InputSpec("x", np.dtype(np.float32), (None, 3))])


def test_a_pair_of_batches_of_a_loader_is_two_batches(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\ndef batch(n):\n    return {'x': np.zeros((n, 3), np.float32), 'labels': np.arange(n)}\n"
        "def load():\n    return batch(5), batch(2)\n"
    )
    data = load_data(f"{path}:load", [InputSpec("x", np.dtype(np.float32), (None, 3))])
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
