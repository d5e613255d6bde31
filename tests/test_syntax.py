"""The hash of code: blind to what does nothing, the same on every Python, and to nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from curvbench.identity import syntax

CODE = '''
"""A module."""
import os  # a comment


class A:
    """A class."""

    x: int = 1
    """An attribute."""

    def f(self, *, key=None, **more):
        """A method."""
        return {**more, "key": f"{key!r:>{self.x}} and {os.sep}" "tail"}
'''
SAME = [
    CODE.replace("A method.", "Another text."),
    CODE.replace("# a comment", ""),
    CODE.replace('    """An attribute."""\n', ""),
    CODE.replace("\n\n\n", "\n"),
    CODE.replace("x: int = 1", "x: int = (\n        0x1\n    )"),
    CODE.replace('"tail"', "u'tail'"),
    f"\ufeff{CODE}",
    CODE.replace("\n", "\r\n"),
]
OTHER = [
    CODE.replace("= 1", "= 2"),
    CODE.replace("= 1", "= True"),
    CODE.replace("= 1", "= 1.0"),
    CODE.replace("!r", ""),
    CODE.replace("*, key", "key"),
    CODE.replace("key=None", "key=0"),
    CODE.replace('"tail"', '"tails"'),
    CODE.replace('"key":', "None:"),
    CODE.replace("import os", "import os as os"),
    CODE.replace("return {", "{"),
]
# By Python 3.11.7, 3.12.1 and 3.13.0 alike
KNOWN = "0dd3e9d92e74005c"


@pytest.mark.parametrize("text", SAME)
def test_what_does_nothing_does_not_count(text: str) -> None:
    assert text != CODE
    assert syntax.code_hash(text.encode()) == syntax.code_hash(CODE.encode())


@pytest.mark.parametrize("text", OTHER)
def test_all_that_does_something_counts(text: str) -> None:
    assert text != CODE
    assert syntax.code_hash(text.encode()) != syntax.code_hash(CODE.encode())


def test_the_hash_is_that_of_every_python() -> None:
    assert syntax.code_hash(CODE.encode()) == KNOWN


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_pythons_that_are_here_agree(version: str) -> None:
    """On the sources of this package, where another Python is installed."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"no python{version} here")
    files = [Path(syntax.__file__), Path(syntax.__file__).parents[1] / "numerics.py", Path(__file__)]
    program = "import sys, runpy; f = runpy.run_path(sys.argv[1])['code_hash']\n"
    program += "print(*(f(open(p, 'rb').read()) for p in sys.argv[2:]))"
    command = [python, "-c", program, syntax.__file__, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [syntax.code_hash(file.read_bytes()) for file in files]


def test_a_chain_of_operators_may_be_long() -> None:
    long = " + ".join(["x"] * 900)
    assert syntax.code_hash(f"y = {long}".encode()) != syntax.code_hash(f"y = {long} + x".encode())


@pytest.mark.parametrize("source", [b"def", b"\0", b"# coding: nonsense\n"])
def test_what_is_no_python_is_refused(source: bytes) -> None:
    with pytest.raises((SyntaxError, ValueError)):
        syntax.code_hash(source)
