"""Declares two operators of torchvision before it is imported: its wheel is built for CUDA, and its extension, which
would declare them, does not load beside a CPU build of torch.

Only on the path of a CPU server (see `actors/sglang_server.py`); Python imports a module of this name at start-up, in
each of the server's processes.
"""

import sys
from importlib.abc import MetaPathFinder

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; acts when torchvision is first looked for."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            # Kept for as long as the process lives: the declarations go away with it.
            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(operator + SIGNATURE)


FINDER = _BeforeTorchvision()
sys.meta_path.insert(0, FINDER)
