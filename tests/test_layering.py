"""The shape of the code: allowed imports, and the length of files."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from statistics import median

import pytest

from easydel.families import all_families, all_wrappers

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "easydel"
LAYERS = [
    {"errors", "threads", "compilation", "garbage"},
    {
        "checkpoint",
        "sharding",
        "config",
        "expected",
        "keys",
        "rope_settings",
        "ops",
        "policy",
        "tree",
        "processes",
        "quantize",
        "forms",
        "stored",
        "inputs",
    },
    {"layers", "weights", "hub", "tokenizer"},
    {"decoder", "encdec", "multimodal"},
    {"families"},
    {"options", "arguments", "source"},
    {"module"},
    {"generate", "lora", "saving", "reshaping", "progress", "report"},
    {"model"},
    {"loading", "prepare", "initial"},
    {"auto"},
    {"train"},
    {"aot"},
    {"cli"},
]
UPWARD = (
    "model",
    "auto",
)  # `BaseNNXModule.from_pretrained` loads what it is a method of, by an import when it is called
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MAX_LINES = 400
MAX_FAMILY_LINES = 40


def top(file: Path) -> str:
    """The package or module directly below easydel/ that `file` belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path, source: str) -> Iterator[tuple[int, list[str]]]:
    """(line, dotted name in parts) for each import of easydel, at any depth: one in a function is a dependency too."""
    package = ["easydel", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*module, alias.name] for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name[0] == "easydel" and len(name) > 1)


def upward_imports(file: Path, source: str) -> list[str]:
    own = top(file)
    return [
        f"{file.relative_to(ROOT)}:{line}: {own} imports {other}"
        for line, (_, other, *_) in imported(file, source)
        if other != own and (own, other) != UPWARD and (other not in LEVEL or LEVEL[other] > LEVEL[own])
    ]


def file_of(name: list[str]) -> Path | None:
    """The file of the module of that dotted name, or of the module that what is named is in."""
    for parts in (name, name[:-1]):
        place = ROOT.joinpath(*parts)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file() and file != PACKAGE / "__init__.py":
                return file
    return None


def way_back(start: str, imports: Mapping[str, Collection[str]]) -> list[str]:
    """The shortest circle of imports that begins and ends at `start`; nothing if there is none."""
    ways, seen = deque([[start]]), set[str]()
    while ways:
        way = ways.popleft()
        for other in sorted(imports.get(way[-1], ())):
            if other == start:
                return [*way, start]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


def modules() -> list[Path]:
    return sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def test_every_module_has_a_layer():
    assert {top(file) for file in modules()} <= LEVEL.keys()


def test_dependencies_point_downwards():
    assert [problem for file in modules() for problem in upward_imports(file, file.read_text())] == []


def test_no_files_import_each_other_in_a_circle():
    imports = {
        str(file.relative_to(PACKAGE)): {
            str(other.relative_to(PACKAGE))
            for _, name in imported(file, file.read_text())
            if (top(file), name[1]) != UPWARD and (other := file_of(name)) not in (None, file)
        }
        for file in modules()
    }
    assert [" -> ".join(circle) for file in imports if (circle := way_back(file, imports))] == []


def test_a_circle_of_any_length_is_seen():
    assert way_back("a", {"a": "b", "b": "c", "c": "d"}) == []
    assert way_back("a", {"a": "ab"}) == ["a", "a"]
    assert way_back("a", {"a": "bc", "b": "d", "c": "d", "d": "a"}) == ["a", "b", "d", "a"]


@pytest.mark.parametrize(
    ("file", "line", "allowed"),
    [
        ("hub.py", "from easydel.errors import HubError", True),
        ("hub.py", "from easydel.model import BaseNNXModule", False),
        ("hub.py", "import easydel.auto", False),
        ("hub.py", "from easydel import auto", False),
        ("hub.py", "from . import auto", False),
        ("hub.py", "from .errors import HubError", True),
        ("hub.py", "def f():\n    import easydel.cli", False),
        ("hub.py", "from easydel import BaseNNXModule", False),
        ("hub.py", "import huggingface_hub.auto", True),
        ("layers/norm.py", "from .rope import Rope", True),
        ("layers/norm.py", "from ..decoder import Decoder", False),
        ("layers/norm.py", "from ..config import HFConfig", True),
        ("families/llama.py", "from easydel.families.mistral import mistral", True),
    ],
)
def test_an_upward_import_in_any_spelling_is_seen(file: str, line: str, allowed: bool):
    assert (upward_imports(PACKAGE / file, line) == []) == allowed


def test_no_file_is_longer_than_the_cap():
    files = [file for folder in ("easydel", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {file: lines for file, lines in lengths.items() if lines > MAX_LINES} == {}


def names_of_families(file: Path) -> set[str]:
    """The model types that the code of `file` names: as a whole string, a variable or an attribute."""
    types = ({family.model_type for family in all_families()} | set(all_wrappers())) - {"encoder-decoder"}
    nodes = list(ast.walk(ast.parse(file.read_text())))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return types & {*strings, *names, *(node.attr for node in nodes if isinstance(node, ast.Attribute))}


def test_no_family_is_named_outside_of_families():
    """Tables of GGUF are llama.cpp's, which names architectures. Methods of quantization may be named like families.

    So is a kind of model, which is not looked for.
    """
    methods = PACKAGE / "weights" / "formats" / "__init__.py"
    others = [file for file in modules() if top(file) != "families" and not file.stem.startswith("gguf_")]
    others.remove(methods)
    assert {str(file): found for file in others if (found := names_of_families(file))} == {}


def test_no_package_has_a_name_that_hides_a_module_of_its_own():
    hidden = []
    for init in PACKAGE.rglob("__init__.py"):
        names = {name for node in ast.parse(init.read_text()).body for name in bound(node)}
        modules = {file.stem for file in init.parent.iterdir()}
        hidden += [f"{init.relative_to(ROOT)}: {name}" for name in sorted(names & modules)]
    assert hidden == []


def bound(node: ast.stmt) -> list[str]:
    """The names that a statement of a module gives a meaning to."""
    if isinstance(node, ast.ImportFrom | ast.Import):
        return [alias.asname or alias.name for alias in node.names]
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def test_no_file_is_called_utils():
    assert [file for file in PACKAGE.rglob("*") if file.stem in {"utils", "util", "helpers"}] == []


def test_the_median_family_is_short():
    families = [file for file in (PACKAGE / "families").glob("*.py") if file.stem != "__init__"]
    assert median(len(file.read_text().splitlines()) for file in families) <= MAX_FAMILY_LINES
