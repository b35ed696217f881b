"""A study on a GPU: every strategy to its end, in full and in bf16; a run that is cut goes on."""

import os
import signal

import pytest
import torch
from harness import Place, until

pytestmark = pytest.mark.gpu
GPU = ("trainer=gpu", "energy.metered=true")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_sweep_ends_with_all_tasks_done_and_says_where_it_ran(precision: str, place: Place):
    strategies = "strategy=clm,mlm,span_corruption,clip,scratch"
    done = place.bench(*place.sweep(*GPU, f"trainer.precision={precision}", strategies))
    assert done.returncode == 0, done.stdout + done.stderr
    for name, record in place.records().items():
        assert record.status == "finished"
        assert record.environment["device"] == torch.cuda.get_device_name()
        assert {result.status for result in place.results()[name].values()} <= {"finished", "inapplicable"}
        if name != "scratch":
            assert 0 < record.spent.peak_memory_bytes < torch.cuda.get_device_properties(0).total_memory
            assert record.spent.energy is not None
            assert "GPU by NVML" in record.spent.energy.method


def test_a_run_that_is_cut_goes_on_to_the_same_bits(place: Place, tmp_path_factory: pytest.TempPathFactory):
    words = (*GPU, "strategy=clm", "budget.tokens=1000000", "trainer.checkpoint_every_s=0.5")
    whole = Place(tmp_path_factory.mktemp("whole"), place.settings)
    assert whole.bench(*whole.sweep(*words)).returncode == 0
    launcher = place.start(*place.sweep(*words))
    until(lambda: place.state("clm").get("seconds_left") and place.checkpointed("clm"))
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    until(lambda: place.processes() == [])
    assert place.records() == {}
    assert place.bench(*place.sweep(*words)).returncode == 0
    one, other = ((p.folders()["clm"] / "weights.safetensors").read_bytes() for p in (whole, place))
    assert one == other


def test_no_process_of_a_contest_outlives_it(place: Place):
    words = ("strategies=[clm]", "models=[64x4]", "peers.clm=[gpt2]", "sequence_length=32", "vocab_size=300")
    few = ("rounds=1", "steps_per_round=1", "warmup_steps=1", "trainer.accelerator=gpu")
    done = place.bench("speed", *words, *few)
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: place.processes() == [])
