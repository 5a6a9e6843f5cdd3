"""The command line: one file per verb."""

from __future__ import annotations

import errno
import sys

import typer

from infnet import __version__
from infnet.cli.ab import ab_app
from infnet.cli.ablate import ablate_command
from infnet.cli.benchmark import benchmark_command
from infnet.cli.compare import compare_command
from infnet.cli.conflicts import conflicts_command
from infnet.cli.data import data_app
from infnet.cli.demo import demo_command
from infnet.cli.evaluate import evaluate_command
from infnet.cli.explain import explain_command
from infnet.cli.export import export_command
from infnet.cli.frontier import frontier_command
from infnet.cli.policy import policy_app
from infnet.cli.prepare import prepare_command
from infnet.cli.profile import profile_command
from infnet.cli.publish import publish_command
from infnet.cli.rank import rank_command
from infnet.cli.serve import serve_command
from infnet.cli.simulate import simulate_command
from infnet.cli.train import train_command
from infnet.cli.tune import tune_command
from infnet.cli.update import update_command
from infnet.errors import InfnetError, InputError

__all__ = ["app", "main"]

app = typer.Typer(
    name="infnet",
    help="INFNet: from interaction logs to a trained, evaluated, exported multi-task ranker.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo")(demo_command)
app.add_typer(data_app, name="data")
app.command("prepare")(prepare_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("export")(export_command)
app.command("rank")(rank_command)
app.command("serve")(serve_command)
app.command("update")(update_command)
app.command("publish")(publish_command)
policy_app.command("compare")(compare_command)
policy_app.command("frontier")(frontier_command)
app.add_typer(policy_app, name="policy")
app.add_typer(ab_app, name="ab")
app.command("simulate")(simulate_command)
app.command("tune")(tune_command)
app.command("benchmark")(benchmark_command)
app.command("ablate")(ablate_command)
app.command("profile")(profile_command)
app.command("explain")(explain_command)
app.command("conflicts")(conflicts_command)

_CALLERS_TO_MEND = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG),
}


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"infnet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run a verb. Exit code 0; 1 if it failed; 2 for bad input, with one line that says what to mend; 130 on Ctrl-C."""
    try:
        app()
    except InputError as error:
        _stop(str(error), 2)
    except InfnetError as error:
        _stop(str(error), 1)
    except OSError as error:
        if error.errno not in _CALLERS_TO_MEND:
            raise
        _stop(f"{error.filename or 'a file'}: {error.strerror}; free space or choose a place that can be written", 2)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _stop(message: str, code: int) -> None:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(code)
