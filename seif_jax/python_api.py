"""The functions of `import seif_jax` that load a model, open a stage, and run a config."""

from collections.abc import Mapping
from pathlib import Path

from seif_jax import accelerator_detection, config_parsing, evolve, processes
from seif_jax.chat import ChatModel
from seif_jax.config_file import import_folders, read_config
from seif_jax.display import Display
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.rl.stage import Stage
from seif_jax.run_clock import CLOCK
from seif_jax.run_config import DType, RunConfig
from seif_jax.run_paths import RunPaths
from seif_jax.sampling import Engine
from seif_jax.stage_settings import dtype as dtype_of


def load_model(path: str | Path | None = None, dtype: DType | None = None) -> ChatModel:
    """Loads a model to talk to, on JAX's first device.

    path: a Hugging Face folder or hub name, a GGUF file, or a stage of a run
    (RUN/round_2/follower); by default the embedded SmolLM2-135M-Instruct. dtype: of weights and
    activations; by default bfloat16 if the devices have instructions for it, else float32.

    Raises UserError if there is no model, or one that seif_jax cannot compute.

        import jax, seif_jax

        model = seif_jax.load_model("smollm2")
        decoding = seif_jax.Decoding(max_prompt_tokens=100, max_tokens=40, batch_size=8)
        dialogue = [{"role": "user", "content": "Name three rivers."}]
        replies = model.reply([dialogue], decoding, jax.random.key(0), group=4)
        print(replies[0].text)
    """
    accelerator_detection.skip_absent()
    bundle = ModelBundle.load(path)
    kind = dtype_of(dtype or accelerator_detection.native_dtype())
    params = load_params(path, bundle.model, kind)
    return ChatModel(Engine(bundle.model.config, params, kind), bundle.tokenizer)


def open_stage(config: RunConfig, name: str, workdir: str | Path = "") -> Stage:
    """The first round's stage of a trained role, "instructor" or "follower", for `train_step`.

    Nothing is written unless the stage is run (`rl.run_stage`), which writes to `workdir`.

        stage = open_stage(config, "follower")
        learner = make_learner(stage, updates=1)
        state = learner.start(stage.model.load())
        state, metrics, samples = train_step(stage, learner, state, [0, 1], 1, Phases())
    """
    accelerator_detection.skip_absent()
    folder, bundle = Path(workdir), ModelBundle.load(config.model)
    evolution = evolve.Evolution(config, folder, bundle, Display(), import_folders(None))
    return evolution.training_stage(1, name)


def run(
    config: RunConfig | str | Path,
    workdir: str | Path,
    changes: Mapping[str, object] | None = None,
) -> RunPaths:
    """Starts a run, or resumes the one in `workdir`, as `seif run` does, in this process.

    config: the name of a shipped config, a config file, or what `read_config` returns. changes:
    values of config keys, {"optim.learning_rate": 1e-5}. Modules of your own checks and rewards are
    looked for in the config file's folder and in the working directory.

    Returns the paths of the run's files. Raises UserError for what you can mend, before anything is
    computed where that is possible, and RunError if the run cannot go on.

        import pandas as pd, seif_jax

        files = seif_jax.run("quickstart", "runs/mine", {"rounds": 1})
        samples = pd.read_parquet(files.stage(1, "follower").samples)
    """
    folders = import_folders(None if isinstance(config, RunConfig) else str(config))
    if not isinstance(config, RunConfig):
        config = read_config(str(config))
    config = config_parsing.replace(config, changes or {})
    folder = processes.output_folder(str(workdir))
    accelerator_detection.skip_absent()
    CLOCK.start()
    with Display() as display:
        evolve.run(config, folder, display, folders)
    return RunPaths(folder)
