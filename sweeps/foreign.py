"""Names from Axolotl, Hugging Face, LLaMA-Factory, W&B, Ludwig and others, answered with the name used here."""

from __future__ import annotations

import re
from collections.abc import Iterable

HF, AXOLOTL, FACTORY, WANDB, LUDWIG, RAY, PEFT, TRL = (
    "Hugging Face",
    "Axolotl",
    "LLaMA-Factory",
    "W&B",
    "Ludwig",
    "Ray Tune",
    "PEFT",
    "TRL",
)

PIPELINE_NAMES: dict[str, tuple[str, str]] = {
    "model_name_or_path": (FACTORY, "base_model"),
    "model_name": (HF, "base_model"),
    "model_id": (HF, "base_model"),
    "model": (HF, "base_model"),
    "dataset": (FACTORY, "datasets.train"),
    "train_file": (HF, "datasets.train.path"),
    "val_set_size": (AXOLOTL, "datasets.tune.fraction"),
    "val_size": (FACTORY, "datasets.tune.fraction"),
    "test_datasets": (AXOLOTL, "datasets.tune"),
    "eval_dataset": (FACTORY, "datasets.tune"),
    "max_samples": (FACTORY, "datasets.train.limit"),
    "finetuning_type": (FACTORY, "adapter"),
    "lora_rank": (FACTORY, "lora_r"),
    "r": (PEFT, "lora_r"),
    "lora_target": (FACTORY, "lora_target_modules"),
    "target_modules": (PEFT, "lora_target_modules"),
    "lora_target_linear": (AXOLOTL, "lora_target_modules: all-linear"),
    "peft_use_rslora": (AXOLOTL, "use_rslora"),
    "per_device_train_batch_size": (HF, "micro_batch_size"),
    "train_batch_size": (HF, "micro_batch_size"),
    "batch_size": (LUDWIG, "micro_batch_size"),
    "per_device_eval_batch_size": (HF, "eval_batch_size"),
    "gradient_accumulation": (HF, "gradient_accumulation_steps"),
    "num_train_epochs": (HF, "num_epochs"),
    "epochs": (LUDWIG, "num_epochs"),
    "train_steps": (LUDWIG, "max_steps"),
    "lr": (HF, "learning_rate"),
    "lr_scheduler_type": (HF, "lr_scheduler"),
    "learning_rate_scheduler": (LUDWIG, "lr_scheduler"),
    "cutoff_len": (FACTORY, "sequence_len"),
    "max_seq_length": (HF, "sequence_len"),
    "max_length": (HF, "sequence_len"),
    "max_sequence_length": (LUDWIG, "sequence_len"),
    "model_max_length": (HF, "sequence_len"),
    "gradient_clipping": (LUDWIG, "max_grad_norm"),
    "clip_grad_norm": (HF, "max_grad_norm"),
    "adam_beta_1": (HF, "adam_beta1"),
    "bf16": (HF, "precision: bf16"),
    "fp32": (HF, "precision: fp32"),
    "fp16": (HF, "precision: fp16"),
    "packing": (HF, "sample_packing"),
    "pissa_init": (FACTORY, "peft_init_lora_weights: pissa"),
    "init_lora_weights": (PEFT, "peft_init_lora_weights"),
    "quantization_bit": (FACTORY, "load_in_4bit: true (or load_in_8bit)"),
    "dora": (FACTORY, "use_dora"),
    "peft_use_dora": (AXOLOTL, "use_dora"),
    "activation_checkpointing": (HF, "gradient_checkpointing"),
    "unfrozen_params": (AXOLOTL, "unfrozen_parameters"),
    "torch_dtype": (HF, "precision"),
    "optim": (HF, "optimizer"),
    "teacher_model": (TRL, "teacher"),
    "teacher_model_name_or_path": (TRL, "teacher"),
    "kd_temperature": (AXOLOTL, "loss.temperature"),
    "kd_alpha": (AXOLOTL, "loss.weight"),
    "kd_ce_alpha": (AXOLOTL, "hard_weight"),
    "num_hidden_layers": (HF, "keep_layers"),
    "fsdp": (HF, "parallel: fsdp"),
    "fsdp_version": (AXOLOTL, "parallel: fsdp"),
    "fsdp_config": (HF, "parallel: fsdp"),
    "ddp": (HF, "parallel: ddp"),
    "stage": (FACTORY, "type"),
    "rl": (AXOLOTL, "type"),
    "rl_beta": (AXOLOTL, "loss.beta"),
    "pref_beta": (FACTORY, "loss.beta"),
    "pref_loss": (FACTORY, "loss"),
    "loss_type": (HF, "loss.type"),
    "dpo_loss_type": (AXOLOTL, "loss.type"),
    "orpo_alpha": (AXOLOTL, "loss.beta"),
    "dpo_label_smoothing": (FACTORY, "loss.label_smoothing"),
    "label_smoothing": (HF, "loss.label_smoothing"),
    "kto_desirable_weight": (AXOLOTL, "loss.desirable_weight"),
    "kto_undesirable_weight": (AXOLOTL, "loss.undesirable_weight"),
    "desirable_weight": (HF, "loss.desirable_weight"),
    "undesirable_weight": (HF, "loss.undesirable_weight"),
    "kto_chosen_weight": (FACTORY, "loss.desirable_weight"),
    "kto_rejected_weight": (FACTORY, "loss.undesirable_weight"),
    "ref_model": (FACTORY, "reference"),
    "beta": (HF, "loss.beta"),
    "data_seed": (HF, "seed_data"),
    "field_instruction": (AXOLOTL, "field_prompt"),
    "field_input": (AXOLOTL, "field_prompt"),
    "field_output": (AXOLOTL, "field_completion"),
}
"""Foreign name -> (where it comes from, the key under `pipeline`)."""

