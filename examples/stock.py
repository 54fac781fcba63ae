"""A tool of your own and a task for it, with the standard library alone: what is left on a shelf?

    python examples/stock.py write stock     # questions, and traces of a careless clerk
    python examples/stock.py serve           # the tool, at http://127.0.0.1:8700

`docs/quickstart.md` trains on it.
"""

import json
import sys
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

ITEMS = (
    *("bolts", "nuts", "screws", "nails", "hinges", "hooks", "wires", "valves", "pipes", "gears", "belts", "lamps"),
    *("fuses", "pumps", "seals", "rods", "clips", "plugs", "cables", "filters", "springs", "chains", "tubes", "bulbs"),
)
AISLES = range(10, 40)
LEVELS = ("none", "few", "many")
CARELESS = 0.6
"""How often the clerk says `many` without having read."""
TRACES_A_SHELF = 6


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


def question(shelf: str) -> str:
    item, aisle = shelf.split()
    return f"How many {item} are left in aisle {aisle} ?"


def trace(shelf: str, rng: Random) -> dict[str, object]:
    """How the clerk answers: looks it up, and does not always read it."""
    found = level(shelf)
    said = "many" if rng.random() < CARELESS else found
    segments = [
        {"text": f"<think> look </think> <stock> {shelf} </stock>", "is_sampled": True},
        {"text": f" <result>\n{found}\n</result>", "is_sampled": False},
        {"text": f" <think> {said} </think> <answer> \\boxed{{ {said} }} </answer>", "is_sampled": True},
    ]
    return {"prompt": [{"role": "user", "content": question(shelf)}], "segments": segments}


def write(folder: Path) -> None:
    """`traces.jsonl`, `train.jsonl` and `test.jsonl`; no shelf is in two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(0)
    shelves = [f"{item} {aisle}" for item in ITEMS for aisle in AISLES]
    rng.shuffle(shelves)
    asked = [{"question": question(shelf), "answer": level(shelf)} for shelf in shelves]
    files = {
        "traces": [trace(shelf, rng) for shelf in shelves[:300] for _ in range(TRACES_A_SHELF)],
        "train": asked[300:600],
        "test": asked[600:],
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
