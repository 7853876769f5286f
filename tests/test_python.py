"""Laws of `import positron_mini as pm`: it costs nothing, works in every order of imports, and does what the commands do."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import positron_mini as pm
from helpers.chats import LEARNED, taught_model, write_model
from helpers.models import lively_model, shape
from helpers.runs import TINY, digests, lines_of, positron, timeless, tiny_train
from positron_mini.config import SampleConfig
from positron_mini.errors import CheckpointError, DataError, RunError, UsageError
from positron_mini.generate import generate as write
from positron_mini.model import GPT
from positron_mini.text.chat_format import Message
from positron_mini.text.tokenizer import Tokenizer

OFFERED = """GPT Batch Generation LoopConfig Model ModelConfig Optimizer PositronError RunState SampleConfig Schedule StepReport StopFlag
TrainConfig Trainer __version__ build_optimizer chat generate load runs train""".split()  # noqa: SIM905
TEXTS = ("config", "dataset_path", "tokenizer_path", "milestones", "compile")
FLAGS = {flag.removeprefix("--"): value for flag, value in zip(TINY[::2], TINY[1::2], strict=True)}
SETTINGS = {name: value if name in TEXTS else json.loads(value) for name, value in FLAGS.items()} | {"threads": 1}


def python(code: str) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the package ------------------------------------------------------------------------------------------------------------------------


def test_what_is_offered_is_what_the_list_says() -> None:
    assert pm.__all__ == OFFERED
    assert set(OFFERED) <= set(dir(pm))
    for name in set(OFFERED) - {"__version__"}:
        offered = getattr(pm, name)
        home = inspect.unwrap(offered)  # of a module that can be called: the function
        assert callable(offered) and home.__name__ == name and home.__module__.startswith(f"positron_mini.{pm._HOMES[name]}")
        assert inspect.getdoc(home), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pm.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; import types; before = set(sys.modules); import positron_mini; print(*(set(sys.modules) - before))"
    assert python(code).split() == ["positron_mini"]


def test_listing_runs_needs_no_torch() -> None:
    assert python("import sys, positron_mini as pm; pm.runs(); pm.ModelConfig; print('torch' in sys.modules)") == "False\n"


def test_functions_and_modules_of_one_name_work_in_every_order_of_imports() -> None:
    ways = [
        "import positron_mini as pm; assert callable(pm.generate) and callable(pm.train) and callable(pm.chat)",
        "import positron_mini.generate, positron_mini.train, positron_mini.chat",
        "import positron_mini.generate as g; assert callable(g.stream)",
        "from positron_mini import generate as g, train as t, chat as c; assert callable(g.stream) and t.__path__ and c.__path__",
        "from positron_mini.generate import generate, stream; assert callable(generate)",
        "from positron_mini.train.session import Session; from positron_mini.chat.session import ChatSession",
        "from unittest import mock\nwith mock.patch('positron_mini.generate.stream', 5):\n"
        "    import positron_mini.generate as g; assert g.stream == 5",
        "from unittest import mock\nwith mock.patch('positron_mini.train.train', lambda config: config):\n"
        "    import positron_mini; assert positron_mini.train('mine') == 'mine'",
        "from positron_mini import *; assert generate is __import__('positron_mini').generate",
    ]
    code = f"""
import sys, torch
ways = {ways!r}
for order in [[way, *ways] for way in ways]:
    for name in [name for name in sys.modules if name.partition('.')[0] == 'positron_mini']:
        del sys.modules[name]
    for way in order:
        exec(way, {{}})
    import positron_mini as pm
    for name in ('generate', 'train', 'chat'):
        assert getattr(pm, name) is sys.modules['positron_mini.' + name], (name, order)
        try:
            getattr(pm, name)(no_such_setting=1)
        except (TypeError, pm.PositronError):
            continue
        raise AssertionError((name, order))
