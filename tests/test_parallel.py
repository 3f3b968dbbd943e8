"""The same run on 1, 2 and 4 ranks: gloo on this machine, FSDP2, one torchrun for many jobs.

pytest tests/test_parallel.py
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import peft
import pytest
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file
from torch.distributed.distributed_c10d import Backend, BackendConfig

from model import parallel
from model.adapter import load_policy
from model.logbook import read_records
from model.parallel import backends
from tests.conftest import ROOT
from tests.test_transformer import save_witness

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TINY = ROOT / "data" / "tiny"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
NOT_COMPARED = {"pairs_per_s", "tokens_per_s", "peak_memory_gb"}
STEPS = 20


def launch(ranks: int, jobs: list[list], folder: Path) -> subprocess.CompletedProcess:
    return work([*TORCHRUN, "--standalone", f"--nproc_per_node={ranks}"], jobs, folder)


def run_alone(jobs: list[list], folder: Path) -> subprocess.CompletedProcess:
    """One process, without torchrun."""
    return work([sys.executable], jobs, folder)


def work(command: list[str], jobs: list[list], folder: Path) -> subprocess.CompletedProcess:
    file = folder / "jobs.json"
    file.write_text(json.dumps([[str(word) for word in job] for job in jobs]))
    return subprocess.run(
        [*command, str(ROOT / "tests" / "ranks.py"), str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=500,
    )


def succeed(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """45 pairs and 7 held-out ones: with 6 pairs a step, the last step of an epoch has 3.

    Reward models take other pairs. Their gradient comes from the last tokens alone, and attention
    in the embedded model is sharp (scores of 200): of one pair in a hundred, such as the 25th,
    float32 knows that gradient to 1e-4 only, on one rank as on many.
    """
    folder = tmp_path_factory.mktemp("parallel")
    parts = (("train", "train", 0, 45), ("train", "reward", 138, 183), ("eval", "eval", 0, 7))
    for source, name, start, stop in parts:
        lines = (ROOT / "data" / "tiny" / f"{source}.jsonl").read_text().splitlines()[start:stop]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def flags(folder: Path, run: str, **changes) -> list:
    """A run of 20 steps in micro-batches of about two pairs."""
    values = {
        "data": folder / f"{'reward' if changes.get('objective') == 'reward' else 'train'}.jsonl",
        "eval_data": folder / "eval.jsonl",
        "out_dir": folder / run,
        "device": "cpu",
        "batch_size": 6,
        "micro_batch_tokens": 120,
        "max_steps": STEPS,
        "eval_every": 10,
        "save_every": 10,
        "sample_prompts": 1,
        "warmup_steps": 2,
        **changes,
    }
    return ["train", *(word for key, value in values.items() for word in (f"--{key}", value))]


LORA = {"learning_rate": 1e-3, "lora_rank": 3}
FULL = {
    "learning_rate": 1e-4,
    "lora_rank": 0,
    "reference": "cached",
    "objective": "h_dpo",
    "alpha": 0.9,
    "activation_checkpointing": True,
    "keep_every": 2,
}
REWARD = {"learning_rate": 1e-4, "lora_rank": 3, "objective": "reward"}
REWARD_FULL = {"learning_rate": 1e-5, "lora_rank": 0, "objective": "reward"}
RESUMED = {"lora": LORA, "full": FULL, "reward": REWARD}


def jobs(folder: Path, ranks: int) -> list[list]:
    """Everything that is compared, for one number of ranks."""
    more = {"replicas": 2} if ranks == 4 else {}
    prompts = [{"prompt": f"Tom has {i} apples. He buys 4 more."} for i in range(5)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    draw = ["sample", "--prompts", folder / "prompts.jsonl", "--n", 2, "--max_new_tokens", 30]
    score = ["arithmetic", "--limit", 3, "--n", 2, "--max_new_tokens", 30]
    shard = ["--shard"] if ranks > 1 else []
    return [
        flags(folder, f"lora-{ranks}", **LORA),
        flags(folder, f"full-{ranks}", **FULL, **more),
        flags(folder, f"reward-{ranks}", **REWARD, **more),
        flags(folder, f"reward-full-{ranks}", **REWARD_FULL),
        [*draw, "--out", folder / f"samples-{ranks}.jsonl"],
        [*draw, *shard, "--out", folder / f"sharded-{ranks}.jsonl"],
        [*score, *shard, "--out", folder / f"arithmetic-{ranks}"],
    ]


@pytest.fixture(scope="module")
def one(folder) -> Path:
    """The run of one process, without torchrun: what every other is compared with."""
    succeed(run_alone(jobs(folder, 1), folder))
    for run in RESUMED:  # what a resumed run starts from: the checkpoint of step 10
        half = folder / f"{run}-10"
        shutil.copytree(folder / f"{run}-1", half)
        shutil.rmtree(half / "checkpoints" / "step-000020")
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def many(request, one) -> tuple[Path, int]:
    ranks = request.param
    more = jobs(one, ranks)
    for run, options in RESUMED.items():
        resumed = one / f"{run}-resumed-{ranks}"
        shutil.copytree(one / f"{run}-10", resumed)
        more.append([*flags(one, resumed.name, **options), "--resume", "--inexact_resume"])
    more += [["check", "collectives"], ["check", "shards", TINY]]
    save_witness(one / "tied", {"tie_word_embeddings": True, "vocab_size": 97})
    more += [["check", "shards", one / "tied"], ["check", "lockstep", one / "tied"]]
    succeed(launch(ranks, more, one))
    return one, ranks


def assert_same_records(one: Path, other: Path) -> None:
    """The losses to 1e-5 relative; the rest, which may cancel to nearly nothing, to 1e-5 as well
    or to 1e-5 absolute."""
    ours, theirs = (read_records(run / "metrics.jsonl") for run in (one, other))
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] and len(ours) == STEPS + 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - NOT_COMPARED:
            small = 0 if name in ("loss", "eval/loss", "lr") else 1e-5
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=small), (a["step"], name)


@pytest.mark.parametrize("run", ["lora", "full", "reward", "reward-full"])
def test_every_number_is_that_of_one_process(many, run):
    """LoRA with the reference online; all weights with a cached one, in replicas on 4 ranks; a
    reward model, whose head of one row lies on one rank alone."""
    folder, ranks = many
    assert_same_records(folder / f"{run}-1", folder / f"{run}-{ranks}")


@pytest.mark.parametrize("run", RESUMED)
def test_a_checkpoint_of_one_process_goes_on_on_many_ranks(many, run):
    folder, ranks = many
    assert_same_records(folder / f"{run}-1", folder / f"{run}-resumed-{ranks}")


def test_a_checkpoint_of_many_ranks_goes_on_in_one_process(many):
    """One file for each shard, whatever the replicas; its rows come back in their order."""
    folder, ranks = many
    for run, options, shards in (("lora", LORA, ranks), ("full", FULL, 2)):
        again = folder / f"{run}-{ranks}-again"
        shutil.copytree(folder / f"{run}-{ranks}", again)
        shutil.rmtree(again / "checkpoints" / "step-000020")
        files = sorted(file.name for file in (again / "checkpoints" / "step-000010").iterdir())
        names = [f"shard-{i:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        assert files == ["manifest.json", *names, "state.json"]
        succeed(
            run_alone(
                [[*flags(folder, again.name, **options), "--resume", "--inexact_resume"]], folder
            )
        )
        assert_same_records(folder / f"{run}-1", again)


def test_what_is_saved_is_whole(many):
    """The adapter of many ranks is that of one, PEFT loads it, and all weights make one model."""
    folder, ranks = many
    ours, theirs = (load_file(folder / f"lora-{n}" / "adapter_model.safetensors")
                    for n in (1, ranks))  # fmt: skip
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        torch.testing.assert_close(theirs[name], values, rtol=1e-3, atol=2e-5)
    tokens = torch.arange(3, 40)[None]
    base = transformers.AutoModelForCausalLM.from_pretrained(TINY)
    tuned = peft.PeftModel.from_pretrained(base, folder / f"lora-{ranks}").eval()
    policy = load_policy(TINY, folder / f"lora-{ranks}", torch.float32, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(policy(tokens), tuned(tokens).logits, rtol=1e-4, atol=1e-4)
    ours, theirs = (load_file(folder / f"full-{n}" / "model" / "model.safetensors")
                    for n in (1, ranks))  # fmt: skip
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        torch.testing.assert_close(theirs[name], values, rtol=1e-3, atol=2e-5)


def test_a_reward_model_is_saved_whole(many):
    """The adapter with its head, and all weights, are those of one process."""
    folder, ranks = many
    for run in ("reward-{}/adapter_model.safetensors", "reward-full-{}/model/model.safetensors"):
        ours, theirs = (load_file(folder / run.format(n)) for n in (1, ranks))
        assert ours.keys() == theirs.keys() and sum("score" in name for name in ours) == 1
        for name, values in ours.items():
            torch.testing.assert_close(theirs[name], values, rtol=1e-3, atol=2e-5)


def test_samples_do_not_depend_on_the_ranks(many):
    """Shared questions, copied and sharded weights: the bytes of the files are the same."""
    folder, ranks = many
    alone = (folder / "samples-1.jsonl").read_bytes()
    assert len(alone.splitlines()) == 5
    assert (folder / f"samples-{ranks}.jsonl").read_bytes() == alone
    assert (folder / f"sharded-{ranks}.jsonl").read_bytes() == alone
    assert not list(folder.glob("*.rank-*"))
    one, other = (folder / f"arithmetic-{n}" / "items.jsonl" for n in (1, ranks))
    assert other.read_bytes() == one.read_bytes()


def test_bfloat16_trains_float32_parameters_in_shards(one):
    """The first loss, before any update, is that of one process but for bfloat16's rounding."""
    options = {**LORA, "dtype": "bfloat16", "max_steps": 2, "save_every": 0, "eval_every": 0}
    succeed(run_alone([flags(one, "half-1", **options)], one))
    succeed(launch(2, [flags(one, "half-2", **options)], one))
    ours, theirs = (read_records(one / f"half-{n}" / "metrics.jsonl") for n in (1, 2))
    for name in ("eval/loss", "eval/logps/chosen", "eval/entropy"):
        assert theirs[0][name] == pytest.approx(ours[0][name], rel=2e-2)
    state = load_file(one / "half-2" / "checkpoints" / "step-000002" /
                      "shard-00000-of-00002.safetensors")  # fmt: skip
    assert {values.dtype for values in state.values()} == {torch.float32}


