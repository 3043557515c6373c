"""lm-eval's tasks through our sampler and forward pass. Tests that run tasks need lm-eval."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_run
from scipy.special import log_softmax

from seif_jax.__main__ import main
from seif_jax.chat import ChatModel, Decoding
from seif_jax.errors import UserError
from seif_jax.evaluate import suite_registry
from seif_jax.evaluate.progress import EvaluationProgress
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.models import dense_forward
from seif_jax.sampling import Engine, continuations
from seif_jax.sampling.continuations import continuation_logp


@pytest.fixture(scope="module")
def model(place):
    bundle = ModelBundle.load(place.model)
    params = load_params(place.model, bundle.model, jnp.float32)
    return ChatModel(Engine(bundle.model.config, params, jnp.float32), bundle.tokenizer)


def all_logits(model, ids):
    """The logits after each token, float64, from one forward pass over one row."""
    tokens, engine = jnp.array([[*ids, *[0] * (96 - len(ids))]]), model.engine
    positions = jnp.arange(96)[None]
    hidden, _ = dense_forward.forward(
        engine.config, engine.params, tokens, positions, dtype=engine.dtype
    )
    logits = dense_forward.logits(engine.params, hidden, engine.dtype)
    return np.asarray(logits, np.float64)[0, : len(ids)]


def by_hand(model, context, continuation):
    logits = all_logits(model, [*context, *continuation][:-1])[len(context) - 1 :]
    logp = log_softmax(logits, axis=1)[range(len(continuation)), continuation]
    return logp.sum(), bool((logits.argmax(1) == continuation).all())


def test_log_likelihoods_of_continuations(model, monkeypatch):
    """Of many lengths, in several batches and chunks of the head, in their order."""
    monkeypatch.setattr(continuations, "BATCH_TOKENS", 200)
    monkeypatch.setattr(continuations, "CHUNK", 7)
    draw = np.random.default_rng(3)
    vocab = model.engine.config.vocab
    pairs = [
        (draw.integers(3, vocab, n).tolist(), draw.integers(3, vocab, m).tolist())
        for n, m in zip(draw.integers(1, 70, 14), draw.integers(1, 12, 14), strict=True)
    ]
    greedy = pairs[4][0]
    for _ in range(3):  # one continuation that the model would write itself
        greedy = [*greedy, int(all_logits(model, greedy)[-1].argmax())]
    pairs.append((greedy[:-3], greedy[-3:]))
    pairs.append((greedy, []))
    found = continuation_logp(model.engine, *zip(*pairs, strict=True))
    for (logp, is_greedy), pair in zip(found[:-1], pairs, strict=False):
        expected, expected_greedy = by_hand(model, *pair)
        assert logp == pytest.approx(expected, abs=1e-4)
        assert is_greedy is expected_greedy
    assert found[-2][1] is True and found[-1] == (0.0, True)
    assert continuation_logp(model.engine, [], []) == []


def test_a_long_context_loses_its_beginning(model, monkeypatch):
    config = model.engine.config
    short = Engine(replace(config, max_positions=10), model.engine.params, jnp.float32)
    ids = np.random.default_rng(0).integers(3, config.vocab, 30).tolist()
    ((logp, _),) = continuation_logp(short, [ids[:26]], [ids[26:]])
    assert logp == pytest.approx(by_hand(model, ids[19:26], ids[26:])[0], abs=1e-4)


def test_control_tokens_in_a_text(model):
    tokenizer = model.tokenizer
    dialogue = [{"role": "user", "content": "Name  a river."}]
    text = tokenizer.render(dialogue)
    assert tokenizer.encode_markup(text) == tokenizer.encode_chat(dialogue)
    assert tokenizer.encode_markup(text) != tokenizer.encode(text)


def test_tasks_among_the_suites():
    texts = ["lm-eval:arc_easy,hellaswag,ifeval", "mine.py:f,judge"]
    assert suite_registry.names_of(texts) == [
        "lm-eval:arc_easy", "lm-eval:hellaswag", "ifeval", "mine.py:f", "judge",
    ]  # fmt: skip
    with pytest.raises(UserError, match="names a suite twice"):
        suite_registry.names_of(["lm-eval:a,b,a"])


TASKS = {
    "choices": """
