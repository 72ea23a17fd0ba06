"""The rules of the house that a machine can check."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import uring
import uring.aio

PACKAGE = Path(uring.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Each floor imports only from those below it. A name stands for a module or a whole folder.
FLOORS = [
    {"aio"},
    {"__main__"},
    {"__init__", "_selfcheck", "_table"},
    {"ring"},
    {"_streaming", "_waiting"},
    {"_running", "_registering", "_providing"},
    {"_calls"},
    {"_submission", "_completion", "_ringfd"},
    {"_records", "_landing"},
    {"_core"},
    {"statx"},
    {"_views", "_teardown", "batch"},
    {"_inflight"},
    {"operations", "registry", "_claims", "probe", "_columns"},
    {"_setup", "_file_memory", "_structures", "_messages", "_pledges"},
    {"_kernel"},
    {"_leases", "_sockaddr"},
    {"completions", "_memory", "_order"},
    {"errors", "sqe", "_values", "file_flags"},
    {"flags", "_ffi", "_checks"},
    {"_uring"},
]
AIO_FLOORS = [
    {"__init__"},
    {"files", "paths"},
    {"_text"},
    {"_cookies", "_textbase"},
    {"_buffered"},
    {"_window"},
    {"_raw"},
    {"_iobase"},
    {"_contents", "_copies"},
    {"_backend"},
    {"_threads"},
    {"_ring"},
    {"_streams"},
    {"_exchange"},
    {"_kinds", "_takers"},
    {"_detect"},
    {"_asyncio", "_trio"},
    {"_loop"},
]
# Within the other folders the same holds, for the modules with an underscore carry the others.
LINES_MAX = {"flags.py": 600}  # a table
FUNCTION_LINES_MAX = 70


def parsed(path: Path) -> ast.Module:
    """A source file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def is_for_types(node: ast.stmt) -> bool:
    """Whether it is `if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def room(module: str) -> str:
    """The floor's name for a dotted module of the package."""
    return module.split(".")[1] if "." in module else "__init__"


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    return ".".join(["uring", *path.relative_to(PACKAGE).with_suffix("").parts])


def imports(tree: ast.Module, package: str) -> set[str]:
    """The dotted modules of a package that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {f"{package}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    """A module imports only from floors below its own, or from its own folder."""
    own = room(module_name(path))
    if path == PACKAGE / "__init__.py":
        own = "__init__"
    (floor,) = [number for number, rooms in enumerate(FLOORS) if own in rooms]
    allowed = set().union(*FLOORS[floor + 1 :])
    if path.parent != PACKAGE:
        allowed.add(own)
    assert {room(module) for module in imports(parsed(path), "uring")} <= allowed


@pytest.mark.parametrize("path", sorted((PACKAGE / "aio").glob("*.py")), ids=module_name)
def test_imports_within_aio_go_down(path: Path) -> None:
    """There, too, a module imports only from floors below its own, but for what types need."""
    tree = parsed(path)
    tree.body = [node for node in tree.body if not is_for_types(node)]
    (floor,) = [number for number, modules in enumerate(AIO_FLOORS) if path.stem in modules]
    allowed = set().union(*AIO_FLOORS[floor + 1 :])
    assert {module.split(".")[2] for module in imports(tree, "uring.aio")} <= allowed


def test_only_the_door_imports_the_compiled_module() -> None:
    """Nobody but _ffi reaches for _uring, type checking aside."""
    for path in SOURCES:
        tree = parsed(path)
        plain = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        if any(node.module == "uring._uring" for node in plain):
            assert path.name == "_ffi.py"


def test_only_one_file_takes_addresses() -> None:
    """ffi.from_buffer and uring_address stand in _memory alone, and who uses them is known."""
    texts = {module_name(path): path.read_text(encoding="utf-8") for path in SOURCES}
    for name in ("from_buffer", "uring_address"):
        assert {path for path, text in texts.items() if name in text} == {"uring._memory"}
    users = {path for path, text in texts.items() if re.search(r"\b(lend|address_of)\(", text)}
    operations = {"uring.operations._base", "uring.operations.files"}
    # Records that point to other records, or to many buffers at once.
    registry = {f"uring.registry.{name}" for name in ("buffers", "files", "zcrx")}
    assert users == {
        "uring._memory",
        "uring._columns",
        "uring._leases",
        *registry,
        *operations,
    }


@pytest.mark.parametrize("path", [*SOURCES, *PACKAGE.glob("*.h")], ids=lambda path: path.name)
def test_files_and_functions_have_one_size(path: Path) -> None:
    """A file has at most 560 lines, and a function at most 70."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_MAX.get(path.name, 560)
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.h")), ids=lambda path: path.name)
def test_lines_of_c_have_at_most_100_columns(path: Path) -> None:
    """C is as wide as Python, which ruff looks after."""
    long = [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 100]
    assert not long


