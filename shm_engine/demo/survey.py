"""survey.py - the facts of one source file.

Why:        the agents and the plain recount must differ in nothing but the store, so both call
            the one pure function here; what it answers depends on the file's bytes alone.
                 find_sources(root) -> the files, and what was passed over on the way
                 survey_file(path)  -> FileFacts | Skipped
Used by:    agents (in their processes) and the recount (in the parent); any thread
Invariants: S1 no file whatever raises: every odd one is a Skipped with its reason
               (test_survey.py)
            S2 the outcome does not depend on the caller's depth of recursion: what does not fit
               there is tried again on a fresh, large stack (_parse)
Errors:     find_sources raises OSError when the root itself cannot be listed
Cost:       one open and one read per file; parsing costs about 0.2 us a byte
"""

from __future__ import annotations

import ast
import gc
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FILE_SIZE_MAX = 4 * 1024 * 1024
"""Larger files are skipped: a syntax tree takes up to 200 times the space of its source."""

FOLDERS_LEFT_OUT = frozenset({"site-packages", "dist-packages"})
"""Installed packages belong to nobody's source tree; such a folder can still be named itself."""

_PARSER_STACK_BYTES = 64 * 1024 * 1024
_STATEMENT_LISTS = ("body", "orelse", "handlers", "finalbody", "cases")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one parsed file holds; `imports` counts statements by the module's dotted name."""

    module: str
    size: int
    lines: int
    functions: int
    classes: int
    imports: dict[str, int]
    definitions: list[dict[str, Any]]

    @property
    def import_count(self) -> int:
        """All imports of the file, each module of each statement counted once."""
        return sum(self.imports.values())

    def to_value(self) -> dict[str, Any]:
        """The facts as a value of the store."""
        return {
            "kind": "facts",
            "module": self.module,
            "size": self.size,
            "lines": self.lines,
            "functions": self.functions,
            "classes": self.classes,
            "imports": self.imports,
            "definitions": self.definitions,
        }


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that was not surveyed: `kind` groups, `reason` tells."""

    kind: str
    reason: str

    def to_value(self) -> dict[str, Any]:
        """The reason as a value of the store."""
        return {"kind": "skipped", "what": self.kind, "reason": self.reason}


Outcome = FileFacts | Skipped


def outcome_from_value(value: dict[str, Any]) -> Outcome:
    """The outcome that `to_value` was made from."""
    if value["kind"] == "skipped":
        return Skipped(value["what"], value["reason"])
    return FileFacts(**{name: value[name] for name in FileFacts.__slots__})


@dataclass(slots=True)
class SourceTree:
    """The source files under one folder, by path relative to it, in a fixed order."""

    root: str
    files: list[str] = field(default_factory=list)
    skipped: list[tuple[str, Skipped]] = field(default_factory=list)
    folders_left_out: int = 0
    links_not_followed: int = 0


def find_sources(root: str) -> SourceTree:
    """List the `.py` files under `root`, sorted by path.

    Folders named in FOLDERS_LEFT_OUT are not entered and links to folders are not followed (both
    are counted); a folder that cannot be listed is noted in `skipped`.

    Raises: OSError when `root` itself cannot be listed.
    """
    tree = SourceTree(root)
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    _note_entry(tree, entry, os.path.join(folder, entry.name), pending)
        except OSError as error:
            if not folder:
                raise
            tree.skipped.append((folder, Skipped("unreadable folder", _os_reason(error))))
    tree.files.sort()
    tree.skipped.sort(key=lambda item: item[0])
    return tree


def _note_entry(
    tree: SourceTree, entry: os.DirEntry[str], relative: str, pending: list[str]
) -> None:
    if entry.is_dir(follow_symlinks=False):
        if entry.name in FOLDERS_LEFT_OUT:
            tree.folders_left_out += 1
        else:
            pending.append(relative)
    elif _is_linked_folder(entry):
        tree.links_not_followed += 1
    elif entry.name.endswith(".py"):
        tree.files.append(relative)


def _is_linked_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads to a folder; one that leads nowhere or in circles does not."""
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:
        return False