"""
    python(code)


def test_a_function_of_a_modules_name_shows_its_own_parameters() -> None:
    assert list(inspect.signature(pm.generate).parameters) == ["model", "prompt", "settings"]
    assert list(inspect.signature(pm.train).parameters) == ["config", "settings"]


# --- a model ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    return write_model(tmp_path_factory.mktemp("chat") / "taught", taught_model(tiny_tokenizer), tiny_tokenizer, is_chat=True)


@pytest.fixture
def base(tiny_tokenizer: Tokenizer, tmp_path: Path) -> pm.Model:
    return pm.load(write_model(tmp_path / "base", lively_model(shape()), tiny_tokenizer, is_chat=False))


def test_a_model_is_loaded_by_every_spelling_of_its_place(workshop: Path) -> None:
    step = "runs/base/step_000030"
    places = ["runs/base", Path("runs/base"), "runs/base/latest", "runs/base/latest.pt", step, "runs/base/step_30.pt", None]
    models = [pm.load(place) for place in places]
    assert {Path(model.name).resolve() for model in models} == {(workshop / "runs/base/step_000030").resolve()}
    first = models[0]
    assert isinstance(first.gpt, pm.GPT) and first.config == first.gpt.config and not first.is_chat and first.end_ids == {2}
    assert "GPT" not in repr(first) and first.name in repr(first)
    with pytest.raises(CheckpointError) as caught:
        pm.load("runs/other")
    assert "runs/base" in caught.value.hint and caught.value.__notes__ == [f"hint: {caught.value.hint}"]


def test_a_damaged_step_is_passed_over_with_a_warning(workshop: Path, caplog: pytest.LogCaptureFixture) -> None:
    (workshop / "runs/base/step_000030/config.json").write_text("{}")
    assert Path(pm.load("runs/base").name).name == "step_000025"
    assert "step_000030" in caplog.text


def test_texts_are_those_of_the_command(workshop: Path) -> None:
    model = pm.load("runs/base")
    written = pm.generate(model, "Once upon", max_tokens=12, seed=3, top_k=50, stop="zzz")
    command = ["generate", "--ckpt", "runs/base", "--prompt", "Once upon", "--max_tokens", "12", "--seed", "3", "--top_k", "50", "--json"]
    assert isinstance(written, pm.Generation) and written.text == json.loads(positron(*command).out)["text"]
    assert pm.generate(model, [1, *model.tokenizer.encode("Once upon")], max_tokens=12, seed=3, top_k=50).text == written.text


def test_a_model_that_changed_since_it_was_loaded_is_the_one_that_writes(base: pm.Model) -> None:
    first = pm.generate(base, "Once", max_tokens=20, temperature=0.0).token_ids
    with torch.no_grad():
        base.gpt.model.embed_tokens.weight.mul_(-1.0)
    second = pm.generate(base, "Once", max_tokens=20, temperature=0.0).token_ids
    assert second != first and second == write(base.gpt, base.tokenizer, "Once", SampleConfig(max_tokens=20, temperature=0.0))[0].token_ids


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temprature": 1.0}, "no setting 'temprature'"),
        ({"temperature": "hot"}, "temperature cannot be 'hot', it takes float"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"max_tokens": 2.5}, "max_tokens cannot be 2.5, it takes int"),
        ({"stop": 5}, "stop cannot be 5"),
        ({"stop": ["a", 5]}, "stop cannot be"),
        ({"seed": True}, "seed cannot be True"),
    ],
)
def test_what_is_no_setting_is_refused_by_name(base: pm.Model, settings: dict[str, typing.Any], words: str) -> None:
    for act in (pm.generate, pm.chat):
        with pytest.raises(UsageError) as caught:
            act(base, "Once", **settings)
        assert words in caught.value.message


def test_a_chat_model_answers_a_question_and_a_conversation(chat_folder: Path) -> None:
    model = pm.load(chat_folder)
    assert model.is_chat
    for question, answer in LEARNED.items():
        assert pm.chat(model, question).text == answer
        assert pm.chat(model, [{"role": "user", "content": question}]).text == pm.chat(model, [Message("user", question)]).text == answer
    turns = [("user", "Who are you?"), ("assistant", "I am a cat."), ("user", "Why?")]
    again = [{"role": role, "content": content} for role, content in turns]
    asked = pm.chat(model, again, max_tokens=1_000)
    assert len(asked.prompt_token_ids) + len(asked.token_ids) <= model.context_len


def test_what_cannot_be_answered_is_refused(chat_folder: Path, base: pm.Model) -> None:
    with pytest.raises(UsageError, match="is a base model"):
        pm.chat(base, "Hello")
    model = pm.load(chat_folder)
    with pytest.raises(UsageError, match="the context 128"):
        pm.chat(model, "again and " * 200)
    with pytest.raises(UsageError, match="role and content"):
        pm.chat(model, [{"text": "Hello"}])
    with pytest.raises(DataError, match="role 'robot'"):
        pm.chat(model, [{"role": "robot", "content": "Hello"}])


def test_a_model_of_ones_own_writes_itself(tiny_tokenizer: Tokenizer) -> None:
    class Mine(pm.GPT):
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return -super().logits(hidden)

    gpt = Mine(shape())
    gpt.load_state_dict(lively_model(shape()).state_dict())
    plain = pm.generate(pm.Model("plain", lively_model(shape()), tiny_tokenizer), "Once", temperature=0.0, max_tokens=20)
    mine = pm.generate(pm.Model("mine", gpt, tiny_tokenizer), "Once", temperature=0.0, max_tokens=20)
    assert mine.token_ids != plain.token_ids


# --- training ---------------------------------------------------------------------------------------------------------------------------


def test_training_makes_the_run_that_the_command_makes(workshop: Path) -> None:
    reports = list(pm.train(**SETTINGS, max_steps=10, out_dir=Path("python/run")))
    assert [report.step for report in reports] == list(range(1, 11)) and all(isinstance(report, pm.StepReport) for report in reports)
    assert tiny_train("command/run", "--max_steps", "10").code == 0
    for step in ("step_000000", "step_000005", "step_000010"):
        assert digests(Path("python/run", step)) == digests(Path("command/run", step))
    assert timeless(Path("python/run")) == timeless(Path("command/run"))
    record = json.loads(Path("python/run/run.json").read_text())
    assert record["command"].startswith("positron train --config PicoGPT --dataset_path text.txt")
    assert {**record["config"], "out_dir": ""} == {**json.loads(Path("command/run/run.json").read_text())["config"], "out_dir": ""}


def stepping(**settings: typing.Any) -> Iterator[pm.StepReport]:
    return pm.train(**{**SETTINGS, "out_dir": "runs/python", "max_steps": 10, **settings})


def test_a_run_that_is_left_goes_on_to_the_same_end(workshop: Path) -> None:
    assert tiny_train("runs/whole", "--max_steps", "10").code == 0
    for report in stepping(save_every=100):
        if report.step == 3:
            break  # the generator is closed as nothing holds it any more
    reports = stepping(save_every=100)
    assert next(reports).step == 4
    reports.close()  # type: ignore[attr-defined]
    assert [report.step for report in stepping(save_every=100)] == [5, 6, 7, 8, 9, 10]
    assert [row["step"] for row in lines_of(Path("runs/python/metrics.jsonl"))] == list(range(1, 11))
    for name in ("model.safetensors", "training/state.safetensors"):
        assert Path("runs/python/step_000010", name).read_bytes() == Path("runs/whole/step_000010", name).read_bytes()
    assert not list(stepping())  # a finished run has no steps left


def test_ctrl_c_within_a_step_saves_the_last_finished_one(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = stepping(save_every=100)
    next(reports), next(reports)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.nn.utils.get_total_norm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(reports)
    monkeypatch.undo()
    assert Path("runs/python/latest").resolve().name == "step_000002"
    assert next(stepping(save_every=100)).step == 3


def test_only_the_settings_that_are_given_must_fit_the_run(workshop: Path) -> None:
    before = pm.runs()[0]
    assert next(iter(pm.train(out_dir="runs/base", dataset_path="text.txt", more_steps=2)), None) is None and before.is_finished
    with pytest.raises(RunError):
        pm.train(out_dir="runs/base", lr=1e-3, dataset_path="text.txt")


def test_what_cannot_be_trained_is_refused_before_anything_is_made(workshop: Path) -> None:
    for settings, words in (
        ({"max_stpes": 5}, "no setting 'max_stpes'"),
        ({"max_steps": "5"}, "max_steps cannot be '5'"),
        ({"optimizer": "sgd"}, "optimizer cannot be 'sgd'"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"nproc": 2}, "only this one process"),
    ):
        with pytest.raises(UsageError, match=words):
            stepping(**settings)
    assert not Path("runs/python").exists()


# --- runs and experiments ---------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_as_the_lab_lists_them(workshop: Path) -> None:
    (workshop / "runs/broken").mkdir()
    (workshop / "runs/broken/run.json").write_text("{")
    first, last = pm.runs()
    assert isinstance(first, pm.RunState) and first.path == Path("runs/base") and first.is_finished and first.record is not None
    assert last.path == Path("runs/broken") and last.damaged and last.record is None
    assert pm.runs("nowhere") == [] and [run.path for run in pm.runs(Path("runs"))] == [first.path, last.path]


def test_an_experiment_of_ones_own_needs_nothing_else(tiny_tokenizer: Tokenizer) -> None:
    """A model, an optimizer and data of one's own in the one loop: the batch is learned by heart."""

    class Mine(pm.GPT):
        pass

    class Descent:
        def __init__(self, model: GPT) -> None:
            self.parameters = list(model.parameters())

        @torch.no_grad()
        def step(self, multiplier: float, step: int) -> None:
            for parameter in self.parameters:
                parameter.sub_(0.5 * multiplier * parameter.grad)

        def state(self) -> dict[str, torch.Tensor]:
            return {}

        def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
            pass

    class OneText:
        def batch(self, step: int) -> pm.Batch:
            ids = torch.tensor([tiny_tokenizer.encode("the cat and the dog and the cat and the dog")])
            return pm.Batch(ids[:, :-1], ids[:, 1:])

    model = Mine(shape()).init_weights(0)
    schedule = pm.Schedule(warmup_steps=0, cooldown_steps=0, horizon=40)
    loop = pm.LoopConfig(lr=0.5, schedule=schedule, micro_batch=1, grad_clip=1.0, dropout=0.0, seed=0, device="cpu", precision="fp32")
    for optimizer in (Descent(model), pm.build_optimizer(model, "adamw", lr=1e-2, muon_lr=None, weight_decay=0.0)):
        losses = [report.loss for report in pm.Trainer(model, optimizer, OneText(), loop).run(None, pm.StopFlag())]
        assert len(losses) == 40 and losses[-1] < losses[0]
