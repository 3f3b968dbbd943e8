"""The README is true: its commands exist with their flags, its files are there, its map is right.

pytest tests/test_readme.py
"""

import ast
import dataclasses
import importlib
import re
import shlex

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
FOLDERS = ("model", "data", "eval")  # each with a map of its own
PAGES = [README, *((ROOT / d / "README.md").read_text() for d in (*FOLDERS, "eval/studies"))]
SET_UP = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```bash\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
]
HEADS = [
    f.read_text().split('"""')[1]
    for d in (".", "data", "eval")
    for f in sorted((ROOT / d).glob("*.py"))
    if f.name != "__init__.py"
]
COMMANDS = [
    line.strip()
    for block in [*BLOCKS, *(head.replace("\\\\\n", "\\\n") for head in HEADS)]
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"\s*(python|torchrun) ", line)
]
EQUATIONS = re.findall(
    r"^\| .* \| `(\[.+?\])` \| `(\S+?)` \| `(\w+)` \|$", README, flags=re.MULTILINE
)


def flags_of(script: str) -> set[str]:
    """The flags that a script takes: the fields of what it parses, or what argparse was told."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    text = (ROOT / (module.__name__.replace(".", "/") + ".py")).read_text()
    if parsed := re.search(r"parse_config\((\w+)", text):
        fields = dataclasses.fields(getattr(module, parsed[1]))
        return {field.name for field in fields} | {"config"}
    return set(re.findall(r'add_argument\("--(\w+)"', text))


def test_two_set_up_commands_of_one_line():
    assert len(SET_UP) == 2
    first, second = SET_UP
    assert "-r requirements.txt" in first and first.endswith("python train.py")
    assert "-r tests/requirements.txt" in second and " -m pytest " in second


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_real_scripts_and_flags(command):
    words = shlex.split(command.partition("|")[0], comments=True)
    start = next(i for i, w in enumerate(words) if w == "-m" or w.endswith(".py"))  # torchrun's end
    words = words[start + (words[start] == "-m") :]
    words = words[words[0] == "--" :]
    script = words[0]
    if script == "eval.speed":  # its first word is the question
        script = f"eval.speed_{words[1]}"
    if script == "pytest":
        return
    known = flags_of(script)
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known, f"{script} does not take {sorted(given - known)}"


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 8


def test_named_files_exist():
    names = set(re.findall(r"`((?:model|data|eval|tests|\.ci)/[\w./]+?)(?::\w+)?`", README))
    assert len(names) > 15
    missing = {name for name in names if not (ROOT / name).exists()}
    assert not missing, missing
    linked = {(f, link) for f, page in zip((".", *FOLDERS, "eval/studies"), PAGES, strict=True)
              for link in re.findall(r"\]\(([^)#]+?)\)", page) if ":" not in link}  # fmt: skip
    assert len(linked) > 5
    assert not {(f, link) for f, link in linked if not (ROOT / f / link).exists()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_is_on_the_map_of_its_folder(folder):
    page = (ROOT / folder / "README.md").read_text()
    names = {
        f.name for f in (ROOT / folder).iterdir() if f.suffix in (".py", ".js", ".css", ".json")
    }
    cells = re.findall(r"^\| (`.+?) \|", page, flags=re.MULTILINE)  # the first of each row
    named = set(re.findall(r"`([\w./]+)`", " ".join(cells)))
    assert names - {"__init__.py"} <= named, names - named
    assert all((ROOT / folder / name).exists() for name in named), named


@pytest.mark.parametrize(("tag", "file", "function"), EQUATIONS)
def test_equation_map_points_at_its_lines(tag, file, function):
    """The tag stands on a line of code, inside the function that the README names."""
    source = (ROOT / file).read_text()
    node = next(
        n for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.FunctionDef) and n.name == function
    )  # fmt: skip
    lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
    tagged = [line for line in lines if tag in line]
    assert tagged and all(line.split("#")[0].strip() for line in tagged), (tag, function)


def test_every_tagged_equation_is_on_the_map():
    source = (ROOT / "model" / "objective.py").read_text()
    comments = re.findall(r"  # (\[.*\])$", source, flags=re.MULTILINE)
    tags = {tag for comment in comments for tag in re.findall(r"\[[^\]]+\]", comment)}
    assert tags and tags <= {tag for tag, _, _ in EQUATIONS}, tags