def printable(text: str) -> str:
    r"""The text with escapes for what is not printable; the answer always encodes as UTF-8.

    A byte of a file name that is not UTF-8 (a lone surrogate in Python) shows as that byte.

    >>> print(printable("pkg/a\n\udcff.py"))
    pkg/a\n\xff.py
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else f"\\x{ord(character) - 0xDC00:02x}"
        if 0xDC80 <= ord(character) <= 0xDCFF
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def module_name(relative_path: str) -> str:
    """The dotted name under which a file at this path below the root would be imported.

    >>> module_name("asyncio/events.py"), module_name("asyncio/__init__.py")
    ('asyncio.events', 'asyncio')
    """
    parts = relative_path.removesuffix(".py").split(os.sep)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return printable(".".join(parts))


def survey_file(path: str, module: str = "") -> Outcome:
    """Parse one file and count what it holds; a pure function of the file's bytes.

    `module` is the file's own dotted name; with it, relative imports are counted under the module
    that they mean, without it as they are written.

    Returns FileFacts, or Skipped for whatever cannot be read or parsed; it does not raise.
    """
    try:
        source = _read(path)
    except OSError as error:
        if os.path.islink(path) and not os.path.exists(path):
            return Skipped("unreadable", "broken symbolic link")
        return Skipped("unreadable", _os_reason(error))
    if isinstance(source, Skipped):
        return source
    parsed = _parse(source)
    if isinstance(parsed, Skipped):
        return parsed
    return _collect(parsed, source, path, module)


def _os_reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _read(path: str) -> bytes | Skipped:
    """The file's bytes. O_NONBLOCK: opening a named pipe must not wait for its writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return Skipped("unreadable", "not a regular file")
    with open(descriptor, "rb") as file:
        source = file.read(FILE_SIZE_MAX + 1)
    if len(source) > FILE_SIZE_MAX:
        return Skipped("too large", f"larger than {FILE_SIZE_MAX // 1024**2} MiB")
    if b"\0" in source:
        return Skipped("unparsable", "holds null bytes")
    return source


def _parse(source: bytes) -> ast.Module | Skipped:
    """The syntax tree; too deep a file is tried again on a fresh stack with the whole limit.

    Whether a deeply nested file still parses depends on how deep its caller stands. A fresh
    thread has at least the room that any caller has, so its answer is the answer of all (S2).
    """
    try:
        return _parse_here(source)
    except (RecursionError, MemoryError):
        pass
    answer: list[ast.Module | Skipped] = []

    def parse_deep() -> None:
        try:
            answer.append(_parse_here(source))
        except (RecursionError, MemoryError):
            answer.append(Skipped("unparsable", "nested too deeply for the parser"))

    before = threading.stack_size(_PARSER_STACK_BYTES)
    try:
        thread = threading.Thread(target=parse_deep, name="parse-deep")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return answer[0]


def _parse_here(source: bytes) -> ast.Module | Skipped:
    """The syntax tree. It holds no cycles, so the collector would only search it in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        line = f" (line {error.lineno})" if error.lineno else ""
        return Skipped("unparsable", printable(f"{type(error).__name__}: {error.msg}{line}"))
    except (RecursionError, MemoryError):
        raise
    except Exception as error:  # S1: whatever an odd file brings up must not take an agent down
        return Skipped("unparsable", printable(f"{type(error).__name__}: {error}"))
    finally:
        if was_enabled:
            gc.enable()


def _statements(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every statement with the qualified name of what encloses it, in the order of the source.

    Imports and definitions are statements, and expressions hold none, so expressions are not
    entered. Without recursion: the parser's limit on nesting is the only one.
    """
    pending: list[tuple[ast.AST, str]] = [(statement, "") for statement in reversed(tree.body)]
    while pending:
        node, prefix = pending.pop()
        yield node, prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        children: list[ast.AST] = []
        for name in _STATEMENT_LISTS:
            children.extend(getattr(node, name, ()))
        pending.extend((child, prefix) for child in reversed(children))


def _collect(tree: ast.Module, source: bytes, path: str, module: str) -> FileFacts:
    package = _package(path, module)
    imports: dict[str, int] = {}
    definitions: list[dict[str, Any]] = []
    for node, prefix in _statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports[alias.name] = imports.get(alias.name, 0) + 1
        elif isinstance(node, ast.ImportFrom):
            name = _imported_module(node, package)
            imports[name] = imports.get(name, 0) + 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            definitions.append({"name": prefix + node.name, "kind": kind, "line": node.lineno})
    classes = sum(definition["kind"] == "class" for definition in definitions)
    return FileFacts(
        module=module,
        size=len(source),
        lines=len(source.splitlines()),
        functions=len(definitions) - classes,
        classes=classes,
        imports=imports,
        definitions=definitions,
    )


def _package(path: str, module: str) -> list[str]:
    """The parts of the package that a file's relative imports start from; none at the root."""
    parts = module.split(".") if module else []
    is_package = os.path.basename(path) == "__init__.py" and parts[-1:] != ["__init__"]
    return parts if is_package else parts[:-1]


def _imported_module(node: ast.ImportFrom, package: list[str]) -> str:
    """The dotted name; a relative one that leaves the tree stays as it is written."""
    written = node.module or ""
    if not node.level:
        return written
    kept = len(package) - (node.level - 1)
    if kept <= 0:
        return "." * node.level + written
    base = ".".join(package[:kept])
    return f"{base}.{written}" if written else base
