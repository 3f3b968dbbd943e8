"""The rules of the house, read from the source with `ast`: who imports whom, and what is nowhere.

pytest tests/test_house.py
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {"README.md", "requirements.txt", "pyproject.toml", "train.py", "sample.py"}
FOLDERS = {"model", "data", "eval", "tests"}
OURS = {"model", "data", "eval", "train", "sample", "tests"}
PACKAGES = {"torch", "numpy", "sentencepiece", "safetensors", "tqdm"}
OPTIONAL = {"tokenizers", "pyarrow"}  # imported inside the one function that needs them
FILES = [ROOT / "train.py", ROOT / "sample.py"]
FILES += sorted(f for folder in ("model", "data", "eval") for f in (ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST) -> set[str]:
    """Dotted names that a file, or a part of it, imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their package"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(tree: ast.AST) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree)}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), filename=str(file))


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_one_way(file):
    found = packages(parse(file)) & OURS
    folder = name_of(file).split("/")[0].removesuffix(".py")
    allowed = {
        "model": {"model"},
        "data": {"data"},
        "eval": {"model", "data", "eval"},
        "train": {"model", "data"},
        "sample": {"model", "data"},
    }[folder]
    assert found <= allowed, f"{name_of(file)} imports {sorted(found - allowed)}"


@pytest.mark.parametrize("file", [f for f in FILES if "eval" not in f.parts], ids=name_of)
def test_the_core_keeps_to_its_five_packages(file):
    tree = parse(file)
    others = packages(tree) - OURS - PACKAGES - set(sys.stdlib_module_names)
    assert others <= OPTIONAL, f"{name_of(file)} imports {sorted(others)}"
    at_import = ast.Module([node for node in tree.body if not hasattr(node, "body")], [])
    assert not packages(at_import) & OPTIONAL, (
        f"{name_of(file)} needs an optional package at import"
    )


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_collectives_and_pickles_have_their_places(file):
    tree = parse(file)
    if name_of(file) not in ("model/parallel.py", "model/checkpoint.py"):
        assert not any(name.startswith("torch.distributed") for name in imports(tree))
    assert not packages(tree) & {"pickle", "dill", "cloudpickle", "triton"}
    text = file.read_text()
    assert "torch.load" not in text and "torch.save" not in text


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_file_says_its_one_idea(file):
    if file.name != "__init__.py":
        assert ast.get_docstring(parse(file)), f"{name_of(file)} has no docstring"


def test_top_level_names():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    visible = {name for name in names if not name.startswith(".")}
    assert visible <= TOP_LEVEL | FOLDERS, visible - TOP_LEVEL - FOLDERS


def test_every_module_has_its_tests():
    tested = {file.stem.removeprefix("test_") for file in (ROOT / "tests").glob("test_*.py")}
    missing = {file.stem for file in FILES if file.name != "__init__.py"} - tested
    assert not missing, f"no tests/test_<module>.py for {sorted(missing)}"
