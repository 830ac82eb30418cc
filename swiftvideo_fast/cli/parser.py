"""The command line's parser: overrides anywhere on the line, errors with an example."""

import argparse
import difflib
import re
import sys
from pathlib import Path

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
SETTING = re.compile(r"[a-z]\w*\.\w+")
CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """argparse with three changes: config and key=value overrides may be anywhere on the line, unknown
    options are errors of the subcommand, and errors end with an example."""

    example = ""

    def parse_known_args(self, words=None, namespace=None):
        words, overrides = self._split(list(sys.argv[1:] if words is None else words))
        found, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(self._unknown(unknown[0]))
        if overrides:
            found.overrides = [*overrides, *found.overrides]
        return found, unknown

    def error(self, message: str):
        if bad := CHOICE.search(message):
            near = difflib.get_close_matches(bad[1], re.findall(r"[\w.-]+", bad[2]), n=1)
            message += f"; perhaps {near[0]!r}" if near else ""
        if message.endswith("required: COMMAND"):
            message += "; swiftvideo --help lists them"
        example = f"example: {self.example}\n" if self.example else ""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}\n{example}")

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Returns (other words, with the config first; overrides).  Option values are no overrides: --prompt
        a=b."""
        configs, rest, overrides, before = [], [], [], ""
        for word in words:
            free = self._takes("overrides") and not self._needs_value(before)
            if free and OVERRIDE.match(word) and not Path(word).is_file():
                overrides.append(word)
            elif free and self._takes("config") and word.endswith((".yaml", ".yml")):
                configs.append(word)
            else:
                rest.append(word)
            before = word
        return [*configs, *rest], overrides

    def _needs_value(self, word: str) -> bool:
        """Returns whether the next word is this option's value (False for --steps, which takes several)."""
        if not word.startswith("--") or "=" in word:
            return False
        named = [action for action in self._actions if any(name.startswith(word)
                                                           for name in action.option_strings)]
        return any(action.nargs is None for action in named)

    def _unknown(self, word: str) -> str:
        bare = word.lstrip("-").partition("=")[0]
        options = {name: action for action in self._actions for name in action.option_strings}
        chosen = [f"{name} {bare}" for name, action in options.items() if bare in (action.choices or ())]
        near = chosen or difflib.get_close_matches(word.partition("=")[0], options, n=1, cutoff=0.75)
        if OVERRIDE.match(word.lstrip("-")) and self._takes("overrides"):
            near = [word.lstrip("-")]                       # an override, written as an option
        if SETTING.fullmatch(word.lstrip("-")) and self._takes("overrides"):
            near = [f"{bare}=VALUE"]
        kind = "option" if word.startswith("-") else "argument"
        return f"unknown {kind} {word}; " + (f"perhaps {near[0]}" if near else "--help lists the known ones")

    def _takes(self, what: str) -> bool:
        return any(action.dest == what for action in self._actions)
