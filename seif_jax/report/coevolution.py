"""Computes the parts of section 4 that need a model: `seif report --matrix=N --pca`."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seif_jax import config_parsing, data, models
from seif_jax.chat_template import ChatSettings
from seif_jax.display import Display
from seif_jax.errors import UserError
from seif_jax.evaluate.in_run import Moment
from seif_jax.evaluate.progress import PhaseProgress
from seif_jax.evolve import Evolution
from seif_jax.instruction import Instruction
from seif_jax.model_bundle import ModelBundle
from seif_jax.report import coevolution_matrix, instruction_map
from seif_jax.report.coevolution_matrix import BASE, Cell
from seif_jax.report.instruction_map import InstructionMap
from seif_jax.report.page_blocks import Row
from seif_jax.report.run_files import RunFiles
from seif_jax.sampling import Engine
from seif_jax.sampling.shapes import Ids, pad, round_up
from seif_jax.sharding import use_mesh_of
from seif_jax.tokenizer import Tokenizer

MAP_TEXTS = 300  # maximum number of texts per round
MAP_TOKENS = 1024  # maximum length of a text, which is cut there
BATCH_TOKENS = 4096  # tokens per forward pass, padding included


def compute(runs: Sequence[RunFiles], count: int | None, map_too: bool) -> None:
    """Computes each run's matrix, on `count` instructions per round (None: no matrix), and its map
    (if `map_too`). Results that are up to date are not computed again."""
    with Display() as display:
        for run in runs:
            evolution = open_evolution(run, display)
            if count:
                compute_matrix(run, evolution, count)
            if map_too:
                compute_map(run, evolution)


def open_evolution(run: RunFiles, display: Display) -> Evolution:
    """Opens the run's models, data and checks. Paths in its config are relative to the current
    folder, as they are when the run is resumed. Raises UserError if one of them is missing."""
    config = config_parsing.parse(with_tuples(run.config))
    started = datetime.fromisoformat(run.about["started"])
    chat = ChatSettings(dict(config.template_arguments), started)
    return Evolution(config, run.folder, ModelBundle.load(config.model, chat), display)


def with_tuples(config: Row) -> Row:
    """The config of a config.json with its lists turned back into tuples."""
    out: Row = {}
    for key, value in config.items():
        value = tuple(value) if isinstance(value, list) else value
        out[key] = with_tuples(value) if isinstance(value, dict) else value
    return out


def kept_instructions(run: RunFiles, evolution: Evolution) -> dict[int, list[Instruction]]:
    """The kept instructions of every round that has some. Raises UserError if no round has any."""
    paths = {round: evolution.instructions(round) for round in run.rounds}
    by_round = {}
    for round, path in paths.items():
        reasons = data.drop_reasons(path) if path.exists() else []
        if path.exists() and not (reasons and all(reasons)):
            by_round[round] = data.load_instructions(path)
    if not by_round:
        raise UserError(f"{run.folder}: the run has written no instructions")
    return by_round


def compute_matrix(run: RunFiles, evolution: Evolution, count: int) -> None:
    """Lets every Follower answer `count` instructions of every round, and writes the shares of
    constraints met to the run's folder. Cells that are up to date are not computed again.

    Each instruction gets one reply at config.eval.temperature. All Followers get the same
    instructions, the same random numbers and the first round's Judger, so that only the Follower
    differs between rows.
    """
    chosen = {round: pick(rows, count) for round, rows in kept_instructions(run, evolution).items()}
    texts = {round: _digest(*(row.prompt for row in rows)) for round, rows in chosen.items()}
    known = {
        (c.follower, c.instructions, c.asked, *c.sources): c for c in coevolution_matrix.load(run)
    }
    cells: list[Cell] = []
    for follower, path in followers(run, evolution).items():
        done = run.paths.stage(follower, "follower").done  # its metrics identify the Follower
        trained = _digest(str(path) if follower == BASE else done.read_text(encoding="utf-8"))
        missing = {}
        for round, rows in chosen.items():
            if cell := known.get((follower, round, count, trained, texts[round])):
                cells.append(cell)
            else:
                missing[round] = rows
        if missing:
            who = f"the Follower {coevolution_matrix.name(follower)}"
            num_instructions = sum(map(len, missing.values()))
            evolution.display.note(f"{run.name}: {num_instructions} instructions for {who}")
            shares = shares_met(evolution, path, missing)
            cells += [Cell(follower, r, count, (trained, texts[r]), s) for r, s in shares.items()]
        coevolution_matrix.save(run, cells)


def pick(rows: Sequence[Instruction], count: int) -> list[Instruction]:
    """Picks `count` rows, or all if there are fewer. The same rows give the same choice."""
    chosen = random.Random(0).sample(range(len(rows)), min(count, len(rows)))
    return [rows[i] for i in sorted(chosen)]


def followers(run: RunFiles, evolution: Evolution) -> dict[int, Path]:
    """The base and the Follower of every round whose stage has ended."""
    ended = [round for round in run.rounds if run.paths.stage(round, "follower").done.exists()]
    return {round: evolution.weights.path("follower", round) for round in (BASE, *ended)}


def shares_met(
    evolution: Evolution, path: Path, rounds: Mapping[int, Sequence[Instruction]]
) -> dict[int, list[float | None]]:
    """The share of constraints that one Follower meets in each instruction, by round; None if no
    constraint got a verdict."""
    evolution.weights.keep_only(path, evolution.weights.judger_path(1))
    checker = evolution.frozen.checker(1)
    policy = evolution.frozen.chat_model(path, evolution.config.dtype)
    progress = PhaseProgress(evolution.display.phase)
    shares: dict[int, list[float | None]] = {}
    for round, rows in rounds.items():
        instructions = evolution.evaluation_set(f"round {round}", rows, checker)
        _, samples = instructions.score(policy, evolution.key, Moment(round, 0, 0), progress)
        shares[round] = [None] * len(rows)
        for sample in samples:
            share = sample["followed"]
            shares[round][int(str(sample["row"]))] = share if isinstance(share, float) else None
    return shares


def compute_map(run: RunFiles, evolution: Evolution) -> None:
    """Writes a map of the seed questions and of every round's instructions to the run's folder: the
    first two principal components of their mean hidden states in the base model."""
    rounds = {
        round: pick(rows, MAP_TEXTS) for round, rows in kept_instructions(run, evolution).items()
    }
    seeds = dict.fromkeys(row.seed_question for rows in rounds.values() for row in rows)
    texts = {instruction_map.SEEDS: list(seeds)[:MAP_TEXTS]}
    texts |= {round: [row.prompt for row in rows] for round, rows in rounds.items()}
    base = evolution.weights.path("follower", BASE)
    sources = (_digest(str(base)), _digest(*(text for group in texts.values() for text in group)))
    before = instruction_map.load(run)
    if before and tuple(before.sources) == sources:
        return
    evolution.display.note(f"{run.name}: hidden states of {sum(map(len, texts.values())):,} texts")
    evolution.weights.keep_only(base)
    engine = evolution.weights.engine(base, evolution.config.dtype, "shared")
    all_texts = [text for group in texts.values() for text in group]
    states = mean_states(engine, evolution.base.tokenizer, all_texts)
    components, explained = principal_components(states)
    ends = np.cumsum([len(group) for group in texts.values()])
    clouds = np.split(components.round(3), ends[:-1])
    points = {r: [(x, y) for x, y in c.tolist()] for r, c in zip(texts, clouds, strict=True)}
    instruction_map.save(run, InstructionMap(points, explained, sources))


def mean_states(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[str]
) -> Float[np.ndarray, "n D"]:
    """The last layer's hidden states, averaged over the tokens of each text. Long texts are cut."""
    limit = min(MAP_TOKENS, engine.config.max_positions)
    ids: list[Ids] = [tokenizer.encode(text)[:limit] for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    states = np.zeros((len(ids), engine.config.width), np.float32)
    params = engine.replicas[0]

    @jax.jit
    def run(tokens: Int[Array, "B T"], lengths: Int[Array, "B"]) -> Float[Array, "B D"]:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = models.forward(engine.config, params, tokens, positions, dtype=engine.dtype)
        inside = (positions < lengths[:, None])[..., None]
        return (hidden * inside).sum(1) / lengths[:, None]

    while order:
        width = round_up(len(ids[order[-1]]))
        rows = max(BATCH_TOKENS // width, 1)
        batch, order = order[-rows:], order[:-rows]
        tokens, lengths = pad([ids[i] for i in batch] + [[0]] * (rows - len(batch)), width)
        with use_mesh_of(params):
            states[batch] = np.asarray(run(tokens, lengths))[: len(batch)]
    return states


def principal_components(
    states: Float[np.ndarray, "n D"],
) -> tuple[Float[np.ndarray, "n 2"], tuple[float, float]]:
    """The rows' first two principal components, and the share of the variance in each."""
    centred = states - states.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    shares = s**2 / max(float((s**2).sum()), 1e-30)
    components = np.zeros((len(states), 2))
    components[:, : min(2, len(s))] = (u * s)[:, :2]
    first, second = (*shares[:2].tolist(), 0.0)[:2]
    return components, (first, second)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