SWEEP_NAMES: dict[str, tuple[str, str]] = {
    "run_cap": (WANDB, "budget.trials"),
    "num_samples": (RAY, "budget.trials"),
    "n_trials": ("Optuna", "budget.trials"),
    "max_trials": ("Determined", "budget.trials"),
    "time_budget_s": (RAY, "budget.hours"),
    "time_budget": (RAY, "budget.hours"),
    "output_dir": (HF, "storage"),
    "storage_path": (RAY, "storage"),
    "searcher": ("Determined", "method"),
    "search_alg": (RAY, "method"),
    "algorithm": ("Katib", "method"),
    "sampler": ("Optuna", "method"),
    "scheduler": (RAY, "early_terminate"),
    "pruner": ("Optuna", "early_terminate"),
    "goal": (LUDWIG, "metric.goal"),
    "objective": ("Katib", "metric"),
    "search_space": (RAY, "parameters"),
    "param_space": (RAY, "parameters"),
    "hyperparameters": ("Determined", "parameters"),
    "seed": (HF, "method.seed for the search, seeds.tune for training"),
    "resources_per_trial": (RAY, "resources"),
    "resources_per_worker": (AXOLOTL, "resources"),
    "gpu_resources_per_trial": (LUDWIG, "resources.gpus"),
    "cpu_resources_per_trial": (LUDWIG, "resources.cpus"),
    "num_processes": (HF, "resources.workers"),
    "nproc_per_node": (HF, "resources.workers"),
    "num_workers": (RAY, "resources.workers"),
    "world_size": (HF, "resources.workers"),
    "max_concurrent": (RAY, "max_concurrent_trials"),
    "parallelTrialCount": ("Katib", "max_concurrent_trials"),
    "max_restarts": ("Determined", "on_failure.max_restarts"),
    "max_failures": (RAY, "on_failure.max_restarts"),
    "save_total_limit": (HF, "keep.best"),
    "num_to_keep": (RAY, "keep.best"),
    "model_soup": (LUDWIG, "soup.method"),
    "model_soup_top_k": (LUDWIG, "soup.top"),
    "logging_steps": (HF, "report_every"),
    "grace_period": (RAY, "min"),
    "min_iter": (WANDB, "min"),
    "max_iter": (WANDB, "max"),
    "max_t": (RAY, "max"),
    "reduction_factor": (RAY, "eta"),
    "divisor": ("Determined", "eta"),
    "gpus_per_trial": (RAY, "gpus"),
    "num_gpus": (RAY, "gpus"),
    "num_cpus": (RAY, "cpus"),
    "top_k": (LUDWIG, "top"),
}
"""Foreign name -> (where it comes from, the key here)."""

