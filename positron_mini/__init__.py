"""Positron Mini: a small language model that you train yourself, from scratch, on the machine you have.

    import positron_mini as pm

    for report in pm.train(config="PicoGPT", dataset_path="my.txt", max_steps=500, out_dir="runs/mine"):
        print(report.step, report.loss)
    model = pm.load("runs/mine")
    print(pm.generate(model, "Once upon a time", seed=1).text)

What the package offers is imported when it is first asked for: `import positron_mini` alone needs no torch and no time.
"""

import sys
from types import ModuleType

__version__ = "0.1.0"

TYPE_CHECKING = False  # true for type checkers; importing it from `typing` would take longer than all the rest
if TYPE_CHECKING:
    from positron_mini.chat.model import Model, chat, generate, load
    from positron_mini.config import ModelConfig, SampleConfig, TrainConfig
    from positron_mini.errors import PositronError
    from positron_mini.generate import Generation
    from positron_mini.model import GPT
    from positron_mini.optim import Optimizer, Schedule, build_optimizer
    from positron_mini.store.choice import runs
    from positron_mini.store.run_logs import StepReport
    from positron_mini.store.run_state import RunState
    from positron_mini.train import train
    from positron_mini.trainer import Batch, LoopConfig, StopFlag, Trainer

__all__ = [
    "GPT",
    "Batch",
    "Generation",
    "LoopConfig",
    "Model",
    "ModelConfig",
    "Optimizer",
    "PositronError",
    "RunState",
    "SampleConfig",
    "Schedule",
    "StepReport",
    "StopFlag",
    "TrainConfig",
    "Trainer",
    "__version__",
    "build_optimizer",
    "chat",
    "generate",
    "load",
    "runs",
    "train",
]

_HOMES = {
    **dict.fromkeys(("Model", "chat", "generate", "load"), "chat.model"),
    **dict.fromkeys(("ModelConfig", "SampleConfig", "TrainConfig"), "config"),
    "PositronError": "errors",
    "Generation": "generate",
    "GPT": "model",
    **dict.fromkeys(("Optimizer", "Schedule", "build_optimizer"), "optim"),
    "runs": "store.choice",
    "StepReport": "store.run_logs",
    "RunState": "store.run_state",
    "train": "train",
    **dict.fromkeys(("Batch", "LoopConfig", "StopFlag", "Trainer"), "trainer"),
}
_BOTH = ("chat", "generate", "train")  # names of a module and of a function


def _import(name: str) -> ModuleType:
    """The module of that name below the package."""
    from importlib import import_module

    return import_module(f"{__name__}.{name}")


class _Callable(ModuleType):
    """A module that is also the function of its name: `positron_mini.generate` holds the samplers, `positron_mini.generate(...)` writes."""

    def __call__(self, *arguments: object, **settings: object) -> object:
        return self.__wrapped__(*arguments, **settings)

    @property
    def __wrapped__(self):  # type: ignore[no-untyped-def]  # inspect.signature follows this name
        name = self.__name__.rpartition(".")[2]
        return getattr(_import(_HOMES[name]), name)


class _Package(ModuleType):
    """This package, which imports what it offers when it is asked for.

    Importing a module sets the package's attribute of that name, whatever stood there before. So for a name in `_BOTH` the attribute is
    always the module, and the module can be called: `pm.generate` is the same object in whatever order things are imported.
    """

    def __getattr__(self, name: str) -> object:
        if name in _BOTH:
            return _import(name)
        if name in _HOMES:
            return getattr(_import(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        if name in _BOTH and type(value) is ModuleType:
            value.__class__ = _Callable
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
