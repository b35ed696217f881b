"""Lightning callbacks that observe a run and change nothing in it; chosen by `callbacks=[NAME]`.

A new one is one subclass of Lightning's `Callback` with a frozen dataclass `Options`, and one YAML file in
conf/callbacks/. Callbacks are no part of a run's id, so one that changes weights would corrupt results.
"""

from dataclasses import dataclass

from pytorch_lightning.callbacks import DeviceStatsMonitor, LearningRateMonitor


class DeviceStats(DeviceStatsMonitor):
    """Log the load of the processor and the memory, or of the GPU's memory."""

    @dataclass(frozen=True)
    class Options:
        """No option."""

    def __init__(self, options: Options) -> None:
        super().__init__()


class LearningRate(LearningRateMonitor):
    """Log the learning rate."""

    @dataclass(frozen=True)
    class Options:
        """No option."""

    def __init__(self, options: Options) -> None:
        super().__init__(logging_interval="step")
