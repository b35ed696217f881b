"""A Lightning logger for Trackio, which has none. Metrics of a step -> Trackio's local database."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from typing_extensions import override

from bench.config.run_spec import RunSpec


class TrackioLogger(Logger):
    """Log one run to a project of Trackio; a resumed run continues its log.

    Args:
        project: The project's name.
        spec: The run; its label and id are the name in Trackio.
    """

    def __init__(self, project: str, spec: RunSpec) -> None:
        super().__init__()
        self.project, self.spec = project, spec
        self._run: Any = None

    @property
    @override
    def name(self) -> str:
        return self.project

    @property
    @override
    def version(self) -> str:
        return self.spec.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Log the metrics of one optimizer step."""
        if self._run is None:
            self._run = self._start()
        self._run.log(dict(metrics), step=step)

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass  # given at the start

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run and write what is buffered; a later metric opens it again."""
        if self._run is not None:
            import trackio

            with contextlib.redirect_stdout(io.StringIO()):
                trackio.finish()
            self._run = None

    def _start(self) -> Any:
        import trackio  # takes a second, so only where it is used

        with contextlib.redirect_stdout(io.StringIO()):  # it prints instructions
            return trackio.init(
                self.project,
                name=f"{self.spec.label} {self.spec.run_id}",
                group=self.spec.study,
                config=self.spec.science,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