def test_each_rank_loads_its_own_rows_alone(smollm2_dir, tmp_path):
    """538 MB in float32. Each of 4 ranks takes a quarter, and a quarter of the largest tensor, the
    embedding of 113 MB, while that is read: 0.30 of the whole."""
    succeed(launch(1, [["check", "loading", smollm2_dir, 1.10]], tmp_path))
    succeed(launch(4, [["check", "loading", smollm2_dir, 0.35]], tmp_path))


def test_one_rank_draws_before_all_else(tmp_path):
    """FSDP2 cannot write to the buffers of its first forward if that is in inference mode."""
    save_witness(tmp_path, {"vocab_size": 97})
    succeed(launch(1, [["check", "lockstep", tmp_path]], tmp_path))


def test_a_mistake_is_said_once(folder):
    jobs = [["train", "--out_dir", folder / "no", "--device", "cpu", "--replicas", "2"]]
    done = launch(3, jobs, folder)
    assert done.returncode and done.stderr.count("error: ") == 1, done.stderr
    assert "error: --replicas expects a divisor of 3 ranks, got 2" in done.stderr
    assert "error: --shard needs more than one rank" in run_alone([["sample", "--shard"]], folder
                                                                  ).stderr  # fmt: skip


def test_ctrl_c_saves_on_all_ranks(one):
    run = one / "interrupted"
    words = flags(one, run.name, **{**LORA, "max_steps": 100_000, "eval_every": 0})
    file = one / "jobs-interrupted.json"
    file.write_text(json.dumps([[str(word) for word in words]]))
    process = subprocess.Popen(
        [*TORCHRUN, "--standalone", "--nproc_per_node=2", str(ROOT / "tests" / "ranks.py"), file],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(read_records(run / "metrics.jsonl"))
             > 4, process)  # fmt: skip
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=100)
    last = read_records(run / "metrics.jsonl")[-1]["step"]
    assert f"stopped after step {last}; nothing is lost" in out
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{last:06d}" and len(list(newest.iterdir())) == 4


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.2)


