"""The command line: finds the command, and turns what goes wrong into sentences.

Nothing heavy is imported before the command is known.
"""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from agr_lightning import __version__
from agr_lightning.messages import UserError, did_you_mean

COMMANDS = {
    "fit": "train a network, then test its best checkpoint",
    "validate": "measure a checkpoint on the validation images",
    "test": "measure a checkpoint on the test images: results.json and figures",
    "predict": "find the faces in photos and videos, and predict for each: predictions.csv",
    "app": "a web page on this machine: drop photos, see faces and answers",
    "audit": "say what is wrong with a data folder",
    "compare": "one table of tested runs: figures, groups, size and speed",
    "export": "a checkpoint's network in one file that travels: ONNX or safetensors",
    "report": "a page and a model card of a tested run: report.html, MODEL_CARD.md",
}

_PROGRAM = "python -m agr_lightning"

_HELP = f"""usage: {_PROGRAM} COMMAND [options]

Age in years, gender and race from face images: train, measure and use one network.

commands:
{chr(10).join(f"  {name:10}{text}" for name, text in COMMANDS.items())}

  {_PROGRAM} COMMAND --help   all options of a command
  {_PROGRAM} --version

start here, without any data:
  {_PROGRAM} fit --config configs/quickstart.yaml
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: the command and its options; None for those of this process.

    Returns:
        The exit code: 0; 1 for an error while running; 2 for a command line that cannot be understood.
    """
    args = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    if not args or args[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"agr_lightning {__version__}")
        return 0
    command, *options = args
    if command not in COMMANDS:
        kind = "option" if command.startswith("-") else "command"
        known = ("--help", "--version") if kind == "option" else COMMANDS
        return _fail(
            f"no {kind} is called '{command}'{did_you_mean(command, known)}; commands: {', '.join(COMMANDS)}.", 2
        )
    try:
        return _run(command, options)
    except UserError as error:
        # A loader worker's error arrives with the worker's traceback in front of it.
        return _fail(str(error).rpartition("UserError: ")[2].strip())
    except BrokenPipeError:
        # Whoever read the output has gone; nothing is left to tell them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            if error.filename is None:
                raise
            return _fail(f"{os.fsdecode(error.filename)}: {error.strerror}.")
        where = f" at {os.fsdecode(error.filename)}" if error.filename else ""
        return _fail(
            f"the disk is full{where}: free some space, or write elsewhere with --trainer.default_root_dir "
            "(runs) and --data.cache_dir (decoded images)."
        )
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _run(command: str, options: list[str]) -> int:
    if command in _PLAIN:
        return _PLAIN[command](options)
    from agr_lightning.trainer_run import run

    run(command, options)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help says more)\n")


def _audit(options: list[str]) -> int:
    parser = _Parser(
        f"{_PROGRAM} audit",
        description="Counts a data folder by age band, gender and race; lists files that are no samples, photos that "
        "are there more than once, and those whose labels disagree.",
    )
    parser.add_argument("dir", metavar="DIR", help="folder of UTKFace images, or their archive")
    parser.add_argument("--output", metavar="FILE.json", help="write everything that was found to this file")
    parser.add_argument("--cache_dir", metavar="DIR", help="folder for derived files (default: ~/.cache/agr_lightning)")
    chosen = parser.parse_args(options)

    from agr_lightning.audit import audit

    print(audit(chosen.dir, chosen.output, chosen.cache_dir))
    return 0


def _app(options: list[str]) -> int:
    parser = _Parser(
        f"{_PROGRAM} app",
        description="Opens a page in the browser: drop photos on it or use the camera, see each face with age, gender "
        "and race, and download the table. Photos stay in memory, on this machine, until the page is closed.",
    )
    parser.add_argument(
        "--ckpt_path",
        metavar="FILE",
        help=".onnx or .safetensors file, checkpoint, run folder, best, last, or small: the small network that comes "
        "along (default: the other one that does)",
    )
    parser.add_argument("--port", type=int, default=8501, metavar="N", help="port to listen on (default: 8501)")
    parser.add_argument(
        "--address", default="localhost", help="address to listen on; 0.0.0.0 lets others in (default: localhost)"
    )
    parser.add_argument("--no_browser", action="store_true", help="do not open a browser")
    chosen = parser.parse_args(options)

    from agr_lightning.app_server import serve

    serve(chosen.ckpt_path, chosen.address, chosen.port, browser=not chosen.no_browser)
    return 0


def _compare(options: list[str]) -> int:
    parser = _Parser(
        f"{_PROGRAM} compare",
        description="Compares tested runs: each task with its 95 % interval, worst groups, parameters, multiply-adds, "
        "size of the weights, and time on a CPU, which is measured now, of all runs in turns. Runs of different test "
        "sets get tables of their own.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folder with a results.json, or that file")
    parser.add_argument("--output", metavar="DIR", help="write comparison.md, comparison.csv and comparison.png there")
    chosen = parser.parse_args(options)

    from agr_lightning.evaluation.compare import compare

    print(compare(chosen.runs, chosen.output), end="")
    return 0


def _report(options: list[str]) -> int:
    parser = _Parser(
        f"{_PROGRAM} report",
        description="Writes a page that opens offline, report.html, and a model card, MODEL_CARD.md, into the folder "
        "of a tested run: figures with intervals, groups, calibration, how it was trained, what it is for and not.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder with a results.json, or that file")
    parser.add_argument(
        "--no_faces", action="store_true", help="leave the grids of photos out, for a page that can be passed on"
    )
    chosen = parser.parse_args(options)

    from agr_lightning.evaluation.report import write_report

    for path in write_report(chosen.run, faces=not chosen.no_faces):
        print(path)
    return 0


def _predict(options: list[str]) -> int:
    options = [option.replace("--min-size", "--min_size") for option in options]
    from agr_lightning import predict_cli

    if predict_cli.needs_trainer(options):
        from agr_lightning.trainer_run import run

        run("predict", options)
    else:
        predict_cli.run(options)
    return 0


def _export(options: list[str]) -> int:
    parser = _Parser(
        f"{_PROGRAM} export",
        description="Writes the network of a checkpoint into one file that loads without running code. FILE.onnx: "
        "resizing, normalisation and calibration included, for onnxruntime and everything else that runs ONNX; it is "
        "kept only if its answers are those of the checkpoint. FILE.safetensors: weights in 16 bits, for --ckpt_path "
        "of test and predict and for --model.weights; test then leaves out what they have seen.",
    )
    parser.add_argument(
        "--ckpt_path",
        metavar="FILE",
        help="checkpoint, run folder, best, last, or small: the small network that comes with this project (default: "
        "the other one that does)",
    )
    parser.add_argument("--output", metavar="FILE", required=True, help="the .onnx or .safetensors file to write")
    parser.add_argument("--images", metavar="FOLDER", help="faces to compare the answers by (default: drawn cards)")
    parser.add_argument("--half", action="store_true", help="store an ONNX file's weights in 16 bits")
    chosen = parser.parse_args(options)

    from agr_lightning.inference.export import export

    print(export(chosen.ckpt_path, chosen.output, chosen.images, chosen.half))
    return 0


# The commands that are not LightningCLI's.
_PLAIN: dict[str, Callable[[list[str]], int]] = {
    "app": _app,
    "audit": _audit,
    "compare": _compare,
    "export": _export,
    "predict": _predict,
    "report": _report,
}


def _fail(message: str, code: int = 1) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