NOT_HERE: dict[str, str] = {
    "simpo_gamma": "write the margin as a share of beta: loss.gamma_beta_ratio",
    "memo": "it is not supported yet; delete it",
    "priority": "it is not supported yet; delete it",
    "program": "W&B's command has no place here; `pipeline` says what a trial runs",
    "command": "W&B's command has no place here; `pipeline` says what a trial runs",
    "project": "sweeps are told apart by `name`; a tracker's is track: {type: wandb, project: ...}",
    "entity": "sweeps are told apart by `name`; a tracker's is track: {type: wandb, entity: ...}",
    **dict.fromkeys(("wandb_project", "use_wandb"), "write track: {type: wandb, project: ...} at the top of the file"),
    "wandb_entity": "write track: {type: wandb, entity: ...} at the top of the file",
    "wandb_mode": "write track: {type: wandb, mode: ...} at the top of the file",
    "wandb_run_id": "runs are told apart by trial and seed; delete it",
    "wandb_name": "runs are named by trial and seed; delete it",
    "use_mlflow": "write track: mlflow at the top of the file",
    "mlflow_tracking_uri": "write track: {type: mlflow, tracking_uri: ...} at the top of the file",
    "mlflow_experiment_name": "write track: {type: mlflow, experiment_name: ...} at the top of the file",
    "use_tensorboard": "write track: tensorboard at the top of the file",
    "report_to": "write track: tensorboard, mlflow or wandb at the top of the file",
    "logging_dir": "write track: {type: tensorboard, log_dir: ...} at the top of the file",
    "warmup_steps": "give warm-up as a share: warmup_ratio",
    "do_train": "nothing turns training off; delete it",
    "template": "the model's own chat template is used; delete it",
    "chat_template": "the model's own chat template is used; delete it",
    "eval_steps": "evaluation is at the rungs of early_terminate and at the end; delete it",
    "evals_per_epoch": "evaluation is at the rungs of early_terminate and at the end; delete it",
    "save_steps": "checkpoints are at the rungs of early_terminate and at the end, and every checkpoint_seconds; delete it",
    "saves_per_epoch": "checkpoints are at the rungs of early_terminate and at the end, and every checkpoint_seconds; delete it",
    "deepspeed": "it is not supported; write pipeline.parallel: fsdp, which spreads a model too",
    "probabilities": "values are drawn evenly; repeat a value to draw it more often",
    "mu": "normal distributions are not supported; give min and max",
    "sigma": "normal distributions are not supported; give min and max",
    "target": "a sweep does not stop at a target value; use budget",
    "strict": "W&B's hyperband settings are not used; asha takes min, max, eta and finalists",
    "s": "W&B's hyperband settings are not used; asha takes min, max, eta and finalists",
    "smaller_is_better": "write `goal: minimize` (only for metrics of your own)",
}
"""Foreign names without a counterpart, and what to do."""

DOMAIN_NAMES: dict[str, tuple[str, str]] = {
    "lower": (LUDWIG, "min"),
    "upper": (LUDWIG, "max"),
    "low": ("Optuna", "min"),
    "high": ("Optuna", "max"),
    "minval": ("Determined", "min"),
    "maxval": ("Determined", "max"),
    "minimum": (RAY, "min"),
    "maximum": (RAY, "max"),
    "categories": (LUDWIG, "values"),
    "choices": ("Optuna", "values"),
    "vals": ("Determined", "values"),
    "list": ("Katib", "values"),
    "grid_search": (RAY, "values"),
    "space": (LUDWIG, "distribution"),
    "step": ("Optuna", "q, with distribution: q_uniform"),
    "const": ("Determined", "value"),
    "val": ("Determined", "value"),
}
"""Foreign words of one parameter's domain -> (where from, ours)."""

