"""What can be typed behind a command: its keys and choices, for `--help` and for a shell's completion."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from bench.config.compose import compose_config
from bench.config.installation import CONF
from bench.config.search_path import choices
from bench.errors import ConfigError

WIDTH = 100  # of a help text
SCRIPTS = {
    "bash": """\
_bench() {
  local IFS=$'\\n'
  COMPREPLY=($(COMP_LINE="${COMP_LINE:0:COMP_POINT}" bench -sc query=bash 2>/dev/null))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -F _bench bench
""",
    "zsh": """\
_bench() {
  local -a found
  found=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT]}" bench -sc query=zsh 2>/dev/null)}")
  compadd -S '' -a found
}
compdef _bench bench
""",
    "fish": """\
complete -c bench -f -a '(env COMP_LINE=(commandline -cp) bench -sc query=fish 2>/dev/null)'
""",
}


def script(shell: str) -> str:
    """Return the code by which a shell completes `bench`.

    Raises:
        ConfigError: The shell is unknown.
    """
    if shell not in SCRIPTS:
        raise ConfigError(f"--shell-completion {shell}: choose one of {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


def root_settings(root: str) -> tuple[list[str], dict[str, Any]]:
    """Return the config groups of a root config, and its own keys with their values.

    Args:
        root: The stem of a file directly in conf/, such as `config` or `report`.
    """
    node = OmegaConf.load(CONF / f"{root}.yaml")
    assert isinstance(node, DictConfig)
    defaults = (
        str(key) for entry in node.pop("defaults", []) if isinstance(entry, DictConfig) for key in entry
    )
    groups = [key.removeprefix("optional ") for key in defaults]
    plain = OmegaConf.to_container(node)
    assert isinstance(plain, dict)
    return groups, {str(key): value for key, value in plain.items()}


def described(root: str) -> str:
    """Return the choices and the settings of a root config as text."""
    groups, settings = root_settings(root)
    lines = [listed(groups)] if groups else []
    lines += ["settings:", *(line for word in _words(settings) for line in _wrapped("  ", word))]
    return "\n".join(lines)


def listed(names: Iterable[str]) -> str:
    """Return the choices of config groups as text."""
    lines = [line for name in names for line in _wrapped(f"  {name}=", " | ".join(choices(name)))]
    return "\n".join(["choices:", *lines])


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _words(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield `key=value` of every setting."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _words(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_text(value)}"


def _text(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, list | ListConfig):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def suggestions(words: Sequence[str], word: str, root: str) -> list[str]:
    """Return what the word at the cursor can become.

    Args:
        words: The overrides before it.
        word: Its beginning.
        root: The root config of the command.
    """
    groups, settings = root_settings(root)
    bare = word.lstrip("+~")
    mark, word = word.removesuffix(bare), bare
    key, has_value, _ = word.partition("=")
    if has_value and key in groups:
        found = [f"{key}={choice}" for choice in choices(key)]
    else:
        node = _composed(words, root) or OmegaConf.create(settings)
        found = [f"{group}=" for group in groups] + _keys(node, word)
    return sorted({f"{mark}{text}" for text in found if text.startswith(word)})


def _composed(words: Sequence[str], root: str) -> DictConfig | None:
    """Return the config of the words before the cursor; None while they cannot be composed."""
    try:
        return compose_config(root, [word for word in words if "=" in word])
    except ConfigError:
        return None


def _keys(node: DictConfig, word: str) -> list[str]:
    """Return the keys of a config on the level of a word, or the present value of the key that it names."""
    key, has_value, _ = word.partition("=")
    parent, _, _ = key.rpartition(".")
    inside = OmegaConf.select(node, parent) if parent else node
    if not isinstance(inside, DictConfig):
        return []
    prefix = f"{parent}." if parent else ""
    names = [str(name) for name in inside if name != "hydra" and not str(name).startswith("_")]
    if has_value:
        is_value = key.removeprefix(prefix) in names and not isinstance(
            OmegaConf.select(node, key), DictConfig
        )
        return [f"{key}={_text(OmegaConf.select(node, key))}"] if is_value else []
    is_node = {name: isinstance(OmegaConf.select(inside, name), DictConfig) for name in names}
    return [f"{prefix}{name}{'.' if is_node[name] else '='}" for name in names]
