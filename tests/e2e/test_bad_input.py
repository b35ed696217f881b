"""What a user gets wrong is said at once, in one line that names the key and the fix."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_inputs import PHASE, SOON_S
from harness import BENCH, Place

from bench.cli import main
from bench.training import checkpoint
from bench.training.callbacks import validation_steps
from bench.training.metric_file import curve, read_metrics

GROUPS = "corpus/text=text_files", "corpus.text.split_by=document"
Run = tuple[int, str, str]


class Console:
    """The command line in this process, in a folder of its own."""

    def __init__(self, settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        self.settings, self.capsys = settings, capsys

    def __call__(self, *words: str) -> Run:
        self.capsys.readouterr()
        code = main(words)
        out, err = self.capsys.readouterr()
        return code, out, err

    def train(self, *words: str) -> Run:
        return self("train", *self.settings, *words)


@pytest.fixture
def console(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    monkeypatch.chdir(tmp_path)
    return Console(settings, capsys)


def complaint(run: Run) -> str:
    """The one line of a refusal."""
    code, out, err = run
    assert (code, out) == (2, "")
    err = err.removeprefix(PHASE)  # what only the data show is found while they are prepared
    assert err.startswith("bench: ")
    assert err.count("\n") == 1
    return err


REFUSED = {
    "strategy=foo": ("strategy=foo", "mlm, mntp, prefix_lm"),
    "task=[foo]": ("task=foo", "retrieval_fitted"),
    "task=null": ("task=null", "retrieval_fitted"),
    "model=huge": ("model=huge", "0.2m"),
    "experiment=quikstart": ("experiment=quikstart", "quickstart"),
    "corpus/text=books": ("corpus/text=books", "text_files"),
    "strateegy=clm": ("strateegy", "did you mean strategy?"),
    "strategy.mask_raet=0.1": ("strategy.mask_raet", "did you mean mask_rate?"),
    "optim.lr=1": ("optim.lr", "lr_peak"),
    "strategy.mask_rate=high": ("strategy.mask_rate='high'", "float"),
    "model.d_model=wide": ("model.d_model=wide", "Integer"),
    "seed=x": ("seed=x", "Integer"),
    "seed=-1": ("seed=-1", "use 0 or more"),
    "optim.lr_peak=nan": ("nan", "finite"),
    "seed=${foo}": ("seed", "foo"),
    "strategy=[clm,mlm]": ("strategy", "-m strategy=a,b"),
    "seed=0,1": ("several values", "add -m"),
    "seed= [": ("cannot read", "key=value"),
    "~seed": ("~seed", "every run needs this key"),
    "study=../elsewhere": ("study='../elsewhere'", "letters"),
    "model.n_heads=5": ("model.n_heads=5", "model.d_model=64"),
    "budget.tokens=null": ("budget.tokens", "budget.flops"),
    "budget.flops=1e9": ("budget.tokens", "budget.flops"),
    "budget.unique_bytes=9000000000": ("budget.unique_bytes=9000000000", "lower it"),
    "corpus.text.path=/nowhere": ("corpus.text.path=/nowhere", "correct the path"),
    "corpus/text=hf_text": ("corpus.text.path", "there is no such key"),
    "tokenizer.vocab_size=10": ("tokenizer.vocab_size=10", "260 or more"),
    "launcher.workers=-3": ("launcher.workers=-3", "0 or more"),
    "trainer.checkpoint_every_s=0": ("trainer.checkpoint_every_s=0", "above 0"),
    "trainer.log_every_n_steps=0": ("trainer.log_every_n_steps=0", "1 or more"),
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_setting_that_cannot_work_is_refused_with_its_key_and_the_fix(word: str, console: Console):
    line = complaint(console.train(word))
    for part in REFUSED[word]:
        assert part in line


def test_a_missing_value_is_asked_for(console: Console):
    assert "corpus.text.path has no value" in complaint(console("train", "corpus/text=text_files"))


def test_more_than_one_epoch_must_be_meant(console: Console):
    words = ("budget.repeat=false", "budget.tokens=800000", "strategy=clm")
    assert "budget.repeat=true" in complaint(console.train(*words))


def test_pairs_beyond_the_corpus_are_refused(console: Console):
    line = complaint(console.train("strategy=clip", "budget.unique_pairs=9000000"))
    assert "budget.unique_pairs=9000000" in line


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "no text"), (b"gr\xfc\xdfe\n\nund so", "not UTF-8 at byte 2")]
)
def test_a_file_that_is_no_text_is_named(content: bytes, problem: str, console: Console):
    Path("mine.txt").write_bytes(content)
    line = complaint(console.train(*GROUPS, "corpus.text.path=mine.txt"))
    assert problem in line
    assert "mine.txt" in line


def test_a_sweep_without_a_run_is_refused(console: Console):
    assert "no run" in complaint(console("train", "-m", *console.settings, "seed=range(0)"))


@pytest.mark.parametrize("command", ["report", "status"])
def test_an_unknown_study_is_named(command: str, console: Console):
    assert "study=nope" in complaint(console(command, "study=nope"))


def test_a_traceback_is_shown_on_demand(console: Console):
    code, _, err = console("train", "--traceback", "model.n_heads=5")
    assert code == 2
    assert "Traceback" in err


def test_flags_stand_anywhere(console: Console):
    for words in (["-m", "seed=0,1", "--cfg"], ["seed=0,1", "-m", "strategy=clm", "--cfg"]):
        code, out, err = console("train", *words)
        assert (code, err) == (0, "")
        assert out.count("seed: ") == 2


@pytest.mark.parametrize(
    "words",
    [["model.n_heads=5"], ["strategy=mlm", "strategy.mask_rate=0"], ["task.retrieval_fitted.steps=0"]],
)
def test_config_errors_never_import_torch_and_leave_no_file(
    words: list[str], settings: list[str], tmp_path: Path
):
    """One line within five seconds of computing, exit code 2, no record and no prepared data."""
    probe = (
        "import sys; from bench.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    before = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-c", f"{probe}; sys.exit(code)", "train", *settings, *words, "paths.data=data"],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=tmp_path,
    )
    assert os.times().children_user - before < SOON_S
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words[-1].split("=")[0] in done.stderr
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "strategy.mask_rate=1.5,0.3": "strategy.mask_rate=1.5: use 1 or less",
    "optim.tokens_per_step=16,1024": "optim.tokens_per_step=16: a step holds no row of sequence_length=32",
    "budget.tokens=1,8000": "budget.tokens=1: less than one step of optim.tokens_per_step=1024",
    "model.patch_size=7,8": "model.patch_size=7: it does not divide corpus.pairs.image_size=32",
    "task.bits_per_byte_exact.kind=sure": "task.bits_per_byte_exact.kind='sure': choose one of exact",
    "energy.metered=7": "energy.metered=7: use true or false",
    "task=[[a]]": "task=['a']: no such choice; choose one of",
    "study=${hydra:runtime.cwd}": "study",
    "corpus.pairs.image_size=true": "corpus.pairs.image_size=true: expected int, such as 32",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_in_one_run_refuses_the_sweep_before_data_are_prepared(word: str, console: Console):
    done = console("train", "-m", *console.settings, "strategy=mlm", word, "paths.data=prepared")
    assert MISTAKES[word] in complaint(done)
    assert not Path("prepared").exists()


@pytest.mark.product  # half a minute
def test_what_only_the_data_can_show_fails_the_run_with_its_reason(place: Place):
    words = ["optim.tokens_per_step=20480,1024", "budget.tokens=20480", "budget.unique_bytes=5000"]
    done = place.bench_here(*place.sweep("strategy=mlm", *words, "launcher.workers=1"))
    assert done.returncode == 1
    assert "1 failed, 1 finished of 2 runs" in done.stdout
    assert "one step takes 640; raise budget.unique_bytes" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_data_that_a_task_lacks_are_asked_for_before_anything_is_trained(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    settings = [word for word in place.settings if not word.startswith("task")]
    done = place.bench("train", *settings, "strategy=clm", "task=[chunking_conll2000]")
    assert done.returncode == 1
    missing = "task.chunking_conll2000: 'conll2000' is not in your NLTK data"
    assert f"{missing}; run `python -m nltk.downloader conll2000`" in done.stdout
    (run,) = place.folders().values()
    assert not (run / "metrics.jsonl").exists()


def test_a_damaged_record_is_named_by_report_and_status(study: Place, console: Console):
    shutil.copytree(study.folder / "experiments/first/records", "experiments/first/records")
    victim = min(Path("experiments/first/records").glob("*.json"))
    victim.write_text(victim.read_text()[:100])
    code, out, err = console("report", "study=first")
    page = Path("reports/first/report.html")
    told = out + err + (page.read_text() if page.exists() else "")
    assert code in (0, 2)
    assert victim.name in told
    assert "Traceback" not in told
    code, out, _ = console("status", "study=first")
    assert code == 0
    assert "1 damaged" in out


def test_a_folder_that_cannot_be_written_is_named(console: Console):
    line = complaint(console.train("paths.experiments=/proc/none", "launcher.workers=1"))
    assert "/proc/none" in line


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root and mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.faults
def test_a_full_disk_is_said_in_one_line(full_disk: Path, place: Place):
    done = place.bench(*place.sweep("strategy=clm", f"paths.experiments={full_disk}"))
    assert done.returncode in (1, 2)
    assert "No space left on device" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_metric_line_cut_by_a_kill_is_left_out(study: Place, tmp_path: Path):
    folder = study.folders("first")["clm"]
    shutil.copy(folder / "metrics.jsonl", tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train_lo')
    assert read_metrics(tmp_path) == read_metrics(folder)
    assert len(curve(tmp_path)) == len(validation_steps(8, 8))


def test_help_fits_a_terminal():
    for words in (["--help"], ["train", "--help"]):
        done = subprocess.run([*BENCH, *words], capture_output=True, text=True, check=True)
        assert "bench train -m" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no digest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage: str, tmp_path: Path):
    for name in ("step=000000008", "step=000000016"):
        content = name.encode() * 100
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        (tmp_path / f"{name}.sha256").write_text(hashlib.sha256(content).hexdigest())
    old, new = sorted(tmp_path.glob("*.ckpt"))
    assert checkpoint.latest(tmp_path) == new
    if damage == "truncated":
        os.truncate(new, 50)
    elif damage == "flipped":
        new.write_bytes(new.read_bytes().replace(b"step", b"stop", 1))
    else:
        new.with_suffix(".sha256").unlink()
    assert checkpoint.latest(tmp_path) == old
