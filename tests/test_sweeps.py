"""Sweeps through the real command: rows for all trials, searches that go on after a kill, trials that are pruned."""

import csv
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from command import Answer, Command
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from optuna.trial import TrialState
from PIL import Image

from deeplab_recipes import config
from deeplab_recipes.data.sources import DrawnScenes
from deeplab_recipes.reporting import Reporter
from deeplab_recipes.sweeping import StudySettings, read_trials, report, study, write_report
from deeplab_recipes.sweeping.pruning import falls_behind, open_trial
from deeplab_recipes.sweeping.report import Trial

SMALL = [
    "model.backbone=resnet18", "model.aspp_channels=8", "model.backbone_weights=none", "data.crop_size=[33,33]",
    "data.base_size=[48,48]", "data.evaluate_sizes={square:[33,33],keep_ratio:[48,48]}", "data.workers=0",
    "data.check_samples=0", "batch_size=2", "trainer.max_steps=2", "trainer.evaluate_every=0.5", "pictures=0",
    "trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.progress=false",
]  # fmt: skip
QUICKSTART = ["+recipe=quickstart", "data.source.training=4", "data.source.validation=1"]
SEARCH = [
    "sweep=optuna", "sweep.study_name=s", "sweep.sampler.n_startup_trials=2", "optimizer.lr=tag(log,interval(0.01,1))",
    "hydra.sweep.dir=sweep", "sweep.storage=s.journal",
]  # fmt: skip


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "scenes"
    DrawnScenes(root, training=4, validation=1, height=96, width=128, seed=17)
    return root


@pytest.fixture
def train(deeplab: Command, scenes: Path) -> Command:
    """Train quickstart on next to nothing."""

    def call(*arguments: str) -> Answer:
        return deeplab("train", *SMALL, *QUICKSTART, f"data.root={scenes}", *arguments)

    return call


def refused(answer: Answer, *words: str) -> None:
    assert answer.code != 0
    assert "Traceback" not in answer.err
    assert answer.err.count("error:") == 1, answer.err
    assert "status" not in answer.out  # no table
    for word in words:
        assert word in answer.err, answer.err


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_trial_has_a_row_though_some_fail(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda: ended.append(1)))
    answer = train("-m", "seed=1,2", "optimizer.lr=0.1,-1", "hydra.sweep.dir=sweep")
    assert answer.code == 1
    assert "Traceback" not in answer.err
    lines = answer.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("trial "))
    assert lines[start].split()[:3] == ["trial", "seed", "optimizer.lr"]
    assert [line.split()[:3] for line in lines[start + 1 : start + 5]] == [
        ["0", "1", "0.1"], ["1", "1", "-1"], ["2", "2", "0.1"], ["3", "2", "-1"],
    ]  # fmt: skip
    assert "mean over seeds 1, 2 (optimizer.lr=0.1):" in answer.out
    assert ended == [1] * 4  # else wandb would take the next trial for the same run
    assert "trial 1 failed: optimizer: Invalid learning rate: -1" in answer.out
    table = rows(tmp_path / "sweep" / "sweep.csv")
    assert [row["status"] for row in table] == ["finished", "failed", "finished", "failed"]
    for row in table[::2]:
        result = json.loads((Path(row["run_dir"]) / "result.json").read_text())
        assert float(row["miou_last"]) == result["evaluations"][0]["miou"]
        assert float(row["hours"]) == result["hours"]
    refused(train("-m", "seed=1,2", "hydra.sweep.dir=sweep"), "sweep/0 holds a trial", "hydra.sweep.dir=DIR")
    assert len(read_trials(tmp_path / "sweep")) == 4


def test_recipes_can_be_swept(deeplab: Command, scenes: Path, tmp_path: Path) -> None:
    recipes = ["+recipe=ade20k_composer,ade20k_typical", "trainer.max_steps=1", "trainer.sync_batchnorm=false"]
    answer = deeplab("train", "--multirun", *SMALL, f"data.root={scenes}", *recipes, "hydra.sweep.dir=sweep")
    assert answer.code == 0, answer.err
    table = rows(tmp_path / "sweep" / "sweep.csv")
    assert [(row["recipe"], row["status"]) for row in table] == [
        ("ade20k_composer", "finished"),
        ("ade20k_typical", "finished"),
    ]


