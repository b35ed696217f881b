"""Several experiments are the union of their sweeps; no setting of a sweep is lost without a word."""

import pytest
from command_lines import many, one

import bench.cli
from bench.cli import main
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError

SMALL = ("model=0.2m", "budget=64kb")


def keys(specs: list[RunSpec]) -> list[tuple[str, str]]:
    return [(spec.study, spec.run_id) for spec in specs]


def test_several_experiments_are_the_union_of_their_sweeps_each_with_its_study():
    both = many("experiment=quickstart,aa", *SMALL, "seed=0,1")
    apart = [many(f"experiment={name}", *SMALL, "seed=0,1") for name in ("quickstart", "aa")]
    assert keys(both) == keys(apart[0]) + keys(apart[1])
    assert [len(runs) for runs in apart] == [8, 2]  # clm, mlm, clip, scratch; clm


def test_a_run_that_two_studies_share_is_in_both():
    both = many("experiment=quickstart,aa", *SMALL, "strategy=clm", "seed=0")
    assert len({spec.run_id for spec in both}) == 1
    assert [spec.study for spec in both] == ["quickstart", "aa"]
    assert [set(spec.config["task"]) for spec in both] == [
        {"library_probe", "retrieval_fitted", "retrieval_zero_shot"},
        {"library_probe", "retrieval_fitted"},
    ]


def test_the_ids_of_a_union_are_those_of_each_run_alone():
    for spec in many("experiment=quickstart,aa", *SMALL, "strategy=clm", "seed=1"):
        alone = one(f"experiment={spec.study}", *SMALL, "strategy=clm", "seed=1")
        assert (spec.run_id, spec.config) == (alone.run_id, alone.config)


def test_two_experiments_in_one_study_may_not_give_a_run_two_sets_of_tasks():
    with pytest.raises(ConfigError, match="task cannot be swept: it changes no weights"):
        many("experiment=quickstart,aa", *SMALL, "strategy=clm", "seed=0", "study=both")


def test_a_setting_that_changes_no_weights_cannot_be_swept_but_one_that_a_strategy_ignores_can():
    with pytest.raises(ConfigError, match="trainer cannot be swept"):
        many("strategy=clm,scratch", "trainer.compile=true,false")
    assert len(many("strategy=scratch", "optim.lr_peak=1e-3,2e-3", "trainer.n_validations=3,4")) == 1
    assert len(many("study=a,b")) == 2


@pytest.mark.parametrize(
    ("sweep", "found"),
    [
        ("budget=glob(*mb)", ["1mb", "4mb"]),
        ("budget=glob([*],exclude=64kb)", ["1mb", "4mb"]),
        ("budget=glob([1*,64*])", ["1mb", "64kb"]),
    ],
)
def test_a_glob_sweeps_the_choices_that_match(sweep: str, found: list[str]):
    assert [spec.budget for spec in many(sweep)] == found


def test_a_glob_without_a_match_holds_no_run():
    with pytest.raises(ConfigError, match="the sweep holds no run"):
        many("budget=glob(x*)")


def test_all_studies_are_checked_before_the_first_starts_and_each_is_launched_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done: list[tuple[str, list[str]]] = []

    def note(what: str) -> object:
        return lambda specs: done.append((what, sorted({spec.study for spec in specs}))) or {}

    monkeypatch.setattr(bench.cli, "check", note("check"))
    monkeypatch.setattr(bench.cli, "launch", note("launch"))
    assert main(["train", "-m", "experiment=quickstart,aa", *SMALL, "strategy=clm", "seed=0"]) == 0
    assert done == [
        ("check", ["quickstart"]),
        ("check", ["aa"]),
        ("launch", ["quickstart"]),
        ("launch", ["aa"]),
    ]
    capsys.readouterr()


def test_a_command_for_one_study_refuses_two(capsys: pytest.CaptureFixture[str]):
    assert main(["audit", "experiment=quickstart,aa", *SMALL, "seed=0"]) == 2
    assert "only one study is taken, not quickstart, aa" in capsys.readouterr().err
