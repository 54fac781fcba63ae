"""`write_report`: the folder of a run becomes `report.html`, one self-contained page."""

from pathlib import Path

from actors.config import Config
from actors.credit import credit
from actors.quantities import count, duration, percent
from actors.report.entropy_section import entropy_section
from actors.report.findings import what_was_taught
from actors.report.fold import read_record
from actors.report.forks_section import forks_section
from actors.report.learning_section import learning_section
from actors.report.loop_sections import calls_section, loop_section
from actors.report.page import Card, Page, render
from actors.report.partial import whole_trees
from actors.report.pieces import DecodeText
from actors.report.record import RunRecord
from actors.report.section import counted, number, share_spread
from actors.report.success import measured
from actors.report.time_section import time_section
from actors.report.tree_choice import choose
from actors.report.tree_layout import lay_out
from actors.report.tree_view import TreeView
from actors.run_dir import RunDir, write_whole
from engine import journal
from engine.config import to_json
from engine.rollout_config import RolloutConfig

REPORT = "report.html"


def write_report(run: RunDir, *, text: DecodeText) -> Path:
    """Write `report.html` into the folder of a run, whole or not at all, and return its path.

    The run may be finished, interrupted or hardly begun; what it has no data for is left out, or said in one line.
    `text` turns tokens into text, as the run's `Renderer.text`. Raises `JournalError` for a damaged journal and
    `ConfigError` for a configuration that is none.
    """
    events = journal.read(run.journal)
    record = read_record(events if journal.is_whole(run.journal) else whole_trees(events))
    config = run.config
    page = _page(run, record, config, text=text)
    target = run.path / REPORT
    write_whole(target, render(page).encode())
    return target


def _page(run: RunDir, record: RunRecord, config: Config | None, *, text: DecodeText) -> Page:
    rollout = RolloutConfig() if config is None else config.rollout
    probe_tokens = rollout.branching.probe_tokens
    tree = _tree(record, config, text=text, probe_tokens=probe_tokens)
    return Page(
        title=run.path.name,
        subtitle=_subtitle(run, record, config),
        cards=_cards(run, record),
        findings=what_was_taught(record, config, text=text),
        sections=[
            learning_section(record),
            entropy_section(record, probe_tokens=probe_tokens),
            calls_section(record),
            forks_section(record),
            loop_section(record),
            time_section(record, num_generators=1 if config is None else config.runtime.num_generators),
        ],
        tree=tree,
        tree_sentences=_tree_sentences(tree),
        probe_tokens=probe_tokens,
        config="" if config is None else to_json(config).decode(),
    )


def _subtitle(run: RunDir, record: RunRecord, config: Config | None) -> str:
    summary = run.summary
    status = summary.status if summary is not None else "finished" if record.is_finished else "unfinished"
    told = [status, counted(record.num_steps, "step")]
    if config is not None:
        rollout = config.rollout
        told += [
            f"{config.train.batch_size} prompts \N{MULTIPLICATION SIGN} {rollout.size} trajectories a step",
            f"branching {type(rollout.branching).__struct_config__.tag}",
            f"seed {config.run.seed}",
        ]
    if record.num_starts > 1:
        told.append(f"in {record.num_starts} processes")
    return " · ".join(told)


def _cards(run: RunDir, record: RunRecord) -> list[Card]:
    cards: list[Card] = []
    if record.evaluations:
        first, last = (measured(event.metrics) for event in (record.evaluations[0], record.evaluations[-1]))
        is_after = len(record.evaluations) > 1
        value = f"{percent(first.value)} → {percent(last.value)}" if is_after else percent(first.value)
        note = share_spread(last if is_after else first)
        cards.append(Card(name="greedy success", value=value, note=f"{note} at the end" if note and is_after else note))
    if record.control is not None:
        control = measured(record.control.metrics)
        cards.append(Card(name="control", value=percent(control.value), note=share_spread(control)))
    summary = run.summary
    wall_s = summary.wall_s if summary is not None else record.end_s
    cards.append(Card(name="steps", value=count(record.num_steps), note=f"{count(len(record.trees))} prompts finished"))
    cards.append(Card(name="wall time", value=duration(wall_s), note=f"{duration(_stepping(record))} optimising"))
    requested = sum(tree.group.num_tool_calls_requested for tree in record.trees)
    executed = sum(tree.group.num_tool_calls_executed for tree in record.trees)
    if requested:
        cards.append(Card(name="tool calls", value=count(executed), note=f"executed of {count(requested)} requested"))
    forks = sum(tree.group.num_forks for tree in record.trees)
    if forks:
        paths = sum(len(tree.group.trajectories) for tree in record.trees)
        cards.append(Card(name="forks", value=count(forks), note=f"of {count(paths)} trajectories"))
    return cards


def _stepping(record: RunRecord) -> float:
    return sum(row.step_s for row in record.rows)


def _tree(record: RunRecord, config: Config | None, *, text: DecodeText, probe_tokens: int) -> TreeView | None:
    chosen = choose(record.trees, num_steps=record.num_steps)
    if chosen is None:
        return None
    sample = None if config is None else credit(chosen.group, config)
    return lay_out(chosen, text=text, probe_tokens=probe_tokens, sample=sample)


def _tree_sentences(tree: TreeView | None) -> list[str]:
    if tree is None:
        return ["No tree was finished."]
    leaves = [leaf for root in tree.roots for leaf in root.all_leaves()]
    right = sum(leaf.is_correct for leaf in leaves)
    when = f"trained in step {tree.trained_in}" if tree.trained_in else "never trained"
    mean = sum(leaf.reward for leaf in leaves) / max(len(leaves), 1)
    return [
        f"Prompt {tree.prompt_id}, begun with the weights of step {tree.version} and {when}: "
        f"{counted(len(tree.roots), 'path')} from the prompt, {counted(tree.num_forks, 'branch', 'branches')}, "
        f"{right} of {len(leaves)} trajectories right, mean reward {number(mean)}."
    ]
