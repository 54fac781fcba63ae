"""A tool of your own and a task for it, with the standard library alone: what is left on a shelf?

    python examples/stock.py write stock     # questions, and traces of a clerk who is careless 4 times in 10
    python examples/stock.py serve           # the tool, at http://127.0.0.1:8700

`docs/quickstart.md` trains on it.
"""

import json
import sys
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

ITEMS = ("bolts", "nuts", "screws", "nails", "hinges", "hooks", "wires", "valves", "pipes", "gears", "belts", "lamps")
LEVELS = ("none", "few", "many")
CARELESS = 0.4


def level(shelf: str) -> str:
    """What is left there; `shelf` is an item and an aisle: `bolts 17`."""
    return LEVELS[zlib.crc32(shelf.encode()) % len(LEVELS)]


class Stock(BaseHTTPRequestHandler):
    """`POST /` with `{"shelf": "bolts 17"}` answers `{"level": "few"}`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"level": level(asked["shelf"])}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def questions(aisles: range) -> Iterator[tuple[str, str]]:
    """Each shelf of these aisles, and a question about it."""
    for aisle in aisles:
        for item in ITEMS:
            yield f"{item} {aisle}", f"How many {item} are left in aisle {aisle} ?"


def trace(shelf: str, question: str, rng: Random) -> dict[str, object]:
    """How the clerk answers: looks it up, and does not always say what is there."""
    found = level(shelf)
    said = rng.choice([other for other in LEVELS if other != found]) if rng.random() < CARELESS else found
    segments = [
        {"text": f"<think> look </think> <stock> {shelf} </stock>", "is_sampled": True},
        {"text": f" <result>\n{found}\n</result>", "is_sampled": False},
        {"text": f" <think> so </think> <answer> \\boxed{{ {said} }} </answer>", "is_sampled": True},
    ]
    return {"prompt": [{"role": "user", "content": question}], "segments": segments}


def write(folder: Path) -> None:
    """`train.jsonl` and `test.jsonl`, whose aisles are others, and `traces.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(0)
    files = {
        "traces": [trace(shelf, question, rng) for shelf, question in questions(range(10, 60))],
        "train": [{"question": question, "answer": level(shelf)} for shelf, question in questions(range(60, 90))],
        "test": [{"question": question, "answer": level(shelf)} for shelf, question in questions(range(90, 100))],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(arguments: list[str]) -> None:
    match arguments:
        case ["write", folder]:
            write(Path(folder))
        case ["serve", *port]:
            ThreadingHTTPServer(("127.0.0.1", int(port[0]) if port else 8700), Stock).serve_forever()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