task: choices
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "replies": """
task: replies
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "rolling": """
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}
DOCUMENTS = [
    {"question": f"{seed} ", "choices": ["yes", "no way", "0"], "label": n % 3}
    for n, seed in enumerate(tiny_run.SEEDS[:5])
]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with tasks of lm-eval, and their data."""
    pytest.importorskip("lm_eval.evaluator")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    for name, text in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {data}}}\ntest_split: train\n"
        (tmp_path / f"{name}.yaml").write_text(source + text)
    return tmp_path


def run(place, out, task, *more):
    command = ["evaluate", f"--model={place.model}", f"--suite=lm-eval:{task}", f"--out={out}"]
    command.append(f"--data={out.parent}")
    assert main([*command, "--dtype=float32", *more]) == 0
    found = json.loads((out / "scores.json").read_text())[f"lm-eval:{task}"]
    return found["models"][str(place.model)]


def test_a_task_of_choices(place, model, tasks, capfd, monkeypatch):
    monkeypatch.chdir(tasks)  # not a git repository
    found = run(place, tasks / "out", "choices")
    assert "git" not in capfd.readouterr().err
    right = [
        int(
            np.argmax(
                [score for score, _ in (pair(model, row, choice) for choice in row["choices"])]
            )
        )
        == row["label"]
        for row in DOCUMENTS
    ]
    score = found["scores"]["acc,none"]
    assert score["value"] == pytest.approx(np.mean(right))
    assert score["low"] <= score["value"] <= score["high"]
    assert found["counts"] == {"documents": 5}


def pair(model, row, choice):
    context = model.tokenizer.encode(f"Question: {row['question']}\nAnswer:")
    return by_hand(model, context, model.tokenizer.encode(f" {choice}"))


def test_a_task_of_replies_goes_on_after_a_stop(place, tasks, capsys):
    out = tasks / "out"
    run(place, out, "replies", "--limit=2")
    first = pq.read_table(out / "responses.parquet").to_pylist()
    run(place, out, "replies")
    rows = pq.read_table(out / "responses.parquet").to_pylist()
    assert len(rows) == 5 and rows[:2] == first
    assert "<|im_start|>user" in rows[0]["prompt"]  # by the chat template
    assert not any("e" in row["response"] for row in rows)
    assert "replies: 3" in capsys.readouterr().err  # two were kept


def test_greedy_replies_are_those_of_our_sampler(model):
    """Whatever the task calls its limit; the text before the first of its stop texts."""
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    from seif_jax.evaluate.lm_eval_model import HarnessModel

    key, progress = jax.random.key(0), EvaluationProgress()
    harness = HarnessModel(model, "model", key, progress)
    dialogues = [[{"role": "user", "content": seed}] for seed in tiny_run.SEEDS[:3]]
    decoding = Decoding(100, 12, 8, temperature=0.0)
    expected = [reply.text for reply in model.reply(dialogues, decoding, key)]
    prompts = [harness.apply_chat_template(dialogue) for dialogue in dialogues]

    def generate(**kwargs):
        requests = [
            instance("generate_until", {}, (prompt, kwargs), i) for i, prompt in enumerate(prompts)
        ]
        return harness.generate_until(requests)

    assert generate(until=[], max_new_tokens=12) == expected
    stop = expected[0][1:3]
    assert generate(until=["absent", stop], max_gen_toks=12, temperature=0.0) == [
        text.partition(stop)[0] for text in expected
    ]


def test_a_rolling_task(place, model, tasks):
    found = run(place, tasks / "out", "rolling")["scores"]
    tokenizer, total, size = model.tokenizer, 0.0, 0
    prefix = tokenizer.stop_ids[0] if tokenizer.bos_id is None else tokenizer.bos_id
    for row in DOCUMENTS:
        total += by_hand(model, [prefix], tokenizer.encode(row["question"]))[0]
        size += len(row["question"].encode())
    assert found["bits_per_byte,none"]["value"] == pytest.approx(
        -total / size / np.log(2), rel=1e-4
    )
    assert found["word_perplexity,none"]["low"] is None  # not a mean over documents


def test_a_task_that_lm_eval_does_not_have(place, tasks, refused):
    line = refused("evaluate", f"--model={place.model}", "--suite=lm-eval:absent")
    assert "lm-eval:absent: lm-eval cannot load the task" in line