@pytest.mark.parametrize(
    "operation",
    [c for c in vars(uring.operations).values() if inspect.isclass(c) and hasattr(c, "_prepared")],
)
def test_operations_whose_completions_need_care_say_so(operation: type[uring.Operation]) -> None:
    """What makes a descriptor or keeps memory is kept off the short way of queue()."""
    (prepared,) = [f for f in operation.__attrs_attrs__ if f.name == "_prepared"]
    care = (
        "_makes_descriptor",
        "_keeps_memory",
        "_is_sole",
        "_reaches_out",
        "_lends_to_ring",
        "_takes_buffer",
        "_is_probed",
    )
    needs_care = any(bool(getattr(operation, name)) for name in care)
    assert (prepared.default is False) == needs_care


def test_all_is_complete() -> None:
    """`uring.__all__` has no stranger, and names every public class; ruff keeps it sorted."""
    public = {name for name in vars(uring) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(uring, name))} - {"probe"}
    assert set(uring.__all__) == public - modules
    registry = [f"registry.{path.stem}" for path in (PACKAGE / "registry").glob("[!_]*.py")]
    rest = ("batch", "completions", "errors", "file_flags", "flags", "operations", "probe")
    for module in (*rest, "ring", "sqe", "statx", *registry):
        for name, value in vars(importlib.import_module(f"uring.{module}")).items():
            own = str(getattr(value, "__module__", "")).startswith(f"uring.{module}")
            if inspect.isclass(value) and own and not name.startswith("_"):
                internal = {
                    "Answer",
                    "HasBgid",
                    "HasFileno",
                    "Queueable",
                    "FileLike",
                    "MakesFile",
                    "WaitEnd",
                }
                internal |= {"HasOpcode", "ZcrxRequest"}
                assert name in uring.__all__ or name in internal, name


def documented() -> list[tuple[str, object]]:
    """Everything public that can have a docstring, with its members."""
    found: list[tuple[str, object]] = []
    exported = [(name, getattr(uring, name)) for name in uring.__all__]
    exported += [(f"aio.{name}", getattr(uring.aio, name)) for name in uring.aio.__all__]
    files = {name: getattr(uring.aio.files, name) for name in uring.aio.files.__all__}
    exported += [(f"aio.files.{name}", value) for name, value in files.items()]
    for name, value in exported:
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        found.append((name, value))
        if inspect.isclass(value):
            members = {n: v for n, v in vars(value).items() if not n.startswith("_")}
            found += [
                (f"{name}.{n}", v)
                for n, v in members.items()
                if inspect.isfunction(v) or isinstance(v, property | classmethod)
            ]
    return found


@pytest.mark.parametrize(("name", "value"), documented(), ids=lambda value: str(value)[:40])
def test_everything_public_is_documented(name: str, value: object) -> None:
    """Each exported class and function, and each public member of one, has a docstring."""
    assert inspect.getdoc(value), name


@pytest.mark.parametrize(
    "operation",
    [c for c in vars(uring.operations).values() if inspect.isclass(c) and "opcode" in vars(c)],
)
def test_operation_docstrings_say_what_is_needed(operation: type[uring.Operation]) -> None:
    """Each says what its completion means, the kernel release and the liburing function."""
    doc = inspect.getdoc(operation) or ""
    assert "Completion: res is" in doc
    assert f"Kernel: {operation.opcode.since}" in doc
    assert "liburing: io_uring_prep_" in doc
    own = operation.__mro__[: operation.__mro__.index(uring.Operation)]
    source = "".join(map(inspect.getsource, own))
    lends = any(
        call in source
        for call in (
            *("_memory.", "_structures.", "_sockaddr.", "_messages."),
            *("encode_lent(", "_encode_vector(", "_encoder(", "_select(", "_lent_time("),
            *("_array(", "_send_zc(", "_send_group(", "_recv_group(", "_OptionRoom("),
            *("_encode_part", "_encode_two(", "_file_memory.", "buffer_group("),
        )
    )
    assert ("Lifetime:" in doc) == lends


def test_ring_has_at_most_29_attributes(ring: uring.Ring) -> None:
    """More would make every look at one slower; see Core."""
    assert len(vars(ring)) <= 29