@pytest.fixture
def namespaces():
    """Two network namespaces with a cable between them, at 10.77.0.1 and 10.77.0.2."""

    def ip(words: str) -> bool:
        return subprocess.run(["ip", *words.split()], capture_output=True).returncode == 0

    names = [f"preference-{os.getpid()}-{i}" for i in range(2)]
    if shutil.which("ip") is None or not ip(f"netns add {names[0]}"):
        pytest.skip("network namespaces need iproute2 and root")
    ip(f"netns add {names[1]}")
    ip(f"link add wire0 netns {names[0]} type veth peer name wire1 netns {names[1]}")
    for i, name in enumerate(names):
        ip(f"-n {name} addr add 10.77.0.{i + 1}/24 dev wire{i}")
        assert ip(f"-n {name} link set wire{i} up") and ip(f"-n {name} link set lo up")
    yield names
    for name in names:
        ip(f"netns del {name}")


def test_two_nodes_of_two_ranks(one, namespaces):
    """One agent in each namespace, sharded inside a node and replicated across."""
    words = flags(one, "nodes", **{**FULL, "replicas": 2})
    file = one / "jobs-nodes.json"
    file.write_text(json.dumps([[str(word) for word in words]]))
    nodes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *TORCHRUN, "--nnodes=2", f"--node_rank={i}",
             "--nproc_per_node=2", "--master_addr=10.77.0.1", "--master_port=29511",
             str(ROOT / "tests" / "ranks.py"), file],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": f"wire{i}"},
        )
        for i, name in enumerate(namespaces)
    ]  # fmt: skip
    for node in nodes:
        _, errors = node.communicate(timeout=300)
        assert node.returncode == 0, errors[-4000:]
    assert_same_records(one / "full-1", one / "nodes")


