import re
import shlex
from pathlib import Path

import pytest
import typer

from infnet.cli import app
from infnet.schema import parse_spec

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh-CN.md"]
PAGES = [*READMES, "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
ROOM = re.compile(r"`((?:src|configs|benchmarks|tests|docs)/[\w./-]+)`")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def code_of(page):
    """Code spans, and the lines of code blocks without a language."""
    text = text_of(page)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return spans + [line for block in blocks(page, "") for line in block.splitlines()]


def options_of(command):
    names = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return names | {"--help", "-h"}


def command_of(words):
    """The command that words name, and what is left of them."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"infnet has no verb '{words[0]}'"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", READMES)
def test_the_example_spec_is_valid(page):
    (example,) = blocks(page, "yaml")
    spec = parse_spec(example, page)
    assert spec.name == "shop"
    assert [task.name for task in spec.tasks] == ["view", "purchase", "revenue"]


def test_both_languages_show_the_same_spec():
    first, second = (parse_spec(blocks(page, "yaml")[0]) for page in READMES)
    assert first.model_dump(exclude={"timezone"}) == second.model_dump(exclude={"timezone"})


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_exists(page):
    for code in code_of(page):
        if not re.match(r"(\S*/)?infnet [a-z-]", code):
            continue
        words = shlex.split(code.split("  #")[0])[1:]
        command, left = command_of(words)
        for word in left:
            if word.startswith("-"):
                assert word.split("=")[0] in options_of(command), f"{code}: no option {word}"


@pytest.mark.parametrize("page", READMES)
def test_commands_are_shown_at_all(page):
    shown = [code for code in code_of(page) if re.match(r"infnet (prepare|train|evaluate|data)", code)]
    assert len(shown) >= 4


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "benchmarks/README.md"])
def test_links_and_paths_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page)) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    missing += [path for path in ROOM.findall(text_of(page)) if not (ROOT / path).exists()]
    assert not missing, f"{page}: {missing}"


@pytest.mark.parametrize("page", ["benchmarks/README.md", "docs/performance.md"])
def test_every_benchmark_is_shown_with_options_it_has(page):
    commands = [code for code in code_of(page) if code.startswith("python benchmarks/")]
    shown = set()
    for command in commands:
        _, script, *words = command.split()
        shown.add(script)
        source = (ROOT / script).read_text(encoding="utf-8")
        unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
        assert not unknown, command
    runnable = {
        f"benchmarks/{path.name}"
        for path in (ROOT / "benchmarks").glob("*.py")
        if "__main__" in path.read_text(encoding="utf-8")
    }
    assert shown == runnable
