"""YAML text → plain data and the line of every key; all mistakes of the text itself, without a traceback.

1. Only plain YAML: mappings with text keys, lists, text, numbers, true, false. No tags, no merge keys.
2. A key may stand once in a mapping; the second is reported, the first wins.
3. Aliases are allowed but expanded under one node budget, so that a small file cannot become a large one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from loadtest.errors import Problem
from loadtest.scenario_units import BadValue

Path = tuple[str | int, ...]

MAX_BYTES = 2_000_000
MAX_NODES = 50_000  # a scenario with every key has about 100; prompts.texts may have thousands
MAX_DEPTH = 20
MAX_PROMPTS, MAX_PROMPT_BYTES = 2_000, 256 * 1024  # they are copied into each run's folder and to every worker
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,17})")
_STANDARD = "tag:yaml.org,2002:"
_KINDS = {
    _STANDARD + kind for kind in ("null", "bool", "int", "float", "str", "timestamp", "merge", "value", "map", "seq")
}


@dataclass(slots=True)
class Tree:
    """What a text holds: `data`, the 1-based line of every path in it, and the mistakes of the text."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """Line of the deepest known place on `path`; 0 without any."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 0


def dotted(path: Path) -> str:
    """("phases", 2, "every") as "phases[2].every"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def decode(raw: bytes) -> str | Problem:
    """Text of a file's bytes, or what is wrong with them."""
    if len(raw) > MAX_BYTES:
        return Problem(0, "", f"the file has {len(raw)} bytes, expected at most {MAX_BYTES}", "is it a scenario?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        bad = f"byte 0x{raw[error.start]:02x}"
        return Problem(line, "", f"the file is not UTF-8 ({bad})", "save it as UTF-8")


def parse(text: str) -> Tree:
    """Tree of a YAML text; never raises."""
    tree = Tree()
    if len(text) > MAX_BYTES:
        tree.problems.append(Problem(0, "", f"the text has {len(text)} characters, expected at most {MAX_BYTES}", ""))
        return tree
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        tree.problems.append(_syntax(error))
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        tree.problems.append(Problem(line, "", f"the character {error.character!r} is not allowed", "remove it"))
    except RecursionError:
        tree.problems.append(Problem(0, "", "brackets are nested too deeply", f"use at most {MAX_DEPTH} levels"))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # \U00110000 in quotes: PyYAML lets chr() raise
        tree.problems.append(
            Problem(0, "", f"not readable as YAML ({_one_line(str(error))})", "check quotes and escapes")
        )
    else:
        if node is None:
            tree.problems.append(
                Problem(1, "", "the file is empty", "write a scenario; scenarios/quickstart.yaml is one")
            )
        else:
            _Reader(tree).root(node)
    return tree


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    what = _one_line(error.problem or error.context or "not YAML")
    if "'\\t'" in what:
        return Problem(mark.line + 1 if mark else 0, "", "a tab is used for indentation", "use spaces")
    if "expected a single document" in (error.context or ""):
        remedy = "keep one scenario per file, without a second '---'"
    else:
        remedy = "check indentation, colons, brackets and quotes here and on the line above"
    return Problem(mark.line + 1 if mark else 0, "", f"not valid YAML: {what}", remedy)


@dataclass(slots=True)
class _Reader:
    tree: Tree
    nodes: int = 0

    def root(self, node: yaml.Node) -> None:
        self.tree.lines[()] = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else f"{str(node.value)[:40]!r}"
            self._problem(node, (), f"expected a mapping of keys, got {kind}", "begin with a key such as 'title:'")
            return
        self.tree.data = self._read(node, ())

    def _problem(self, node: yaml.Node, path: Path, message: str, remedy: str) -> None:
        self.tree.problems.append(Problem(node.start_mark.line + 1, dotted(path), message, remedy))

    def _read(self, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            if not any("too large" in problem.message for problem in self.tree.problems):
                limits = f"{MAX_NODES} values, {MAX_DEPTH} levels"
                self._problem(node, path, f"too large once aliases are expanded (limits: {limits})", "make it smaller")
            return None
        if node.tag not in _KINDS:
            self._problem(node, path, f"tags are not supported, got {str(node.tag)[:40]!r}", "remove the tag")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.tree.lines.setdefault((*path, index), item.start_mark.line + 1)
            return [self._read(item, (*path, index)) for index, item in enumerate(node.value[: MAX_NODES + 1])]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "expected text as a key, got a mapping or list", "put braces in quotes")
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in data:
                first = self.tree.lines[here]
                self._problem(key_node, here, f"the key stands twice (first at line {first})", "keep one of them")
                continue
            self.tree.lines[here] = key_node.start_mark.line + 1
            data[key] = self._read(value_node, here)
        return data

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        text = str(node.value)
        if any("\ud800" <= char <= "\udfff" for char in text):
            self._problem(node, path, "the text is not valid Unicode (a lone surrogate)", "remove the escape")
            return ""
        tag = str(node.tag)
        return text if getattr(node, "style", None) is not None else plain(text, tag.removeprefix(_STANDARD))


def plain(text: str, kind: str) -> Any:
    """Value of an unquoted scalar that YAML 1.1 calls `kind`; its traps (yes, on, 1:30, 010, dates) stay text."""
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "int" and _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if kind == "float" and ":" not in text and text.strip("+-.").lower() not in ("inf", "nan"):
        return float(text.replace("_", ""))
    return text


def prompts(file: str) -> list[str]:
    """Lines of a prompts file that are not blank. Raises BadValue."""
    try:
        with open(file, "rb") as opened:
            raw = opened.read(MAX_PROMPT_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = ""
        if len(raw) <= MAX_PROMPT_BYTES:  # else the cut may have hit a character
            raise BadValue(f"{file!r} is not UTF-8", "save it as UTF-8") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadValue(f"{file!r} cannot be read ({why})", "name a file with one prompt a line") from None
    if len(raw) > MAX_PROMPT_BYTES:
        raise BadValue(f"{file!r} has more than {MAX_PROMPT_BYTES} bytes", "take a sample of its lines")
    lines = [line.strip("\r") for line in text.split("\n") if line.strip()]
    if not 0 < len(lines) <= MAX_PROMPTS:
        raise BadValue(f"{file!r} holds {len(lines)} prompts, expected 1 to {MAX_PROMPTS}", "write one prompt a line")
    return lines