@pytest.mark.gpu
@pytest.mark.parametrize("options", [LORA, FULL], ids=["lora", "full"])
def test_one_rank_of_nccl_is_one_process(folder, options, tmp_path):
    for name, run in (("plain", run_alone), ("rank", lambda jobs, to: launch(1, jobs, to))):
        words = flags(folder, name, **{**options, "device": "cuda", "dtype": "float32"})
        words[words.index("--out_dir") + 1] = tmp_path / name
        succeed(run([words], tmp_path))
    assert_same_records(tmp_path / "plain", tmp_path / "rank")


def test_ranks_that_do_not_run_the_same_are_told_apart(folder, tmp_path):
    """The flags of the second differ, as where a command is typed once for each node."""
    words = [sys.executable, str(ROOT / "train.py"), *map(str, flags(folder, "mixed", **LORA)[1:])]
    words[words.index("--out_dir") + 1] = str(tmp_path / "mixed")
    each = f"exec {shlex.join(words)} --seed $RANK"
    start = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--no-python", "bash", "-c", each]
    done = subprocess.run(start, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "ranks 0 and 1 do not run the same: seed 0 and 1" in done.stderr, done.stderr[-3000:]
    assert not (tmp_path / "mixed" / "adapter_model.safetensors").exists()


def test_tensors_of_the_host_have_a_way_beside_those_of_a_gpu(monkeypatch):
    """Where torch is not told, a machine with a GPU gets NCCL alone, and no JSON is gathered."""
    assert backends() == "gloo"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = BackendConfig(Backend(backends())).get_device_backend_map()
    assert found == {"cpu": "gloo", "cuda": "nccl"}


# ------------------------------------------------------------------------------------------------
# what a rank knows of itself


def test_each_rank_takes_the_gpu_of_its_number_on_the_node(monkeypatch):
    """The fourth of 4 on its node, whatever its number among all; the fifth finds none."""
    assert parallel.device_of_rank("cuda:1") == "cuda:1"
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 11)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert parallel.device_of_rank("cuda") == "cuda:3" and parallel.device_of_rank("cpu") == "cpu"
    with pytest.raises(ValueError, match="a GPU of its own; pass --device cuda, not cuda:1"):
        parallel.device_of_rank("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="torchrun started 5 processes on a node with 4 GPUs"):
        parallel.device_of_rank("cuda")


def test_a_rank_that_differs_is_named_with_what_it_has(monkeypatch):
    """The third of three, with another seed and without a flag of the first."""
    settings = {"seed": 0, "beta": 0.1, "data": "a"}
    others = [settings, {"seed": 1, "data": "a"}]
    monkeypatch.setattr(parallel, "gather_json", lambda own: [own, *others])
    with pytest.raises(ValueError, match=r"ranks 0 and 2 .*: beta 0.1 and None; seed 0 and 1;"):
        parallel.same_on_all(settings)


@pytest.mark.parametrize("error, lost", [
    (dist.DistNetworkError("recvValue failed"), True),
    (dist.DistBackendError("NCCL communicator was aborted"), True),
    (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
    (RuntimeError("shapes do not fit"), False),
])  # fmt: skip
def test_a_rank_that_is_gone_is_told_from_an_error_of_ours(error, lost):
    assert parallel.lost_rank(error) == lost


def test_what_is_wrong_is_said_where_the_store_has_gone(monkeypatch):
    """With the rank that kept it: better twice than never."""

    class Gone:
        def add(self, key: str, amount: int) -> int:
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(parallel, "store", Gone())
    assert parallel.says_first("no room")


def test_a_note_is_the_first_rank_s(monkeypatch, capsys):
    parallel.note("once")
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    parallel.note("twice")
    assert capsys.readouterr().err == "once\n"


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_half_of_what_torchrun_sets_starts_no_ranks(monkeypatch, name):
    """Some containers set WORLD_SIZE for all that runs in them."""
    for other in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    parallel.init_distributed()
    assert not dist.is_initialized() and parallel.world_size() == 1


def test_how_often_torchrun_has_started_a_run_again(monkeypatch):
    for name in ("COUNT", "MAX"):
        monkeypatch.delenv(f"TORCHELASTIC_RESTART_{name}", raising=False)
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS", raising=False)
    assert (parallel.restarts(), parallel.may_restart()) == (0, False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert (parallel.restarts(), parallel.may_restart()) == (2, True)
