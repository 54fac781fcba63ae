"""Publisher: the model of all ranks as Hugging Face folders, versions for generators and exports for people."""

import shutil
from pathlib import Path

from torch import nn

from engine.inference.shape import ModelShape
from engine.types import Version, WeightRef
from learner.config import LearnerConfig
from learner.network.model import DTYPES
from learner.parallel import Parallel
from learner.storage.hf_transfer import export_weights

KEPT = 2


class Publisher:
    """All ranks construct it, and call the same methods with the same arguments."""

    def __init__(
        self,
        module: nn.Module,
        *,
        source: Path,
        weights_dir: Path,
        shape: ModelShape,
        config: LearnerConfig,
        parallel: Parallel,
    ) -> None:
        """`source` is the folder that the model was read from; config.json and the tokenizer are copied from there."""
        self._module = module
        self._source = source
        self._weights_dir = weights_dir
        self._shape = shape
        self._config = config
        self._parallel = parallel

    def publish(self, version: Version) -> WeightRef:
        """Write `weights_dir/v000012`; the newest two versions stay, older ones are removed."""
        target = self._weights_dir / f"v{version:06d}"
        self._write(target, dtype=self._config.publish_dtype or self._config.dtype, is_published=True)
        if self._parallel.rank == 0:
            for old in sorted(self._weights_dir.glob("v[0-9]*"))[:-KEPT]:
                shutil.rmtree(old)
        self._parallel.barrier()
        return WeightRef(version=version, path=str(target.absolute()))

    def export(self, path: Path) -> None:
        """Write a complete Hugging Face folder, tokenizer included, in the learner's dtype."""
        self._write(path, dtype=self._config.dtype, is_published=False)

    def _write(self, target: Path, *, dtype: str, is_published: bool) -> None:
        export_weights(
            self._module,
            target,
            source=self._source,
            shape=self._shape,
            parallel=self._parallel,
            dtype=DTYPES[dtype],
            bucket_bytes=self._config.publish_bucket_mib * 2**20,
            with_tokenizer=not is_published,
            is_durable=not is_published,  # nobody needs a published version after a power cut
        )