def test_search_goes_on_and_repeats_what_was_killed(train: Command, tmp_path: Path) -> None:
    search = [*SEARCH, "optimizer=sgd,adamw", "sweep.pruner=null"]
    answer = train(*search, "sweep.n_trials=2")
    assert answer.code == 0, answer.err
    assert [t.status for t in read_trials(tmp_path / "sweep")] == ["finished", "finished"]
    killed = optuna.load_study(study_name="s", storage=study.open_storage("s.journal"))
    values = killed.ask(killed.trials[0].distributions).params
    assert train(*search, "sweep.n_trials=3").code == 0
    now = optuna.load_study(study_name="s", storage=study.open_storage("s.journal"))
    assert [t.state.name for t in now.trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert now.trials[3].params == values
    table = rows(tmp_path / "sweep" / "sweep.csv")
    assert [row["trial"] for row in table] == ["0", "1", "3"]
    assert float(table[2]["optimizer.lr"]) == values["optimizer.lr"]
    assert float(table[2]["miou_last"]) == now.trials[3].value
    refused(train(*search, "sweep.n_trials=3", "seed=5"), "'s' in s.journal asks something else", "seed=5 here")
    answer = train(*search, "sweep.n_trials=3")
    assert answer.code == 0  # nothing left to do
    assert "trial " not in answer.err


def test_stopped_search_keeps_what_had_finished(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two trials that were begun together the second is stopped before the study heard of the first."""
    step, begun = Reporter.on_train_batch_end, []

    def signal_in_the_second(self: Reporter, *arguments: object) -> None:
        step(self, *arguments)
        begun.append(1)
        if len(begun) == 3:  # trials have two steps
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Reporter, "on_train_batch_end", signal_in_the_second)
    together = [*SEARCH, "sweep.n_jobs=2", "sweep.n_trials=2"]
    answer = train(*together)
    assert answer.code == 75
    assert "stopped: SIGTERM after step 1; the same search again goes on" in answer.err
    assert [t.status for t in read_trials(tmp_path / "sweep")] == ["finished", "stopped"]
    assert train(*together).code == 0
    made = optuna.load_study(study_name="s", storage=study.open_storage("s.journal"))
    assert [t.state.name for t in made.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert made.trials[0].value == read_trials(tmp_path / "sweep")[0].last
    assert made.trials[2].params == made.trials[1].params


def test_heading_of_a_trial_names_only_what_was_swept(train: Command) -> None:
    answer = train("-m", "~logger", "seed=1,2", "hydra.sweep.dir=sweep")
    assert [line for line in answer.err.splitlines() if line.startswith("trial ")] == [
        "trial 0: seed=1",
        "trial 1: seed=2",
    ]


def study_with_good_trials(storage: str) -> optuna.Study:
    made = optuna.create_study(study_name="s", storage=study.open_storage(storage), direction="maximize")
    for _ in range(2):
        trial = made.ask({"optimizer.lr": optuna.distributions.FloatDistribution(0.01, 1)})
        for evaluation in (1, 2):
            trial.report(99.0, evaluation)
        made.tell(trial, 99.0)
    return made


def test_a_trial_that_falls_behind_is_stopped_and_says_so(train: Command, tmp_path: Path) -> None:
    """The study is reached through plain settings alone, as it is from another machine."""
    made = study_with_good_trials(str(tmp_path / "s.journal"))
    number = made.ask().number
    trial = (
        "trial={_target_:deeplab_recipes.sweeping.pruning.PruneTrial,storage:s.journal,study_name:s,"
        "pruner:{_target_:optuna.pruners.MedianPruner,n_startup_trials:1},number:%d}"
    )
    answer = train(trial % number, "run_dir=run")
    assert answer.code == 0, answer.err
    assert "pruned after step 1 of 2" in answer.out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "pruned"
    assert [e["step"] for e in result["evaluations"]] == [1, 1]
    assert made.trials[number].intermediate_values == {1: result["evaluations"][0]["miou"]}
    refused(train(trial % 7, "run_dir=other"), "no trial 7 of a study 's' in s.journal", "trial=null")


def test_search_notes_pruned_trials(train: Command, tmp_path: Path) -> None:
    assert train(*SEARCH, "sweep.n_trials=1").code == 0
    made = optuna.load_study(study_name="s", storage=study.open_storage("s.journal"))
    good = optuna.trial.create_trial(
        params=made.trials[0].params, distributions=made.trials[0].distributions, value=99.0,
        intermediate_values={1: 99.0, 2: 99.0},
    )  # fmt: skip
    made.add_trials([good, good])
    answer = train(*SEARCH, "sweep.n_trials=4", "sweep.pruner.n_startup_trials=1")
    assert answer.code == 0, answer.err
    assert made.trials[3].state == TrialState.PRUNED
    assert rows(tmp_path / "sweep" / "sweep.csv")[1]["status"] == "pruned"


def settings_of(storage: Path) -> StudySettings:
    def sampler(seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=2)

    return StudySettings("s", str(storage), sampler, n_trials=6)


def search(settings: StudySettings, count: int, *, kill: bool = False) -> list[float]:
    """Ask and tell as the sweeper does, until `count` trials are done; returns the values tried."""
    opened = study.open_study(settings, ["x"])
    study.repeat_killed(opened, [])
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    while study.count_done(opened) < count:
        trial = study.ask(opened, settings, space)
        value = -((trial.params["x"] - 0.3) ** 2)
        study.tell(opened, trial.number, Trial(trial.number, {}, "", "finished", value))
    if kill:
        study.ask(opened, settings, space)
    return [t.params["x"] for t in opened.trials if t.state == TrialState.COMPLETE]


def test_resumed_search_tries_what_one_without_a_break_tries(tmp_path: Path) -> None:
    whole = search(settings_of(tmp_path / "a.journal"), 6)
    assert len(set(whole)) == 6
    broken = settings_of(tmp_path / "b.journal")
    search(broken, 1, kill=True)
    search(broken, 4, kill=True)
    assert search(broken, 6) == whole


def test_failed_trials_count_as_done(tmp_path: Path) -> None:
    opened = study.open_study(settings_of(tmp_path / "a.journal"), ["x"])
    for outcome in (None, Trial(1, {}, "", "failed")):
        study.tell(opened, opened.ask().number, outcome)
    assert [t.state for t in opened.trials] == [TrialState.FAIL] * 2
    assert study.count_done(opened) == 2


def test_a_database_serves_as_storage(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    made = study_with_good_trials(address)
    trial = open_trial(address, "s", made.ask().number, optuna.pruners.MedianPruner(n_startup_trials=1))
    assert falls_behind(trial, 5.0, 1)
    assert not falls_behind(open_trial(address, "s", made.ask().number, None), 5.0, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=interval(0.1,2)", "FloatDistribution(high=2.0, log=False, low=0.1, step=None)"),
        ("a=tag(log,interval(0.01,1))", "FloatDistribution(high=1.0, log=True, low=0.01, step=None)"),
        ("a=int(interval(1,4))", "IntDistribution(high=4, log=False, low=1, step=1)"),
        ("a=range(8,33,8)", "IntDistribution(high=32, log=False, low=8, step=8)"),
        ("a=range(0.5,1.6,0.5)", "FloatDistribution(high=1.5, log=False, low=0.5, step=0.5)"),
        ("a=sgd,adamw", "CategoricalDistribution(choices=('sgd', 'adamw'))"),
        ("+a=choice([1,2],b)", "CategoricalDistribution(choices=('[1,2]', 'b'))"),
    ],
)
def test_search_space_is_hydras_sweep_syntax(text: str, expected: str) -> None:
    from hydra_plugins.deeplab_recipes_sweeps import search_space

    fixed, space = search_space(["b=1", text])
    assert fixed == ["b=1"]
    assert {key: str(value) for key, value in space.items()} == {text.partition("=")[0]: expected}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=1,2"], ("seed=1,2 names several values", "-m")),
        (["-m", "optimizer.lr=interval(0.1,1)"], ("is an interval", "add sweep=optuna")),
        (["-m", "seed=1,2", "optimzer.lr=1"], ("unknown setting optimzer.lr", "did you mean optimizer.lr")),
        (["-m", "loss=cross_entropy,dice"], ("no loss 'dice'", "cross_entropy_dice")),
        (["-m", "seed=1,2", "trainer.devices=2"], ("one device, this one would use 2", "trainer.devices=1")),
        (["sweep=optuna"], ("nothing to search", "interval(0.01,1)")),
        (["sweep=optuna", "optimizer.lr=tag(log,interval(0,1))"], ("interval(0,1)) cannot be searched", "low")),
        ([*SEARCH, "sweep.n_trials=0"], ("sweep.n_trials is 0", "at least 1")),
        ([*SEARCH, "+sweep.trials=3"], ("unknown setting sweep.trials", "did you mean n_trials")),
        ([*SEARCH, "sweep.storage=nowhere://x"], ("sweep.storage=nowhere://x cannot be opened", "sqlite:///FILE")),
        ([*SEARCH, "sweep.pruner._target_=optuna.pruners.Median"], ("optuna.pruners.Median", "does not exist")),
        (["trial=3"], ("trial is 3", "null")),
        (["launcher=slurm"], ("launcher=slurm finds no srun", "leave launcher out")),
    ],
)
def test_one_message(
    train: Command, tmp_path: Path, arguments: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    refused(train(*arguments), *words)
    assert not list(tmp_path.rglob("result.json"))


def test_plan_is_no_search(deeplab: Command) -> None:
    answer = deeplab("plan", "+recipe=quickstart", *SEARCH)
    refused(answer, "sweep=optuna searches trainings", "train")


def test_missing_packages_name_their_extras(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "optuna.samplers")
    refused(train(*SEARCH), "pip install 'deeplab-recipes[sweep]'")
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "submitit_slurm.yaml", raising=False)
    refused(train("launcher=slurm"), "pip install 'deeplab-recipes[slurm]'")


def test_slurm_launcher_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm is not installed")
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        hydra = compose("train", ["+recipe=quickstart", "launcher=slurm"], return_hydra_config=True).hydra
        assert hydra.launcher._target_.endswith("SlurmLauncher")
        assert (hydra.launcher.gpus_per_node, str(hydra.mode)) == (1, "RunMode.MULTIRUN")
        both = compose("train", ["sweep=optuna", "launcher=slurm"], return_hydra_config=True).hydra
        assert both.sweeper._target_.endswith("OptunaSweeper")
        with pytest.raises(HydraException):
            compose("train", ["launcher=slurm", "hydra.launcher.partitoin=gpu"])


def trial_of(number: int, last: float | None, status: str = "finished", **overrides: str) -> Trial:
    return Trial(number, overrides, f"runs/{number}", status, last, last, 0.01, "why" if status == "failed" else "")


def test_table() -> None:
    trials = [
        trial_of(0, 50.0, lr="0.01", seed="1", recipe="a"),
        trial_of(1, 54.0, lr="0.01", seed="2", recipe="a"),
        trial_of(2, 70.0, lr="0.123456789", seed="1", recipe="a"),
        trial_of(3, 20.0, "pruned", lr="0.5", seed="1", recipe="a"),
        trial_of(4, None, "failed", lr="9", seed="1", recipe="a"),
    ]
    lines = report.table(trials).splitlines()
    assert lines[0].split() == [
        "trial",
        "lr",
        "seed",
        "mIoU",
        "last",
        "mIoU",
        "best",
        "hours",
        "status",
        "run",
        "directory",
    ]
    assert lines[3].split()[:4] == ["2", "0.1235", "1", "70.00"]
    assert lines[5].split()[3:7] == ["-", "-", "0.010", "failed"]
    assert lines[6:] == [
        "mean over seeds 1, 2 (lr=0.01): 52.00 ± 2.83",
        "highest last mIoU: 70.00, trial 2 (lr=0.1235 seed=1)",
        "trial 4 failed: why",
    ]


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [("running", None, "unfinished"), ("stopped: SystemExit: 1", None, "stopped"), ("finished", "why", "failed")],
)
def test_status(tmp_path: Path, status: str, error: str | None, expected: str) -> None:
    note = {"number": 0, "overrides": ["+recipe=a", "trial.number=0"], "run_dir": str(tmp_path)}
    (tmp_path / "trial.json").write_text(json.dumps(note | ({"error": error} if error else {})))
    (tmp_path / "result.json").write_text(json.dumps({"status": status}))
    (trial,) = read_trials(tmp_path)
    assert (trial.status, dict(trial.overrides), trial.reason) == (expected, {"recipe": "a"}, error or "")


PICTURES = {
    "lr": [trial_of(i, 40.0 + i, lr=str(0.01 * 2**i)) for i in range(4)] + [trial_of(9, None, "failed", lr="3")],
    "seeds": [trial_of(i, 40.0 + i, seed=str(i)) for i in range(3)],
    "lr_and_seeds": [trial_of(i, 40.0 + i, lr=["0.1", "1"][i % 2], seed=str(i // 2)) for i in range(6)],
    "names": [trial_of(0, 4.0, "pruned", recipe="a"), trial_of(1, 5.0, recipe="b")],
    "many": [trial_of(i, 4.0 + i, a=str(i), b=str(i % 3)) for i in range(12)],
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture(name: str, tmp_path: Path) -> None:
    write_report(tmp_path, PICTURES[name])
    assert Image.open(tmp_path / "sweep.png").width > 500
    assert len(rows(tmp_path / "sweep.csv")) == len(PICTURES[name])


def test_no_picture_of_one_number(tmp_path: Path) -> None:
    write_report(tmp_path, [trial_of(0, 4.0, seed="1"), trial_of(1, 4.0, seed="2"), trial_of(2, None, "failed")])
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]
