"""The cold start: stages that build on each other, made once; and the control, which goes on with the last of them."""

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.config import Config, EvalConfig, HfModel, RunConfig, SftConfig, TinyModel
from actors.control import run_control
from actors.materials import DRILL, materialise, whole_folder
from actors.run_dir import write_whole
from actors.runtime import LocalRuntime
from actors.sft import LOSS_WINDOW, REPORTS, StartingModel, TraceFiles
from engine.dataset import DataConfig
from engine.errors import ConfigError, DataError, LearnerError
from engine.events import AnyEvent, PhaseStarted, SupervisedStep
from engine.faults import ScriptedTrainer
from engine.inference.tiny import make_tiny_model
from engine.reports import StepReport
from engine.tokenizer import load_tokenizer
from engine.tokenizer_tiny import make_word_tokenizer
from engine.traces import Segment, Trace
from engine.types import Batch
from learner.config import ConstantSchedule, CosineSchedule, LearnerConfig, Nll
from tools.toolworld import ToolworldConfig

WORDS = ["who", "is", "it", "one"]


class Student(ScriptedTrainer):
    """A learner whose loss is a function of the step; its model is the list of what it was trained on."""

    def __init__(self, config: LearnerConfig, *, model_path: str, loss: Callable[[int], float]) -> None:
        super().__init__()
        self.config = config
        self.model_path = model_path
        self._loss = loss

    async def step(self, batch: Batch) -> StepReport:
        report = await super().step(batch)
        return msgspec.structs.replace(report, loss=self._loss(batch.step), duration_s=0.25)

    async def export_hf(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        write_whole(Path(path, "made.json"), msgspec.json.encode([self.model_path, len(self.batches)]))

    @property
    def drawn(self) -> list[list[str]]:
        """The names of the traces of every batch."""
        return [[sample.group.prompt.prompt_id for sample in batch.samples] for batch in self.batches]


class School(LocalRuntime):
    """A runtime whose learners are `Student`s; no process starts."""

    def __init__(self, config: Config, run_dir: Path, *, loss: Callable[[int], float] = lambda step: 1.0) -> None:
        super().__init__(config, run_dir)
        self.students: list[Student] = []
        self._loss = loss

    @asynccontextmanager
    async def learner(self, *, config: LearnerConfig, model_path: str, name: str = "") -> AsyncGenerator[Student, None]:
        self.students.append(Student(config, model_path=model_path, loss=self._loss))
        yield self.students[-1]


@pytest.fixture
def base(tmp_path: Path) -> Config:
    """A model, two files of traces, and a cold start of one stage."""
    model = tmp_path / "model"
    model.mkdir()
    make_word_tokenizer(model, words=WORDS)
    tokenizer = load_tokenizer(model)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    eos = tokenizer.eos_token_ids
    make_tiny_model(model, vocab_size=tokenizer.vocab_size, max_positions=256, eos_token_ids=eos, **sizes)
    for name in ("a", "b"):
        prompt = [{"role": "user", "content": "who is it"}]
        trace = Trace(prompt=prompt, segments=[Segment(text=" one", is_sampled=True)])
        (tmp_path / f"{name}.jsonl").write_bytes((msgspec.json.encode(trace) + b"\n") * 9)
    return Config(
        run=RunConfig(dir=str(tmp_path / "runs")),
        model=HfModel(path=str(model)),
        data=DataConfig(path="none.parquet"),
        sft=(stage(tmp_path, "a"),),
    )


def stage(folder: Path, *names: str, steps: int = 3, until_loss: float | None = None, **learner: Any) -> SftConfig:
    return SftConfig(
        traces=tuple(str(folder / f"{name}.jsonl") for name in names),
        steps=steps,
        batch_size=4,
        until_loss=until_loss,
        learner=LearnerConfig(loss=Nll(), dtype="float32", **learner),
    )


def with_stages(base: Config, *stages: SftConfig) -> Config:
    return msgspec.structs.replace(base, sft=stages)


class Made:
    """What a cold start came to."""

    def __init__(self, config: Config, folder: Path, *, loss: Callable[[int], float] = lambda step: 1.0) -> None:
        self.events: list[AnyEvent] = []
        self.path = ""
        self.students: list[Student] = []
        self._folder = folder
        self._config = config
        self._loss = loss

    def run(self) -> "Made":
        async def main() -> None:
            async with School(self._config, self._folder / "run", loss=self._loss) as school:
                self.students = school.students
                self.path = await StartingModel(self._config, school).make(emit=self.events.append)

        asyncio.run(main())
        return self

    @property
    def phases(self) -> list[tuple[str, int | None]]:
        return [(event.name, event.total) for event in self.events if isinstance(event, PhaseStarted)]

    @property
    def reports(self) -> list[StepReport]:
        return [event.report for event in self.events if isinstance(event, SupervisedStep)]


def test_without_a_cold_start_the_model_is_the_configured_one(base: Config, tmp_path: Path) -> None:
    made = Made(with_stages(base), tmp_path).run()
    assert isinstance(base.model, HfModel)
    assert (made.path, made.events, made.students) == (base.model.path, [], [])


def test_each_stage_goes_on_with_the_model_of_the_one_before(base: Config, tmp_path: Path) -> None:
    config = with_stages(base, stage(tmp_path, "a", lr=1e-2), stage(tmp_path, "b", steps=5, lr=1e-3))
    made = Made(config, tmp_path).run()
    first, second = made.students
    assert isinstance(base.model, HfModel)
    assert first.model_path == base.model.path
    assert Path(second.model_path).parent == Path(made.path).parent == tmp_path / "runs" / "made"
    assert second.model_path != made.path
    assert [student.config.lr for student in made.students] == [1e-2, 1e-3]
    assert msgspec.json.decode((Path(second.model_path) / "made.json").read_bytes()) == [first.model_path, 3]
    assert msgspec.json.decode((Path(made.path) / "made.json").read_bytes()) == [second.model_path, 5]
    assert {name[0] for batch in first.drawn for name in batch} == {"a"}
    assert {name[0] for batch in second.drawn for name in batch} == {"b"}
    assert made.phases == [("cold start 1 of 2", 3), ("cold start 2 of 2", 5)]
    assert [report.step for report in made.reports] == [1, 2, 3, 1, 2, 3, 4, 5]


def test_a_stage_is_made_once_and_its_reports_are_told_again(base: Config, tmp_path: Path) -> None:
    config = with_stages(base, stage(tmp_path, "a"), stage(tmp_path, "b", steps=5))
    made, again = Made(config, tmp_path, loss=lambda step: 1 / step).run(), Made(config, tmp_path).run()
    assert again.students == []
    assert again.path == made.path
    assert again.phases == [("cold start 1 of 2, made earlier", 3), ("cold start 2 of 2, made earlier", 5)]
    assert again.reports == made.reports
    assert [report.loss for report in again.reports[:3]] == [1.0, 1 / 2, 1 / 3]
    assert len((Path(made.path) / REPORTS).read_bytes().splitlines()) == 5


def test_only_what_a_change_comes_to_is_made_anew(base: Config, tmp_path: Path) -> None:
    one, other = stage(tmp_path, "a"), stage(tmp_path, "b", steps=5)
    first = Made(with_stages(base, one, other), tmp_path).run()
    longer = Made(with_stages(base, one, msgspec.structs.replace(other, steps=6)), tmp_path).run()
    assert [len(student.batches) for student in longer.students] == [6]
    assert longer.students[0].model_path == first.students[1].model_path
    assert longer.phases == [("cold start 1 of 2, made earlier", 3), ("cold start 2 of 2", 6)]
    # The second stage is made of what the first came to.
    earlier = Made(with_stages(base, msgspec.structs.replace(one, steps=4), other), tmp_path).run()
    assert [len(student.batches) for student in earlier.students] == [4, 5]
    seeded = msgspec.structs.replace(base, run=msgspec.structs.replace(base.run, seed=1))
    assert len(Made(with_stages(seeded, one, other), tmp_path).run().students) == 2
    assert len({first.path, longer.path, earlier.path}) == 3
    # A single stage is what it is as the first of two.
    assert Made(with_stages(base, one), tmp_path).run().phases == [("cold start, made earlier", 3)]


def test_what_was_made_is_found_again_however_its_folder_is_written_and_wherever_it_is_moved(tmp_path: Path) -> None:
    def made_in(runs: str | Path) -> tuple[set[str], list[str]]:
        """What lies there, and the names of the phases that it took."""
        config = Config(
            run=RunConfig(dir=str(runs)),
            world=ToolworldConfig(num_sft=2, num_train=1, num_valid=0, num_test=0, num_drills=2),
            model=TinyModel(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, vocab_size=300),
            data=DataConfig(path="world:train"),
            sft=tuple(msgspec.structs.replace(stage(tmp_path), traces=(name,)) for name in ("world:sft", DRILL)),
        )
        phases = Made(materialise(config), tmp_path).run().phases
        return {path.name for path in Path(runs, "made").iterdir()}, [name for name, _ in phases]

    begun = made_in(tmp_path / "runs")
    assert len(begun[0]) == 5, "a world, drills, a model, two stages"
    assert begun[1] == ["cold start 1 of 2", "cold start 2 of 2"]
    found = begun[0], ["cold start 1 of 2, made earlier", "cold start 2 of 2, made earlier"]
    assert made_in(os.path.relpath(tmp_path / "runs")) == found
    shutil.copytree(tmp_path / "runs", tmp_path / "elsewhere" / "copied")
    assert made_in(tmp_path / "elsewhere" / "copied") == found


def test_traces_that_say_something_else_under_the_same_path_are_trained_on_anew(base: Config, tmp_path: Path) -> None:
    first = Made(base, tmp_path).run()
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() * 2)
    second = Made(base, tmp_path).run()
    assert second.phases == [("cold start", 3)]
    assert second.path != first.path


