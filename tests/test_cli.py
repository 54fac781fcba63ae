"""The command line as a person meets it: bad input is one line, exit code 2, and nothing left behind."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.cli import main
from engine.inference.tiny import make_tiny_model
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer

COMMANDS = ("train", "sft", "rollout", "eval", "bench", "export")
QUESTION = [{"role": "user", "content": "who is it"}]


class Home:
    """A folder with a model, questions and a configuration that a run could start from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Python's own resource tracker stays with the process that first wanted one.
        self._children_before = self._processes()
        self.model = path / "model"
        self.model.mkdir()
        make_word_tokenizer(self.model, words=["who", "is", "it", "one"])
        tokenizer = load_tokenizer(self.model)
        sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
        eos = tokenizer.eos_token_ids
        make_tiny_model(self.model, vocab_size=tokenizer.vocab_size, max_positions=256, eos_token_ids=eos, **sizes)
        self.questions("good.parquet", ["one", "one"])
        self.config = self.write(
            "run.toml",
            f"""
            [run]
            dir = "{path / "runs"}"
            [model]
            kind = "hf"
            path = "{self.model}"
            [data]
            path = "{path / "good.parquet"}"
            [eval.data]
            path = "{path / "good.parquet"}"
            [rollout]
            size = 2
            [rollout.sampling]
            max_response_tokens = 8
            [[sft]]
            traces = ["{path / "traces.jsonl"}"]
            steps = 1
            [sft.learner]
            dtype = "float32"
            [sft.learner.loss]
            kind = "nll"
            """,
        )
        segments = [{"text": "one", "is_sampled": True}]
        self.write("traces.jsonl", json.dumps({"prompt": QUESTION, "segments": segments}))

    def write(self, name: str, text: str) -> str:
        (self.path / name).write_text(text)
        return str(self.path / name)

    def children(self) -> set[int]:
        """Processes that were started since, and live."""
        return self._processes() - self._children_before

    @staticmethod
    def _processes() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)}

    def questions(self, name: str, answers: Sequence[str], *, prompt: Any = QUESTION) -> str:
        rows = [{"prompt": prompt, "reward_model": {"ground_truth": answer}} for answer in answers]
        pq.write_table(pa.Table.from_pylist(rows), self.path / name)
        return str(self.path / name)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*")}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def refused(home: Home, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must refuse its input; returns its one line."""
    before = home.files()
    try:
        code = main(argv)
    except SystemExit as end:  # argparse ends the program itself
        code = end.code
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    assert home.files() == before, "nothing is left behind"
    assert home.children() == set()
    return captured.err.strip()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.siz=3"], r"run.toml: Object contains unknown field `siz` - at `\$.rollout`"),
        (["rollout.size=many"], r"run.toml: Expected `int`, got `str` - at `\$.rollout.size`"),
        (
            ["rollout.branching.kind=arpo", "rollout.branching.tau=x"],
            r"Expected `float`, got `str` - at `\$.rollout.branching.tau`",
        ),
        (["foo"], r"override 'foo': expected a.b=value"),
        (["--fresh", "foo"], r"unrecognized arguments: foo"),
        (["algorithms/dpo.toml"], r"algorithms/dpo.toml: no such configuration file; shipped are algorithms/aepo.toml"),
        (["--fresh", "algorithms/dpo.toml"], r"algorithms/dpo.toml: no such configuration file"),
        (["algorithms/dapo.toml", "learner.lr=0"], r"run.toml: Expected `float` > 0.0 - at `\$.learner.lr`"),
        (["data.path.x=1"], r"data.path is a value, not a section"),
        (["data.path={home}/none.parquet"], r"none.parquet: no such data file"),
        (["data.path=world:train"], r"'world:train' needs a \[world\] section"),
        (["--data", "{home}/run.toml"], r"run.toml: a data file ends in .parquet or .jsonl"),
        (
            ["data.answer_column=answer"],
            r"good.parquet: no column answer; there are: prompt, reward_model.ground_truth",
        ),
        (["data.max_prompt_tokens=2"], r"good.parquet: row 0: \d+ tokens, max_prompt_tokens is 2"),
        (["eval.data.max_prompt_tokens=2"], r"good.parquet: row 0: \d+ tokens, max_prompt_tokens is 2"),
        (["rollout.sampling.max_response_tokens=256"], r"do not fit into 256 .*at \$.rollout.sampling.max_response"),
        (["generator.kind=embedded", "generator.max_kv_tokens=10"], r"do not fit into 10 "),
        (["model.path={home}/nowhere"], r"nowhere: no model folder there .*at \$.model.path"),
        (["tools.search.corpus={home}/none.jsonl"], r"none.jsonl.*at \$.tools.search.corpus"),
        (['sft.0.traces=["{home}/none.jsonl"]'], r"none.jsonl: No such file"),
        (["sft.0.shares=[0.5, 0.5]"], r"2 shares for 1 files of traces - at \$.sft.0.shares"),
        (["sft.0.until_loss=1.0"], r"until_loss is about 20 steps, there are 1 - at \$.sft.0.until_loss"),
        (["sft.0.until_loss=0"], r"Expected `float` > 0.0 - at `\$.sft\[0\].until_loss`"),
        (["sft.0.max_tokens=2"], r"traces.jsonl: trace 0 has \d+ tokens, sft.0.max_tokens is 2"),
        (["sft.0.learner.loss.kind=ppo"], r"needs loss.kind = 'nll' - at \$.sft.0.learner.loss"),
        (["sft.1.steps=3"], r"override 'sft.1.steps=3': '1' is none of the 1 places of an array"),
        (["sft.steps=3"], r"override 'sft.steps=3': 'steps' is none of the 1 places of an array"),
        (["sft=", "eval.control=true"], r"run.toml: a control goes on with a cold start, .* - at \$.eval.control"),
        (["run.dir={home}/run.toml"], r"run.toml/run-1: Not a directory - at \$.run.dir"),
    ],
)
def test_train_refuses_bad_input_in_one_line_and_leaves_no_run(
    overrides: list[str], message: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(home, capsys, "train", home.config, *(o.replace("{home}", str(home.path)) for o in overrides))
    assert re.match(r"arpo( train)?: ", line)
    assert re.search(message, line), line


def test_a_configuration_that_is_not_there_or_not_toml_is_named(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(home, capsys, "train", "none.toml") == "arpo: none.toml: no such configuration file"
    torn = home.write("torn.toml", "[run\n")
    assert refused(home, capsys, "train", torn).startswith(f"arpo: {torn}: Expected")


def test_a_trace_that_is_none_is_named_by_its_line(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    good = (home.path / "traces.jsonl").read_text()
    home.write("traces.jsonl", f'{good}\n{{"prompt": 3}}\n')
    assert "traces.jsonl: line 2: " in refused(home, capsys, "train", home.config)


def test_a_model_folder_of_another_shape_is_refused_by_the_name_of_the_tensor(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home.model / "config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({**raw, "intermediate_size": 99}))
    line = refused(home, capsys, "train", home.config)
    assert re.search(r"mlp.gate_proj.weight is \[384, 16\], the model wants \[99, 16\]", line)
    file.write_text(json.dumps({**raw, "num_hidden_layers": 2}))
    assert "model.layers.1.input_layernorm.weight is missing" in refused(home, capsys, "train", home.config)
    file.write_text(json.dumps({**raw, "model_type": "mamba"}))
    assert "model_type 'mamba' is not one of" in refused(home, capsys, "train", home.config)
    file.write_text(json.dumps(raw))
    (home.model / "model.safetensors").write_bytes(b"not a tensor")
    assert "reading " in refused(home, capsys, "train", home.config)


def test_fresh_keeps_the_old_run_until_the_input_is_good(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    old = home.path / "runs" / "old" / "journal"
    old.mkdir(parents=True)
    (old / "000001.log").write_bytes(b"precious")
    refused(home, capsys, "train", home.config, "run.name=old", "--fresh", "data.path=none.parquet")
    assert (old / "000001.log").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rollout", "{config}"], r"required: --out"),
        (["rollout", "{config}", "--out", "{home}/none/x.jsonl"], r"--out .*/none/x.jsonl: no such folder"),
        (["rollout", "{config}", "--out", "{home}/model"], r"--out .*/model: a folder, not a file"),
        (["rollout", "{config}", "--out", "{home}/x.jsonl", "--concurrency", "0"], r"number above 0, got '0'"),
        (["rollout", "{config}", "--out", "{home}/x.jsonl", "--concurrency", "-2"], r"number above 0, got '-2'"),
        (["rollout", "{config}", "--out", "{home}/x.jsonl", "--limit", "0"], r"`int` >= 1 - at `\$.data.limit`"),
        (["rollout", "{config}", "--out", "{home}/x.jsonl", "--limit", "x"], r"--limit: invalid int value: 'x'"),
        (["rollout", "{config}", "--out", "{home}/x.jsonl", "--data", "{home}/é𝄞.jsonl"], r"/é𝄞.jsonl: no such data"),
        (["eval", "{config}", "--json", "{home}/none/x.json"], r"--json .*/none/x.json: no such folder"),
        (["eval", "{config}", "--k", "0"], r"`int` >= 1 - at `\$.eval.samples`"),
        (["eval", "{config}", "eval="], r"no \[eval\] section, and no --data - at \$.eval"),
        (["eval"], r"arpo eval needs a CONFIG, or --predictions"),
        (["eval", "{config}", "--sampling", "beam"], r"invalid choice: 'beam'"),
        (["eval", "{config}", "--data", "{home}/good.parquet", "{home}/none.jsonl"], r"none.jsonl: no such data file"),
        (["eval", "{config}", "--data", "{home}/good.parquet", "eval.samples=0"], r"at `\$.eval.samples`"),
        (
            ["eval", "{config}", "--data", "{home}/good.parquet", "{home}/model/good.parquet"],
            r"sets of one name: .*; rename a file - at \$.eval.data.path",
        ),
        (["eval", "--predictions", "{home}/none.jsonl"], r"none.jsonl: No such file|none.jsonl: FileNotFoundError"),
        (["eval", "--predictions", "{home}/traces.jsonl"], r"traces.jsonl: line 1: .* missing required field `truths`"),
        (
            ["eval", "--predictions", "{home}/traces.jsonl", "--data", "x.jsonl"],
            r"--data and --out do not go with them",
        ),
        (["eval", "--predictions", "{home}/traces.jsonl", "--out", "{home}"], r"--data and --out do not go"),
        (["sft", "{config}", "sft="], r"no \[\[sft\]\] section - at \$.sft"),
        (["sft", "{config}", "sft.0.steps=0"], r"`int` >= 1 - at `\$.sft\[0\].steps`"),
        (["export", "{home}/none", "--hf", "{home}/hf"], r"no run there \(config.json is missing\)"),
        (["bench", "nothing"], r"invalid choice: 'nothing'"),
        (["tarin", "{config}"], r"invalid choice: 'tarin'"),
        ([], r"required: COMMAND"),
    ],
)
def test_every_command_refuses_bad_input_in_one_line(
    argv: list[str], message: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(home, capsys, *(a.replace("{home}", str(home.path)).replace("{config}", home.config) for a in argv))
    assert re.search(message, line), line


@pytest.mark.parametrize("argv", [[], *([command] for command in COMMANDS)], ids=lambda argv: " ".join(argv) or "arpo")
def test_help_is_there_for_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['arpo', *argv])}")


def test_the_program_prints_no_traceback_and_imports_nothing_heavy_for_its_help() -> None:
    code = "import sys; from actors.cli import main; sys.exit(main(sys.argv[1:]))"
    bad = subprocess.run([sys.executable, "-c", code, "train", "none.toml"], capture_output=True, text=True, timeout=60)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "arpo: none.toml: no such configuration file\n"
    probe = (
        "import sys\nfrom actors.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'megatron', 'pyarrow', 'numpy', 'msgspec', 'rich', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.real
@pytest.mark.timeout(120)
def test_rollout_skips_a_row_without_an_answer_and_says_so(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    data = home.questions("gaps.parquet", ["one", "", "one", " "])
    out = home.path / "out.jsonl"
    assert main(["rollout", home.config, "sft=", "--data", data, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["prompt_id"] for line in lines} == {"e0-r0", "e0-r2"}
    assert len(lines) == 4
    # The command line shows warnings; it says so once, not once for each epoch or process.
    shown = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert shown == [f"{data}: 2 rows without an answer are left out"]
    assert home.children() == set()
    assert "out.jsonl.partial" not in " ".join(os.listdir(home.path))


def test_predictions_are_scored_without_a_configuration(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    said = [{"truths": ["Ann Lee"], "answer": "ann"}, {"set": "aime24", "truths": ["033"], "answer": "33"}]
    first = home.write("first.jsonl", json.dumps(said[0]))
    second = home.write("second.jsonl", json.dumps(said[1]))
    before = home.files()
    assert main(["eval", "--predictions", first, second, "--json", str(home.path / "scores.json")]) == 0
    captured = capsys.readouterr()
    scores = json.loads(captured.out)
    assert {name: (found["metric"], found["value"]) for name, found in scores["sets"].items()} == {
        "first": ("f1", pytest.approx(2 / 3)),
        "aime24": ("math", 1.0),
    }
    assert (scores["average"], scores["averaged"]) == (pytest.approx(5 / 6), ["first", "aime24"])
    assert json.loads((home.path / "scores.json").read_text()) == scores
    assert "average of first, aime24" in captured.err
    assert home.files() == before | {"scores.json"}


@pytest.mark.real
@pytest.mark.timeout(300)
def test_eval_keeps_its_answers_and_asks_only_what_is_missing(
    home: Home, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    home.questions("first.parquet", ["one", "it"])
    home.write(
        "second.jsonl", "".join(json.dumps({"question": "who", "answer": [a, "is"]}) + "\n" for a in ("one", "it"))
    )
    data = [str(home.path / name) for name in ("first.parquet", "second.jsonl")]
    command = ["eval", home.config, "sft=", "--k", "2", "--sampling", "paper"]

    def scores(*more: str) -> dict[str, Any]:
        assert main([*command, *more]) == 0
        return json.loads(capsys.readouterr().out)

    alone = scores("--data", data[0])
    (folder,) = (home.path / "runs").glob("eval-run-*")
    (lines,) = folder.glob("first-*.jsonl")
    written = lines.read_bytes()
    assert written.count(b"\n") == 4
    both = scores("--data", *data, "eval.concurrency=1")
    assert lines.read_bytes() == written, "what was answered is not asked again"
    assert both["sets"]["first"] == alone["sets"]["first"]
    assert list(both["sets"]) == ["first", "second"]
    assert both["questions"] == 4
    # The end of the last question is torn off: that question is asked again, and no other.
    lines.write_bytes(written[:-10])
    again = scores("--data", *data)
    assert again["sets"]["first"]["num_predictions"] == 4
    assert lines.read_bytes()[: len(written) // 2] == written[: len(written) // 2]
    assert home.children() == set()
    assert scores("--data", data[0], "--out", str(home.path / "elsewhere"))["questions"] == 2
    assert (home.path / "elsewhere" / "scores.json").is_file()


@pytest.mark.real
@pytest.mark.timeout(120)
def test_export_refuses_a_torn_checkpoint(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    run = home.path / "runs" / "torn"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    from actors.config import Config
    from engine.config import load, to_json

    (run / "config.json").write_bytes(to_json(load(home.config, Config)))
    line = refused(home, capsys, "export", str(run), "--hf", str(home.path / "hf"))
    assert "step-000001: no checkpoint here: manifest.json is missing" in line
