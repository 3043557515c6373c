"""TRL: a step of GRPOTrainer, one update per rollout. Run by serve.py."""

import time
from pathlib import Path

import datasets
import torch
import transformers
import trl

ENDLESS = 1_000_000  # steps: the other side says when it is enough


def run(spec, say, wait):
    torch.set_num_threads(spec["threads"])
    weights = torch.bfloat16 if spec["dtype"] == "bfloat16" else torch.float32
    samples = len(spec["prompts"]) * spec["group"]
    config = trl.GRPOConfig(
        output_dir=str(Path(spec["folder"]) / "trl"),
        use_cpu=True,
        bf16=spec["dtype"] == "autocast",
        gradient_checkpointing=False,
        per_device_train_batch_size=samples,
        num_generations=spec["group"],
        max_completion_length=spec["new_tokens"],
        generation_kwargs={"min_new_tokens": spec["new_tokens"]},
        beta=spec["kl_coef"],
        learning_rate=spec["learning_rate"],
        shuffle_dataset=False,
        max_steps=ENDLESS,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    turns = Turns(say, wait, samples * spec["new_tokens"])
    trainer = trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=weights),
        reward_funcs=lowercase,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": spec["texts"]}),
        processing_class=transformers.AutoTokenizer.from_pretrained(spec["model"]),
        callbacks=[turns],
    )
    turns.time(trainer, "_generate", "sample")
    turns.time(trainer, "_prepare_inputs", "prepare")
    trainer.train()


def lowercase(completions, **rest):
    return [sum(letter.islower() for letter in text) / max(len(text), 1) for text in completions]


class Turns(transformers.TrainerCallback):
    """The first step warms up; each of the others waits for its turn."""

    def __init__(self, say, wait, tokens):
        self.say, self.wait, self.tokens = say, wait, tokens
        self.phases, self.step = {}, 0

    def time(self, trainer, method, phase):
        function = getattr(trainer, method)

        def timed(*arguments, **options):
            start = time.perf_counter()
            result = function(*arguments, **options)
            self.phases[phase] = time.perf_counter() - start
            return result

        setattr(trainer, method, timed)

    def on_step_begin(self, args, state, control, **rest):
        if self.step and not self.wait():
            raise SystemExit
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **rest):
        secs = time.perf_counter() - self.start
        self.step += 1
        if self.step == 1:
            packages = (torch, transformers, trl)
            self.say(ready={package.__name__: package.__version__ for package in packages})
        else:
            self.say(secs=secs, tokens=self.tokens, phases=self.phases)