def test_batches_depend_on_the_seed_and_the_place_of_the_stage_alone(base: Config, tmp_path: Path) -> None:
    def drawn(folder: str, seed: int) -> list[list[list[str]]]:
        run = RunConfig(dir=str(tmp_path / folder), seed=seed)
        config = msgspec.structs.replace(with_stages(base, *[stage(tmp_path, "a", "b", steps=6)] * 2), run=run)
        return [student.drawn for student in Made(config, tmp_path).run().students]

    one, again, other = drawn("one", 0), drawn("again", 0), drawn("other", 1)
    assert one == again
    assert one[0] != one[1], "the second stage does not repeat the order of the first"
    assert one[0] != other[0]
    # Every trace of a file comes once before one comes twice.
    names = [name for batch in one[0] for name in batch if name.startswith("a-")]
    assert len(set(names[:9])) == 9


def test_a_file_of_traces_is_read_once_for_all_stages_and_the_control(
    base: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_stages(base, stage(tmp_path, "a", "b"), stage(tmp_path, "b", "a", steps=5))
    apart = Controlled(config, tmp_path, wall_s=1.0, reports=durations(0.25)).student.drawn
    caplog.set_level(logging.INFO, logger="actors.sft")
    caplog.clear()

    async def main() -> list[Student]:
        async with School(config, tmp_path / "run") as school:
            model = StartingModel(config, school)
            for name in ("a", "b"):
                (tmp_path / f"{name}.jsonl").unlink()
            await model.make(emit=lambda event: None)
            await run_control(
                config,
                school,
                model.traces,
                model_path="",
                target=tmp_path / "control",
                wall_s=1.0,
                reports=durations(0.25),
                emit=lambda event: None,
            )
            return school.students

    *_, control = asyncio.run(main())
    told = [record.getMessage().partition(": ")[0] for record in caplog.records]
    assert told == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert control.drawn == apart, "the stages before leave no trace in the order"


def test_each_stage_has_its_own_limit_of_tokens(base: Config, tmp_path: Path) -> None:
    short = msgspec.structs.replace(stage(tmp_path, "a"), max_tokens=2)
    with pytest.raises(DataError, match=r"a\.jsonl: trace 0 has \d+ tokens, sft\.1\.max_tokens is 2"):
        Made(with_stages(base, stage(tmp_path, "a"), short), tmp_path).run()


def test_a_stage_ends_when_its_loss_is_low_enough(base: Config, tmp_path: Path) -> None:
    """The loss falls by one a step; the mean of steps n-19 to n is 100 - n + 9.5."""
    config = with_stages(base, stage(tmp_path, "a", steps=60, until_loss=75.0))
    made = Made(config, tmp_path, loss=lambda step: 100.0 - step).run()
    assert len(made.reports) == 35
    assert made.phases == [("cold start", 60)]
    assert len(Made(config, tmp_path).run().reports) == 35, "made earlier: told as it was"


def test_low_losses_are_not_believed_before_the_window_is_full(base: Config, tmp_path: Path) -> None:
    config = with_stages(base, stage(tmp_path, "a", steps=LOSS_WINDOW, until_loss=0.5))
    assert len(Made(config, tmp_path, loss=lambda step: 0.1).run().reports) == LOSS_WINDOW


def test_a_stage_that_does_not_learn_ends_the_run_and_leaves_no_model(base: Config, tmp_path: Path) -> None:
    config = with_stages(base, stage(tmp_path, "a"), stage(tmp_path, "b", steps=30, until_loss=0.5))
    made = Made(config, tmp_path)
    with pytest.raises(LearnerError) as caught:
        made.run()
    assert str(caught.value) == (
        "the cold start does not learn: a loss of 1.000 after 30 steps, not below 0.5 - at $.sft.1.until_loss"
    )
    folders = [path.name for path in (tmp_path / "runs" / "made").iterdir()]
    assert folders == [Path(made.students[1].model_path).name], "of the first stage, and of nothing else"
    # Told again with a limit that is reached, only the second stage is made.
    easier = with_stages(base, config.sft[0], msgspec.structs.replace(config.sft[1], until_loss=1.5))
    assert [len(student.batches) for student in Made(easier, tmp_path).run().students] == [20]


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "made" / "model"

    def make(content: str, *, divisor: int = 1) -> None:
        with whole_folder(target) as scratch:
            (scratch / content).touch()
            assert 1 // divisor

    with pytest.raises(ZeroDivisionError):
        make("half", divisor=0)
    assert list(target.parent.iterdir()) == []
    make("first")
    make("late")
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert [path.name for path in target.iterdir()] == ["first"], "who was faster is right"


def test_a_limit_that_no_step_can_reach_is_refused(base: Config, tmp_path: Path) -> None:
    config = with_stages(base, stage(tmp_path, "a"), stage(tmp_path, "b", steps=LOSS_WINDOW - 1, until_loss=0.5))
    with pytest.raises(ConfigError, match=r"until_loss is about 20 steps, there are 19 - at \$\.sft\.1\.until_loss"):
        Made(config, tmp_path).run()


def test_every_stage_finds_its_traces_in_the_world(base: Config, tmp_path: Path) -> None:
    world = ToolworldConfig(num_sft=2, num_train=1, num_valid=0, num_test=0, num_drills=2)
    stages = [msgspec.structs.replace(stage(tmp_path, "a"), traces=(f"world:{name}",)) for name in ("drills", "sft")]
    ready = materialise(msgspec.structs.replace(with_stages(base, *stages), world=world))
    assert [Path(path).name for found in ready.sft for path in found.traces] == ["drills.jsonl", "sft.jsonl"]
    assert all(Path(path).exists() for found in ready.sft for path in found.traces)
    with pytest.raises(ConfigError, match=r"'world:sft' needs a \[world\] section"):
        materialise(with_stages(base, stage(tmp_path, "a"), stages[1]))


# -- the control ------------------------------------------------------------------------------------------------------


def durations(*seconds: float) -> list[StepReport]:
    zeros = dict.fromkeys(
        ("loss", "grad_norm", "learning_rate", "entropy", "kl_rollout", "ratio_max", "clip_fraction"), 0.0
    )
    return [
        StepReport(step=step, version=step, num_trained_tokens=0, num_computed_tokens=0, duration_s=duration_s, **zeros)
        for step, duration_s in enumerate(seconds, start=1)
    ]


class Controlled:
    """A control of `wall_s` seconds behind a cold start."""

    def __init__(self, config: Config, folder: Path, *, wall_s: float, reports: Sequence[StepReport]) -> None:
        self.events: list[AnyEvent] = []
        self.target = folder / "run" / "control"
        self.target.parent.mkdir(exist_ok=True)

        async def main() -> None:
            async with School(config, folder / "run") as school:
                self.steps = await run_control(
                    config,
                    school,
                    TraceFiles(school),
                    model_path="where RL began",
                    target=self.target,
                    wall_s=wall_s,
                    reports=reports,
                    emit=self.events.append,
                )
                (self.student,) = school.students

        asyncio.run(main())


def test_a_control_takes_as_many_steps_as_fit_into_the_time_of_rl(base: Config, tmp_path: Path) -> None:
    """Half a second a step, whatever the first ones took; from the model RL began with."""
    control = Controlled(base, tmp_path, wall_s=30.0, reports=durations(9.0, 0.5, 0.5, 0.4, 0.6))
    assert control.steps == len(control.student.batches) == 60
    assert control.student.model_path == "where RL began"
    assert msgspec.json.decode((control.target / "made.json").read_bytes()) == ["where RL began", 60]
    (phase,) = (event for event in control.events if isinstance(event, PhaseStarted))
    assert (phase.name, phase.total) == ("control", 60)
    assert sum(isinstance(event, SupervisedStep) for event in control.events) == 60
    assert Controlled(base, tmp_path, wall_s=0.01, reports=durations(0.5)).steps == 1


def test_a_control_is_the_last_stage_with_its_schedule_stretched(base: Config, tmp_path: Path) -> None:
    schedule = CosineSchedule(total_steps=5, warmup_steps=2, min_ratio=0.1)
    last = stage(tmp_path, "b", steps=25, until_loss=2.0, lr=3e-3, schedule=schedule)
    config = with_stages(base, stage(tmp_path, "a", lr=1e-2), last)
    control = Controlled(config, tmp_path, wall_s=10.0, reports=durations(0.25))
    assert control.steps == len(control.student.batches) == 40, "it does not end with its loss"
    assert control.student.config == msgspec.structs.replace(
        last.learner, schedule=CosineSchedule(total_steps=40, warmup_steps=2, min_ratio=0.1)
    )
    assert {name[0] for batch in control.student.drawn for name in batch} == {"b"}
    constant = with_stages(base, stage(tmp_path, "b", schedule=ConstantSchedule(warmup_steps=2)))
    control = Controlled(constant, tmp_path, wall_s=10.0, reports=durations(0.25))
    assert control.student.config == constant.sft[0].learner


def test_a_control_draws_batches_of_its_own(base: Config, tmp_path: Path) -> None:
    config = with_stages(base, stage(tmp_path, "a", "b", steps=6))
    control = Controlled(config, tmp_path, wall_s=1.5, reports=durations(0.25))
    assert control.steps == 6
    assert control.student.drawn != Made(config, tmp_path).run().students[0].drawn


def test_a_control_that_is_trained_again_replaces_the_one_before(base: Config, tmp_path: Path) -> None:
    for wall_s, steps in ((2.0, 4), (3.0, 6)):
        control = Controlled(base, tmp_path, wall_s=wall_s, reports=durations(0.5))
        assert msgspec.json.decode((control.target / "made.json").read_bytes()) == ["where RL began", steps]
    assert [path.name for path in control.target.parent.iterdir()] == ["control"], "and leaves nothing else"


def test_a_control_needs_a_cold_start_to_go_on_with(base: Config) -> None:
    measured = msgspec.structs.replace(base, eval=EvalConfig(data=base.data, control=True))
    assert measured.eval is not None
    with pytest.raises(ConfigError, match=r"there is no \[\[sft\]\] - at \$\.eval\.control"):
        Config(model=base.model, data=base.data, eval=measured.eval)