DISTRIBUTIONS: dict[str, str] = {
    "log_uniform": "W&B's log_uniform takes exponents; write 'log_uniform_values' with the values themselves as min and max",
    "loguniform": "here it is 'log_uniform_values'",
    "log": "here it is 'log_uniform_values'",
    "qloguniform": "here it is 'q_log_uniform_values'",
    "q_log_uniform": "W&B's q_log_uniform takes exponents; write 'q_log_uniform_values' with the values themselves",
    "inv_log_uniform": "it is not supported; 'log_uniform_values' is the nearest",
    "inv_log_uniform_values": "it is not supported; 'log_uniform_values' is the nearest",
    "quniform": "here it is 'q_uniform'",
    "randint": "here it is 'int_uniform' (both ends belong to it)",
    "int": "here it is 'int_uniform'",
    "qrandint": "here it is 'q_uniform'",
    "lograndint": "here it is 'log_uniform_values'; whole numbers follow from the key",
    "choice": "here it is 'categorical', or just a list",
    "grid_search": "here it is 'categorical', or just a list",
    "normal": "normal distributions are not supported; use 'uniform' with min and max",
    "q_normal": "normal distributions are not supported; use 'q_uniform' with min and max",
    "log_normal": "normal distributions are not supported; use 'log_uniform_values' with min and max",
    "beta": "it is not supported; use 'uniform'",
}
"""Foreign distributions and what to write."""

