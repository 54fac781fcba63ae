"""The pages a reader gets, and what stands in them: programs, command lines, links."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}


def blocks(text: str, language: str) -> list[str]:
    """What stands between fences of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def prose(text: str) -> str:
    """The text without fences and indented lines."""
    return re.sub(r"^(```.*?^```|    .*?$)", "", text, flags=re.DOTALL | re.MULTILINE)


def command_lines(text: str, program: str) -> list[str]:
    """What stands behind the name of a program on indented lines, comments left out and continued lines joined."""
    joined = re.sub(r"\\\n +", "", text)
    found = re.findall(rf"^    {program} (.*)$", joined, re.MULTILINE)
    return [re.sub(r"\s+#.*$", "", line).removesuffix(" &") for line in found]


def spans(text: str) -> list[str]:
    """What stands between backticks within a paragraph, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]
