"""The command line. Parses first and imports later, so that `--help` answers at once.

Exit codes: 0 done, 1 failed, 2 bad input, 3 refused by the doctor or a mismatch in a replay, 75 interrupted and
resumable. Bad input is one line on stderr.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from actors.bench import NAMES

BAD_INPUT = 2
REFUSED = 3
INTERRUPTED = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `arpo`; returns the exit code."""
    arguments = parse(argv)
    from actors import commands

    return commands.run(arguments)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """A command line as its parts; one that is none ends the program with one line."""
    parser = _parser()
    # Overrides may stand behind options too, where argparse no longer takes them for positionals.
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if not _is_override(word) or "overrides" not in arguments]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides += rest
    for option in ("data", "predictions", "arms"):
        _take_overrides_from(arguments, option)
    return arguments


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.endswith(".toml"))


def _take_overrides_from(arguments: argparse.Namespace, option: str) -> None:
    """An option of several words takes the overrides behind it for more of them."""
    words = getattr(arguments, option, None)
    if isinstance(words, list):
        arguments.overrides += [word for word in words if _is_override(str(word))]
        setattr(arguments, option, [word for word in words if not _is_override(str(word))])


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    (commands,) = (action for action in _parser()._actions if isinstance(action.choices, dict))
    return dict(commands.choices)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="arpo", description="Train agents that use tools: branching rollouts, asynchronous RL.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, *, has_config: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        if has_config:
            sub.add_argument("config", help="a TOML file")
            sub.add_argument(
                "overrides",
                nargs="*",
                metavar="key=value",
                help="for example train.steps=3 run.name=first; or a file laid over the first: algorithms/dapo.toml",
            )
        return sub

    train = command("train", "train by RL; an interrupted run goes on")
    train.add_argument("--data", help="shorthand for data.path=FILE")
    train.add_argument("--fresh", action="store_true", help="start anew in the folder of the run")
    command("sft", "supervised cold start on tool-use traces, tool tokens masked")
    rollout = command("rollout", "rollouts only, no learner; one JSON line a trajectory")
    rollout.add_argument("--data", help="shorthand for data.path=FILE")
    rollout.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    rollout.add_argument("--out", required=True, metavar="FILE", help="where the lines go")
    rollout.add_argument(
        "--concurrency", type=_positive, default=16, metavar="N", help="prompts in flight (default 16)"
    )
    _add_eval(command("eval", "measure a policy; scores as JSON and as a table", has_config=False))
    _add_doctor(command("doctor", "what can be known before anything is allocated", has_config=False))
    config = command("config", "what a configuration comes to, and which file said so", has_config=False)
    config.add_argument("config", nargs="?", help="a TOML file")
    config.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.steps=3")
    config.add_argument("--reference", action="store_true", help="instead, every key there is: docs/configuration.md")
    serve = command("serve", "an OpenAI-compatible gateway that records conversations as trajectories")
    serve.add_argument("--host", help="shorthand for serve.host=HOST")
    serve.add_argument("--port", type=int, metavar="N", help="shorthand for serve.port=N")
    submit = command("submit", "train on a Ray cluster, as a job of it")
    submit.add_argument("--address", required=True, metavar="URL", help="of the dashboard, http://head:8265")
    submit.add_argument("--wheel", metavar="FILE", help="send this wheel instead of the checkout")
    submit.add_argument("--python", default="python", metavar="FILE", help="the nodes' interpreter (default python)")
    bench = command("bench", "measure the engine on this machine", has_config=False)
    _add_bench(bench)
    again = command(
        "replay", "train again from a run's journal, and compare; exit 3 where anything differs", has_config=False
    )
    again.add_argument("run", help="the folder of a run")
    again.add_argument("--until", type=_positive, metavar="STEP", help="only up to this step")
    again.add_argument(
        "--dump-batch",
        type=_positive,
        metavar="N",
        help="only write the trajectories of step N to stdout, as JSON lines",
    )
    _add_view(command)
    export = command("export", "write a run's newest checkpoint as a Hugging Face folder", has_config=False)
    export.add_argument("run", help="the folder of a run")
    export.add_argument("--hf", required=True, metavar="DIR", help="the folder to write")
    return parser


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("config", nargs="?", help="a TOML file; without one, what this machine has")
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="for example learner.tensor_parallel=4")
    doctor.add_argument("--gpu-memory-gib", type=_positive, metavar="N", help="memory of a GPU, if none is here")
    doctor.add_argument("--gpus", type=_positive, metavar="N", help="GPUs there are, if they are not here")
    doctor.add_argument("--json", action="store_true", help="the findings as a JSON list on stdout")


def _add_view(command: Callable[..., argparse.ArgumentParser]) -> None:
    watch = command("watch", "a web page of a run, while it lives and afterwards", has_config=False)
    watch.add_argument("run", help="the folder of a run")
    watch.add_argument("--host", default="127.0.0.1", help="default loopback; others need the token in the address")
    watch.add_argument("--port", type=int, default=8090, metavar="N", help="default 8090; 0 takes a free one")
    trace = command("trace", "the same page as one file, from the journal; or a Perfetto trace", has_config=False)
    trace.add_argument("run", help="the folder of a run")
    trace.add_argument("--out", metavar="FILE", help="where the page goes, RUN/trace.html if not said")
    trace.add_argument("--trees", type=_positive, default=200, metavar="N", help="trees with texts (default 200)")
    trace.add_argument("--perfetto", metavar="FILE", help="write trace events there, and no page without --out")


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("name", choices=(*NAMES, "all"))
    bench.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for control: law.latency_median_s=2, or a file"
    )
    bench.add_argument("--quick", action="store_true", help="small sizes; minutes, not more")
    bench.add_argument("--json", metavar="FILE", help="write the figures there too")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for learner (default cpu)")
    bench.add_argument("--sglang-python", metavar="FILE", help="for prefix: a Python that has sglang")
    bench.add_argument("--with-trl", action="store_true", help="for end-to-end: install TRL, and run it beside")
    bench.add_argument("--html", metavar="FILE", help="write a page with plots, which needs nothing but itself")
    bench.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these arms")
    bench.add_argument("--seeds", type=_positive, metavar="N", help="for tool-budget: pairs of seeds, 8 if not said")
    bench.add_argument("--jobs", type=_positive, metavar="N", help="for tool-budget: runs at once, 2 if not said")
    bench.add_argument(
        "--records", default="runs/bench", metavar="DIR", help="where runs are kept that need no repeating (runs/bench)"
    )


def _add_eval(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("config", nargs="?", help="a TOML file; not needed for --predictions")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="for example eval.concurrency=8")
    evaluate.add_argument(
        "--data", nargs="+", action="extend", metavar="FILE", help="files of questions, in place of eval.data.path"
    )
    evaluate.add_argument("--k", type=int, metavar="N", help="trajectories a question, for pass@k")
    evaluate.add_argument("--sampling", choices=("greedy", "paper"), help="shorthand for eval.sampling.kind=...")
    evaluate.add_argument("--out", metavar="DIR", help="where answers are kept (default: a folder in run.dir)")
    evaluate.add_argument(
        "--predictions", nargs="+", metavar="FILE", help="score these answers, JSON lines, and ask nothing"
    )
    evaluate.add_argument("--json", metavar="FILE", help="write the scores there too")


if __name__ == "__main__":
    sys.exit(main())