VALUES: dict[str, dict[str, str]] = {
    "method": {
        "bayes": "W&B's bayes is 'gp' here, or 'tpe'",
        "bayesian": "bayesian search is 'tpe' here",
        "optuna": "Optuna's sampler is 'tpe' here",
        "variant_generator": "Ludwig's variant_generator is 'random' or 'grid' here",
        "adaptive_asha": "asha stands under early_terminate; 'random' is its search",
        "asha": "asha stands under early_terminate; 'random' or 'tpe' is the search",
    },
    "early_terminate": {
        "hyperband": "W&B's hyperband is 'asha' here (min_iter is min)",
        "async_hyperband": "Ray Tune's async_hyperband is 'asha' here",
        "successive_halving": "it is 'asha' here",
        "median": "the median rule is not here; 'asha' stops early as well",
        "envelope": "write 'none' or 'asha'",
    },
    "pipeline": {
        "lora": "write 'sft' with adapter: lora",
        "finetune": "Ludwig's finetune is 'sft' here",
        "llm": "Ludwig's llm is 'sft' here",
        **dict.fromkeys(("kto", "orpo", "simpo", "ipo"), "preference tuning is 'dpo' here, with this word as its loss"),
        "preference": "preference tuning is 'dpo' here",
        "rlhf": "preference tuning is 'dpo' here; there is no reinforcement learning",
        "kd": "it is 'distill' here",
        "gkd": "TRL's GKD on given answers is 'distill' here, with loss: {type: jsd}",
        "distillation": "it is 'distill' here",
    },
    "track": {
        **dict.fromkeys(
            ("comet", "neptune", "clearml", "aim", "trackio"),
            "it is not supported; write 'wandb', 'mlflow' or 'tensorboard'",
        ),
        **dict.fromkeys(("tb", "tensorboardx", "tensorboardX"), "it is 'tensorboard' here"),
        **dict.fromkeys(("wb", "weights_and_biases"), "it is 'wandb' here"),
    },
    "evaluate": {
        "ppl": "here it is 'perplexity'",
        "response_length": "'kl' reports it",
        "reward_accuracy": "'preference' reports it, in every dpo sweep",
        "eval_loss": "here it is 'loss'",
        "accuracy": "here it is 'exact_match'",
    },
    "hidden": {
        "cos": "it is 'cosine' here",
        "l2": "it is 'mse' here",
        "pkd": "it is 'cosine' here: distances of vectors of length 1",
        "mi": "it is 'mi_alpha' here",
        "infonce": "it is 'mi_alpha' with alpha: 1",
    },
    "layer_map": {"emd": "the earth mover's map is not supported; 'skip' is the nearest"},
    "adapter": {
        "qlora": "Axolotl's qlora is 'lora' with load_in_4bit: true here",
        "ptuning": "write 'prompt_tuning'",
        "oft": "it is not supported; write 'lora', 'lokr', 'loha', 'vera' or 'ia3'",
        "full": "LLaMA-Factory's full is 'none' here: no adapter, all weights",
        "freeze": "it is not supported; write 'lora' or 'none'",
    },
    "type": {
        "alpaca": "alpaca is not supported; give rows a prompt and a completion, and write 'prompt_completion'",
        "chat_template": "Axolotl's chat_template is 'chat' here",
        "sharegpt": "write 'chat', with rows of {role, content} messages",
        "completion": "Axolotl's completion is 'text' here",
    },
    "optimizer": {
        "adamw_torch": "here it is 'adamw'",
        "adamw_torch_fused": "here it is 'adamw'",
        "adamw_hf": "here it is 'adamw'",
        "adam": "write 'adamw' with weight_decay: 0",
        "adamw_bnb_8bit": "here it is 'adamw_8bit'",
        "paged_adamw_8bit": "its state is not paged here; write 'adamw_8bit'",
        "paged_adamw_32bit": "its state is not paged here; write 'adamw'",
        "adamw_schedule_free": "here it is 'schedule_free_adamw'",
    },
    "lora_target_modules": {"all": "LLaMA-Factory's all is 'all-linear' here"},
    "metric": {
        "eval_loss": "Hugging Face's eval_loss is 'loss' here",
        "eval/loss": "W&B's eval/loss is 'loss' here",
        "val_loss": "it is 'loss' here",
        "validation/loss": "it is 'loss' here",
        "accuracy": "it is 'exact_match' here",
    },
    "loss": {
        "ce": "soft labels are 'kl' here, the rows' own loss counts by hard_weight",
        "reverse_kl": "it is 'jsd' with beta: 1",
        "mse": "on logits it is not supported; 'kl' with a high temperature goes over into it",
        "dpo": "DPO's own loss is 'sigmoid' here",
        "sigmoid_norm": "TRL's sigmoid_norm is 'ln_dpo' here",
        "dpo_norm": "open-instruct's dpo_norm is 'ln_dpo' here",
        "kto_pair": "it is 'kto' here, which takes a pair as two answers",
        "cpo": "it is not supported; 'simpo' and 'orpo' need no reference either",
    },
    "goal": {
        "min": "write 'minimize'",
        "max": "write 'maximize'",
        "minimum": "write 'minimize'",
        "maximum": "write 'maximize'",
    },
}
"""Values of a section's `type` (or of a key) used elsewhere, and what to write here."""


def key_answer(word: str, inside_pipeline: bool, legal: Iterable[str] = ()) -> str | None:
    """What to write instead of a foreign key, or None when the word is not known.

    Args:
        word: the key in the file.
        inside_pipeline: whether it stands under `pipeline` or `parameters`.
        legal: keys that may stand there; under `pipeline`, an answer must begin with one of them.
    """
    tables = (PIPELINE_NAMES, SWEEP_NAMES) if inside_pipeline else (SWEEP_NAMES, PIPELINE_NAMES)
    for table in tables:
        if word in table:
            tool, ours = table[word]
            where = ""
            if table is PIPELINE_NAMES and inside_pipeline and re.split(r"[.:]", ours)[0] not in legal:
                continue
            if table is PIPELINE_NAMES and not inside_pipeline:
                where = " under pipeline"
            elif table is SWEEP_NAMES and inside_pipeline:
                where = ", outside pipeline and parameters"
            return f"{tool}'s {word} is `{ours}` here{where}"
    return NOT_HERE.get(word)


def domain_answer(word: str) -> str | None:
    """What to write instead of a foreign word of a parameter's domain, or None."""
    if word in DOMAIN_NAMES:
        tool, ours = DOMAIN_NAMES[word]
        return f"{tool}'s {word} is `{ours}` here"
    return NOT_HERE.get(word)
