"""The flags of train.py: each refusal names the flag, and the default run has none.

pytest tests/test_flags.py
"""

import pytest

from model.config import parse_config
from model.flags import check_flags
from train import TrainConfig

F_DPO = "--objective f_dpo --divergence"


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--objective sft --lora_rank 0",
        "--objective reward --lora_dropout 0.1 --label_smoothing 0.1",
        f"{F_DPO} alpha --divergence_order 0.3",
        "--lora_rank 0 --reference cached --reference_cache runs/cache",
        "--init a/config.json --tokenizer b --lora_rank 0 --objective sft",
        "--plan --world_size 6 --replicas 3 --cpu_offload",
        "--activation_checkpointing --keep_every 2",
        "--resume --inexact_resume --out_dir runs/a",
    ],
)
def test_what_goes_together(flags):
    check_flags(parse_config(TrainConfig, flags.split()))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--objective none", "--objective expects one of sft, dpo, spl"),
        ("--lora_rank 0", "pass --reference cached"),
        ("--lora_dropout 0.1", "--lora_dropout must be 0 in preference training"),
        ("--label_smoothing 0.5", r"--label_smoothing expects a share in \[0, 0.5\)"),
        ("--objective sft --label_noise 0.1", "--label_noise has no meaning for --objective sft"),
        ("--reference_cache runs/cache", "--reference_cache needs --reference cached"),
        ("--objective sft --reference cached", "--reference has no meaning for --objective sft"),
        ("--objective sft --lora_rank 0 --lora_dropout 0.1", "no meaning with --lora_rank 0"),
        ("--seed 9223372036854775808", "--seed expects less than 2"),
        ("--objective ipo --label_smoothing 0.1", "--label_smoothing has no meaning for ipo"),
        ("--objective f_dpo", "--divergence expects one of forward_kl, jensen_shannon, alpha for"),
        ("--objective f_dpo --divergence js", "--divergence expects one of forward_kl"),
        ("--divergence alpha", "--divergence has no meaning for --objective spl; use f_dpo"),
        ("--divergence_order 0.3", "--divergence_order is for --divergence alpha, got None"),
        (f"{F_DPO} forward_kl --divergence_order 0.3", "is for --divergence alpha, got 'forward_"),
        (f"{F_DPO} alpha --divergence_order 1", r"--divergence_order expects .* in \(0, 1\)"),
        (f"{F_DPO} alpha --alpha 0.3", "--alpha has no meaning .* --divergence_order"),
        (f"{F_DPO} alpha --label_smoothing 0.1", "--label_smoothing has no meaning for f_dpo"),
        ("--objective reward --sft_weight 0.1", "--sft_weight has no meaning for --objective rew"),
        ("--resume", "--resume expects the run folder"),
        ("--objective dpo --alpha 5", "--alpha has no meaning for --objective dpo, which has no w"),
        ("--data a --eval_data b --eval_fraction 0.1", "--eval_fraction .* beside --eval_data"),
        ("--eval_fraction 0.1", "--eval_fraction has no meaning without --data: the default has"),
        ("--max_length 1", "--max_length expects 2 or more"),
        ("--device cuda:x", "--device expects cpu, cuda or cuda:N, got 'cuda:x'"),
        ("--plan --world_size 2 --cpu_offload --device cpu", "no meaning with --device cpu"),
        ("--batch_size 0", "--batch_size expects 1 or more, got 0"),
        ("--objective h_dpo", "--objective h_dpo expects --alpha, .*: 1 is DPO"),
        ("--alpha 0", "--alpha expects a number above 0, got 0.0"),
        ("--beta -1", "--beta expects a number above 0, got -1.0"),
        ("--max_prompt_length 1024", "--max_prompt_length expects less than --max_length 1024"),
        ("--dtype int8", "--dtype expects one of float32, bfloat16, got 'int8'"),
        ("--schedule step", "--schedule expects one of constant, linear, cosine"),
        ("--max_steps 0", "--max_steps expects 1 or more"),
        ("--replicas 2", "--replicas needs more than one rank; start train.py with torchrun"),
        ("--cpu_offload", "--cpu_offload needs more than one rank"),
        ("--world_size 8", "--world_size is for --plan"),
        ("--plan --world_size 6 --replicas 4", "--replicas expects a divisor of 6 ranks, got 4"),
        ("--label_noise 1.5", r"--label_noise expects a share in \[0, 1\)"),
        ("--init a/config.json --adapter b", "--adapter has no meaning beside --init"),
        ("--init a/config.json --model b", "--model has no meaning beside --init"),
        ("--objective sft --alpha 9", "--alpha has no meaning for --objective sft"),
        ("--lora_rank 0 --reference cached --lora_alpha 5", "--lora_alpha has no meaning with"),
        ("--keep_every 2", "--keep_every has no meaning without --activation_checkpointing"),
        ("--lora_targets q_proj nonsense", "--lora_targets expects some of q_proj k_proj"),
        ("--lora_rank 1000000000", "--lora_rank expects 32768 or less"),
        ("--warmup_steps 99999999999", "--warmup_steps expects a number below 2"),
        ("--device abacus", "--device expects cpu, cuda or cuda:N"),
        ("--max_length 200 --max_prompt_length 200", "less than --max_length 200"),
        ("--data a --eval_fraction 0 --eval_every 5", "--eval_every has no .* --eval_fraction 0"),
        ("--objective reward --head_kernel torch", "--head_kernel has no meaning for --objective"),
        ("--seed 4294967296", "--seed expects less than 2"),
    ],
)
def test_what_a_flag_cannot_be_and_what_contradicts_another(flags, message):
    with pytest.raises(ValueError, match=message):
        check_flags(parse_config(TrainConfig, flags.split()))
