"""RunView: what the page knows of a run, kept up to date from its journal.

journal -> tail -> folds (metrics, phases, spans, activity, tools, tree rows) -> changes since a revision -> page
             └── places of the events of each tree -> tree document, when somebody looks at one
"""

import threading
import time
from itertools import islice
from typing import Any

import msgspec

from actors.config import Config
from actors.report.partial import WholeTrees
from actors.run_dir import RunDir
from actors.view.run_fold import RunFold
from actors.view.tail import JournalTail, RewrittenError
from actors.view.texts import Texts, texts_of
from actors.view.tree_document import TreeDocument, tree_document
from engine.config import to_json
from engine.errors import ConfigError, JournalError
from engine.secrets import hidden

QUIET_S = 5.0
"""A journal that grew this little ago is being written."""


class RunView:
    """Of one run. `refresh` may run in another thread than `changes` and `document`."""

    def __init__(self, run: RunDir, *, texts: Texts | None = None) -> None:
        self.run = run
        self.config: Config | None = None
        self.config_note = ""
        """Why there is no configuration, where there is a file of one."""
        self.error = ""
        """Why what follows in the journal is not shown; empty while it can be read."""
        self._given_texts = texts
        self._texts: Texts | None = texts
        self._lock = threading.Lock()
        # No other process had the same, so the cursor of a page that was left open means nothing to this one.
        self._life = time.time_ns()
        self._revision = 0
        self._begin()

    @property
    def cursor(self) -> str:
        """Stands for all that is known now; an empty one for nothing."""
        return f"{self._life}.{self._revision}"

    @property
    def fold(self) -> RunFold:
        return self._fold

    @property
    def texts(self) -> Texts:
        """Read when first asked for: a run may be watched before its model is made."""
        if self._texts is None:
            self._texts = texts_of(self.run)
        return self._texts

    def refresh(self, *, max_events: int | None = None) -> int:
        """Read on in the journal; returns how many events were read, of which there may be more."""
        with self._lock:
            if self.error:
                return 0
            self._revision += 1
            num_events = 0
            try:
                for place, event in islice(self._tail.events(), max_events):
                    num_events += 1
                    if (whole := self._whole.of(event)) is not None:
                        self._fold.apply(whole, place, revision=self._revision)
            except RewrittenError:
                self._begin()
            except FileNotFoundError:
                pass  # moved to the archive this moment, where the next look finds it
            except JournalError as error:
                self.error = str(error)
            return num_events

    def refresh_all(self) -> None:
        """Read to the end. Raises `JournalError` where the journal is damaged."""
        while self.refresh(max_events=50_000):
            pass
        if self.error:
            raise JournalError(self.error)

    def changes(self, cursor: str = "") -> dict[str, Any]:
        """What is new behind a cursor, as plain data; everything where the cursor is of another life of the run."""
        with self._lock:
            life, _, revision = cursor.partition(".")
            since = int(revision) if life == str(self._life) and revision.isdecimal() else -1
            found: dict[str, Any] = {"cursor": self.cursor, "is_whole": since < 0, "run": self._header()}
            return found | self._fold.changes(since)

    def document(self, prompt_id: str) -> TreeDocument | None:
        """One tree; None for one that is not there. Raises `JournalError` for one whose events are gone."""
        with self._lock:
            places = self._fold.places_of(prompt_id)
        if not places:
            return None
        events: list[Any] = self._tail.read(places)
        return tree_document(events, config=self.config, texts=self.texts)

    def settings(self) -> Any:
        """The configuration as plain data, secrets hidden; None without one. One that this version of the program does
        not take is shown as the file has it."""
        if self.config is not None:
            return msgspec.json.decode(to_json(self.config))
        try:
            return hidden(msgspec.json.decode((self.run.path / "config.json").read_bytes()))
        except (OSError, msgspec.DecodeError):
            return None

    # -- inside -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Forget everything: the run was begun anew."""
        self._life += 1
        self._revision = 0
        self._fold = RunFold()
        self._tail = JournalTail(self.run.journal)
        # A journal may have lost its beginning, and that of a gateway names conversations whose trees it does not hold.
        self._whole = WholeTrees()
        self._is_partial = self._tail.first_segment > 1
        self._texts = self._given_texts
        self._read_config()

    def _read_config(self) -> None:
        try:
            self.config, self.config_note = self.run.config, ""
        except ConfigError as error:
            self.config, self.config_note = None, f"not a configuration of this version: {error}"

    def _header(self) -> dict[str, Any]:
        if self.config is None and not self.config_note:
            self._read_config()
        quiet_s = self._quiet_s()
        return {
            "name": self.run.path.name,
            "status": self._status(quiet_s),
            "quiet_s": quiet_s,
            "error": self.error,
            "config_note": self.config_note,
            "is_partial": self._is_partial,
            "read_bytes": self._tail.num_read_bytes,
            "num_bytes": self._tail.num_bytes,
            "limits": _limits(self.config),
            **self._fold.header(),
        }

    def _quiet_s(self) -> float | None:
        """Seconds since the journal last grew; None without one."""
        paths = [*self.run.journal.glob("*.log"), *self.run.journal.glob("archive/*.log")]
        written = [path.stat().st_mtime for path in paths if path.exists()]
        return max(time.time() - max(written), 0.0) if written else None

    def _status(self, quiet_s: float | None) -> str:
        """`summary.json` speaks for the last process that ended; a journal that grew since then is another one's."""
        if self._fold.is_finished:
            return "finished"
        summary = self.run.summary
        if summary is not None and quiet_s is not None:
            age_s = time.time() - (self.run.path / "summary.json").stat().st_mtime
            if age_s <= quiet_s + QUIET_S:
                return summary.status
        return "empty" if quiet_s is None else "running"


def _limits(config: Config | None) -> dict[str, Any]:
    """What the configuration bounds, and how it forks: lines and reasons that the page shows beside what happened."""
    if config is None:
        return {}
    rollout, gate = config.rollout, config.learner.gate
    return {
        "steps": config.train.steps,
        "max_staleness": config.train.max_staleness,
        "kl_limit": gate.kl_limit,
        "size": rollout.size,
        "batch_size": config.train.batch_size,
        "budget": msgspec.to_builtins(rollout.budget),
        "branching": msgspec.to_builtins(rollout.branching),
        "granting": msgspec.to_builtins(rollout.granting),
        "num_generators": config.runtime.num_generators,
    }


def load(run: RunDir) -> RunView:
    """All of a run as it stands. Raises `JournalError` where its journal is damaged."""
    view = RunView(run)
    view.refresh_all()
    return view
