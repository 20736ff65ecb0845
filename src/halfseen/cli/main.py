"""The command `halfseen`: finds the sub-command, runs it, and turns what went wrong into a sentence and an exit code.

Exit 0 is success, 2 the user's fault (one sentence a fault on stderr), 1 ours (a traceback), 130 Ctrl-C. Only the
module of the chosen sub-command is imported, so `halfseen --help` does not wait for torch.
"""

import difflib
import errno
import importlib
import logging
import os
import sys
import warnings
from typing import Annotated, Any, NamedTuple, cast

import typer
from typer.core import TyperGroup

from halfseen.cli.exits import INTERRUPTED, USERS_FAULT, complain, is_first_process
from halfseen.errors import ConfigError, HalfseenError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a file beyond the allowed size: what a person has to mend."""


class Entry(NamedTuple):
    """A sub-command: where it lives, and its line in `halfseen --help`.

    The module has a function `command`, or a Typer `app` where `is_group` says that it has sub-commands of its own.
    """

    module: str
    summary: str
    is_group: bool = False


COMMANDS: dict[str, Entry] = {
    "demo": Entry("demo", "The whole story on bundled data in three minutes: train, measure, report."),
    "pretrain": Entry("pretrain", "Pre-train an encoder on a folder of images."),
    "recipes": Entry("recipes", "List, show and compare the recipes: published and small ones.", is_group=True),
    "data": Entry("data", "Check a data set, sort ImageNet into class folders, draw label splits.", is_group=True),
    "knn": Entry("knn", "Measure an encoder by k-nearest neighbours, with baselines."),
    "linear": Entry("linear", "Measure an encoder by linear classifiers (iBOT, MSN, MAE, KAMIM), with baselines."),
    "logistic": Entry("logistic", "Measure an encoder by logistic regression on a few labels (MSN), with baselines."),
    "finetune": Entry("finetune", "Train an encoder on as a classifier (MAE, SimMIM, KAMIM ...), with baselines."),
    "cluster": Entry("cluster", "Compare clusters of the features with the classes (iBOT), with baselines."),
    "intermediate": Entry("intermediate", "Train an encoder on, on labels of images or patches (ViNy)."),
    "segment": Entry("segment", "Measure an encoder by the classes of pixels (ViNy, linear, k-NN), with baselines."),
    "analyze": Entry("analyze", "Look into encoders: attention, spectra, alignment, geometry, masked queries ..."),
    "study": Entry("study", "Replay a study: pre-training, intermediate stages, fine-tuning sizes (ViNy)."),
    "embed": Entry("embed", "Write the features of a folder of images to a file."),
    "reconstruct": Entry("reconstruct", "Show original, masked and predicted pictures, with PSNR and SSIM."),
    "report": Entry("report", "Write a run's report as one HTML page."),
    "export": Entry("export", "Write an encoder as safetensors that timm loads."),
    "import": Entry("import_", "Read official weights (MAE, SimMIM, LocalMIM, iBOT, MSN ...) and report every key."),
}


class _Commands(TyperGroup):
    """A group whose commands are imported when they are called by name, never to print the list."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"unknown command '{cmd_name}'. Known: {', '.join(COMMANDS)}.{hint}")
        return load_command(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def load_command(name: str) -> Any:
    """Imports a sub-command's module and makes the command that typer runs."""
    entry = COMMANDS[name]
    module = importlib.import_module(f"halfseen.cli.{entry.module}")
    if entry.is_group:
        module.app.rich_markup_mode = None
        return typer.main.get_group(module.app)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(module.command)
    return typer.main.get_command(app)


app = typer.Typer(
    name="halfseen",
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: halfseen pretrain my_photos --recipe mae_small. "
    "`halfseen COMMAND --help` shows the options of a command and an example.",
)


def print_version(wanted: bool) -> bool:
    """Prints the version and ends, if it is wanted."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"halfseen {version('halfseen')}")
        raise typer.Exit()
    return wanted


@app.callback()
def halfseen(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Teaches vision transformers to see from half-seen images: pre-train, measure, explain."""
    set_up_logging()


def quiet_third_parties() -> None:
    """Keeps notes from torch to its developers off the user's terminal, unless Python's -W or PYTHONWARNINGS asks."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)


def set_up_logging() -> None:
    """The library's log goes to stderr as plain lines; of several processes only the first one speaks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("halfseen")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    logger.propagate = False


def of_its_task(arguments: list[str]) -> list[str]:
    """`finetune --task segment ...` as `segment ...`, which has options of its own; anything else as it is."""
    for task in (["--task", "segment"], ["--task=segment"]):
        for at in range(1, len(arguments)):
            if arguments[0] == "finetune" and arguments[at : at + len(task)] == task:
                return ["segment", *arguments[1:at], *arguments[at + len(task) :]]
    return arguments


def run(arguments: list[str]) -> int:
    """Runs one command line and gives the exit code; only faults of ours come out as exceptions."""
    usage_error = cast("type[typer.BadParameter]", typer.BadParameter.__base__)  # click's, wherever typer keeps it
    try:
        words = of_its_task(arguments) or ["--help"]
        code = typer.main.get_command(app).main(args=words, prog_name="halfseen", standalone_mode=False)
        sys.stdout.flush()
    except usage_error as error:
        path = error.ctx.command_path if error.ctx else "halfseen"
        complain(f"{path}: {error.format_message().rstrip('.')}. See `{path} --help`.")
        return USERS_FAULT
    except HalfseenError as error:
        complain(error)
        return USERS_FAULT
    except (KeyboardInterrupt, typer.Abort):
        complain("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough; without this the interpreter complains while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        complain(f"A file{where} can't be written: {error.strerror}. Free some space, then try again (or --resume).")
        return USERS_FAULT
    return code if isinstance(code, int) else 0


def let_waiting_threads_sleep() -> None:
    """Lets OpenMP's threads spin for microseconds, not milliseconds, while they wait; must come before torch is loaded.

    On a machine that has other work to do as well, spinning threads take the cores from the ones they wait for; a
    training step beside two busy processes was 2 times slower. Values in the environment are left as they are.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def main() -> None:
    """The entry point."""
    quiet_third_parties()
    let_waiting_threads_sleep()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
