import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seif_jax import data
from seif_jax.errors import UserError
from seif_jax.instruction import Instruction

SHARED = Path(__file__).parents[2] / "shared" / "data"


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def told(message, call, *args):
    """The call raises one line with this text in it."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def questions(*args, **kwargs):
    return [seed.question for seed in data.load_seeds(*args, **kwargs)]


SEEDS = [{"prompt": "Name a river.", "n": 1}, {"prompt": "Translate: 猫\n", "n": 2}]
TEXTS = ["Name a river.", "Translate: 猫\n"]


def test_seeds_from_each_kind_of_file(tmp_path):
    whole = tmp_path / "seeds.json"
    whole.write_text(json.dumps(SEEDS), encoding="utf-8")
    folder = tmp_path / "n=3"  # no column is taken from the name of a folder
    folder.mkdir()
    sources = [jsonl(tmp_path / "a.jsonl", SEEDS), parquet(folder / "a.parquet", SEEDS), str(whole)]
    assert [questions(source) for source in sources] == [TEXTS] * 3


def test_seeds_from_another_column(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "no", "question": "Why?"}])
    assert questions(path, "question") == ["Why?"]


def test_seeds_packaged():
    seeds = questions(None)
    assert len(seeds) >= 100
    assert len(set(seeds)) == len(seeds)


def test_seeds_from_a_data_set_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "train.parquet", SEEDS)
    assert questions(str(folder)) == TEXTS


@pytest.mark.parametrize("split", [None, "test", "train[:10%]"])
def test_seeds_from_the_hub(monkeypatch, split):
    """The split is passed on as it is; without one it is "train"."""
    import datasets

    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return SEEDS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert questions("someone/seeds", split=split) == TEXTS
    assert asked == [("someone/seeds", split or "train")]


def test_splits_of_a_data_set_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "train.parquet", SEEDS)
    parquet(folder / "test.parquet", SEEDS[1:])
    assert questions(str(folder), split="test") == TEXTS[1:]
    assert questions(str(folder), split="train[:1]") == TEXTS[:1]
    told('Unknown split "dev"', data.load_seeds, str(folder), "prompt", "dev")


def test_a_file_has_no_splits(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", SEEDS)
    for source in (path, None):
        told("which has no splits (got split='test')", data.load_seeds, source, "prompt", "test")


def test_hub_failure_is_one_line(monkeypatch):
    import datasets

    def load_dataset(name, split):
        raise ConnectionError("cannot reach the hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    told(
        "someone/seeds: not a file, and as a data set: cannot reach the hub long story",
        data.load_seeds,
        "someone/seeds",
    )


def test_seeds_from_tfds_are_decoded(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class SeifTestSeeds(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"prompt": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "dev": iter([(0, {"prompt": "Dev?"})])}

        def _generate_examples(self):
            yield 0, {"prompt": "Où ?"}

    SeifTestSeeds(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = tfds.data_source
    monkeypatch.setattr(
        tfds, "data_source", lambda name, split: source(name, split=split, data_dir=tmp_path)
    )
    assert questions("tfds:seif_test_seeds") == ["Où ?"]
    assert questions("tfds:seif_test_seeds/dev") == ["Dev?"]
    assert questions("tfds:seif_test_seeds", split="dev") == ["Dev?"]
    told(
        "no column 'text', the columns are 'prompt'",
        data.load_seeds,
        "tfds:seif_test_seeds",
        "text",
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no rows"),
        (
            '{"prompt": "a"}\n\n{"prompt": 3}\n',
            "row 3: 'prompt' must be text or a list of chat messages (got 3",
        ),
        ('{"prompt": "a"}\n{"prompt": "  "}\n', "row 2: 'prompt' must be text (got '  '"),
        (
            '{"question": "a", "n": 1}\n',
            "row 1: no column 'prompt', the columns are 'question', 'n'",
        ),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n[1]\n', "row 2 must be an object"),
    ],
)
def test_bad_seed_files(tmp_path, text, message):
    path = tmp_path / "seeds.jsonl"
    path.write_text(text)
    told(f"{path}: ", data.load_seeds, str(path))
    told(message, data.load_seeds, str(path))


def test_bad_seed_sources(tmp_path):
    told("no such file", data.load_seeds, str(tmp_path / "none.parquet"))
    told("no such file", data.load_seeds, str(tmp_path / "none.csv"))
    path = parquet(tmp_path / "a.parquet", [{"question": "a", "n": 1}])
    told(
        "a.parquet: row 1: no column 'prompt', the columns are 'question', 'n'",
        data.load_seeds,
        path,
    )
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    told("torn.parquet: not a parquet file", data.load_seeds, str(tmp_path / "torn.parquet"))
    (tmp_path / "seeds.tsv").write_text("a")
    told(
        "seeds.tsv: a data file must be one of: .parquet, .jsonl, .json, .csv, .txt",
        data.load_seeds,
        str(tmp_path / "seeds.tsv"),
    )


ROWS = [
    {
        "seed_question": "Name a river.",
        "constraint": ["Do not use any commas.", "Be formal."],
        "prompt": "Name a river.\nDo not use any commas.\nBe formal.",
        "kwargs": [{}, {"num_bullets": 3}],
        "instruction_id_list": ["soft", "soft"],
        "variant": "soft",
        "kept": True,
        "reason": None,
    },
    {
        "seed_question": "Name a lake.",
        "constraint": [],
        "prompt": "Name a lake.",
        "kwargs": [],
        "instruction_id_list": [],
        "variant": "hard",
        "kept": False,
        "reason": "parse",
    },
]


def test_instructions_come_back_as_they_were_saved(tmp_path):
    path = tmp_path / "instructions.parquet"
    data.save_instructions(path, ROWS)
    assert data.load_instructions(path) == [
        Instruction(
            "Name a river.",
            ("Do not use any commas.", "Be formal."),
            "Name a river.\nDo not use any commas.\nBe formal.",
            ({}, {"num_bullets": 3}),
            ("soft", "soft"),
        )
    ]


def test_a_recognised_rule_is_read_from_its_sentence_again(tmp_path):
    """…so that it is checked as the sentence says; an id that the data name is IFEval's."""
    path = tmp_path / "instructions.parquet"
    ids = ["punctuation:no_comma", "startend:quotation"]
    row = {"constraint": ["No commas.", "Quote it all."], "prompt": "p", "instruction_id_list": ids}
    for recognised, read in (
        ([True, False], ("soft", ids[1])),
        ([False, False], tuple(ids)),
        ([True, True], ("soft", "soft")),
        (None, tuple(ids)),
    ):
        row |= {"kwargs": [{}, {}], "recognised": recognised}
        data.save_instructions(path, [row])
        assert data.load_instructions(path)[0].instruction_ids == read


def test_instructions_file_has_the_types_of_the_authors_files(tmp_path):
    path = tmp_path / "instructions.parquet"
    rule = {"keywords": ["sea", "salt"], "relation": "at least", "num_words": 40}
    row = {"constraint": ["a"], "prompt": "p", "kwargs": [rule], "instruction_id_list": ["soft"]}
    data.save_instructions(path, [row])
    schema = pq.read_schema(path)
    assert schema.names == [
        *("seed_question", "constraint", "prompt", "kwargs"),
        *("instruction_id_list", "variant", "kept", "reason", "recognised"),
    ]
    assert schema.field("constraint").type.value_type == pa.string()
    kwargs = schema.field("kwargs").type.value_type
    assert pa.types.is_struct(kwargs) and kwargs.num_fields == 24
    [read] = pq.read_table(path)["kwargs"].to_pylist()[0]
    assert {name: value for name, value in read.items() if value is not None} == rule
    assert data.load_instructions(path)[0].kwargs == (rule,)  # kept is null here: not dropped


def test_instructions_refuse_what_the_file_cannot_hold(tmp_path):
    for row in ({"prompt": "p", "score": 1}, {"prompt": "p", "kwargs": [{"num_emoji": 2}]}):
        with pytest.raises(ValueError, match="score|num_emoji"):
            data.save_instructions(tmp_path / "i.parquet", [row])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kwargs", [[None, {"n": 3, "m": None}], '[{}, {"n": 3}]', ["{}", '{"n": 3}'], [{}, {"n": 3}]]
)
@pytest.mark.parametrize("column", ["constraint", "constraints"])
def test_instructions_in_other_writings(tmp_path, column, kwargs):
    row = {column: ["a", "b"], "prompt": "p", "kwargs": kwargs}
    [got] = data.load_instructions(jsonl(tmp_path / "i.jsonl", [row]))
    assert got == Instruction("", ("a", "b"), "p", ({}, {"n": 3}), ("soft", "soft"))


def test_chats_of_which_a_part_is_left_out_are_told(tmp_path):
    user = {"role": "user", "content": "Why?"}
    chats = [[user], [{"role": "system", "content": "Be brief."}, user], "Why?", [user, user]]
    rows = [{"prompt": chat, "constraint": "Be kind."} for chat in chats]
    path = jsonl(tmp_path / "a.jsonl", rows)
    warnings = []
    assert questions(path, warn=warnings.append) == ["Why?"] * 4
    assert [row.prompt for row in data.load_instructions(path, warnings.append)] == ["Why?"] * 4
    assert len(warnings) == 2 and warnings[0] == warnings[1]
    assert warnings[0].startswith(f"{path}: 2 of 4 prompts are chats with a system turn or earlier")


def test_instructions_without_kwargs(tmp_path):
    path = jsonl(tmp_path / "i.jsonl", [{"constraint": ["a", "b"], "prompt": "p", "kwargs": None}])
    assert data.load_instructions(path)[0].kwargs == ({}, {})


GOOD = {"constraint": ["a", "b"], "prompt": "p"}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"constraint": ["a"]}, "row 2: no column 'prompt', the columns are 'constraint'"),
        ({"prompt": "p", "x": 1}, "row 2: no column 'constraint', the columns are 'prompt', 'x'"),
        (GOOD | {"constraint": []}, "row 2: no constraints in 'constraint'"),
        (GOOD | {"constraint": ["a", ""]}, "row 2: 'constraint' must be text (got ''"),
        (GOOD | {"prompt": None}, "row 2: 'prompt' must be text or a list of chat messages (got"),
        (GOOD | {"instruction_id_list": ["soft"]}, "row 2: lists must have the same length (2 in"),
        (GOOD | {"recognised": [True]}, "(2 in 'constraint', 1 in 'recognised')"),
        (
            GOOD | {"kwargs": [{}]},
            "row 2: lists must have the same length (2 in 'constraint', 1 in 'kwargs')",
        ),
        (GOOD | {"kwargs": "[{}, 3]"}, "row 2: 'kwargs' must hold objects (got 3"),
        (GOOD | {"kwargs": "{"}, "row 2: 'kwargs' is text, but not JSON: '{'"),
    ],
)
def test_bad_instructions(tmp_path, row, message):
    told(message, data.load_instructions, jsonl(tmp_path / "i.jsonl", [GOOD, row]))


def test_no_instructions(tmp_path):
    told("no rows", data.load_instructions, jsonl(tmp_path / "i.jsonl", []))
    data.save_instructions(tmp_path / "i.parquet", ROWS[1:])
    told("all 1 rows are dropped", data.load_instructions, tmp_path / "i.parquet")


def test_instruction_ids_are_those_of_the_rules(tmp_path):
    row = GOOD | {"instruction_id_list": ["punctuation:no_comma", "soft"]}
    [got] = data.load_instructions(jsonl(tmp_path / "a.jsonl", [row]))
    assert got.instruction_ids == ("punctuation:no_comma", "soft")
    row = GOOD | {"instruction_id_list": ["punctuation:no_coma", "soft"]}
    path = jsonl(tmp_path / "b.jsonl", [row])
    told("row 1: unknown instruction id 'punctuation:no_coma'", data.load_instructions, path)


def test_order_is_a_function_of_its_arguments():
    steps = data.order(n=10, epochs=3, batch=4, seed=5)
    assert len(steps) == 6  # 2 full batches an epoch
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        assert len(set(first + second)) == 8 and set(first + second) <= set(range(10))
    assert len({tuple(step) for step in steps}) == 6
    assert data.order(n=10, epochs=3, batch=4, seed=5) == steps
    assert data.order(n=10, epochs=1, batch=4, seed=5) == steps[:2]
    assert data.order(n=10, epochs=3, batch=4, seed=6) != steps


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_steps_go_over_the_rows_as_often_as_they_need(steps):
    """The data stage keeps more or fewer instructions; the number of steps need not follow it."""
    order = data.order(n=10, epochs=3, batch=4, seed=5, steps=steps)
    assert order == data.order(n=10, epochs=5, batch=4, seed=5)[:steps]
    assert len(data.order(n=3, epochs=1, batch=4, seed=5, steps=steps)) == steps


def test_an_order_for_every_seed_of_a_config():
    """A stage's seed is config.seed·1000 and its round."""
    large = (2**32 - 1) * 1000
    steps = [data.order(n=50, epochs=1, batch=25, seed=large + round) for round in (1, 2, 999)]
    assert len({str(step) for step in steps}) == 3


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_rows_than_a_batch_are_one_smaller_batch(n):
    steps = data.order(n, epochs=2, batch=4, seed=0)
    assert [sorted(step) for step in steps] == [list(range(n))] * 2


@pytest.mark.skipif(not SHARED.exists(), reason="the authors' files are not here")
def test_the_authors_files(tmp_path):
    seeds = questions(str(SHARED / "seed.parquet"))
    assert seeds == pq.read_table(SHARED / "seed.parquet")["prompt"].to_pylist()
    rows = data.load_instructions(SHARED / "qwen7b_T3.parquet")
    raw = pq.read_table(SHARED / "qwen7b_T3.parquet").to_pylist()
    assert len(rows) == 5114
    for row, file in zip(rows, raw, strict=True):
        assert (row.prompt, list(row.constraints)) == (file["prompt"], file["constraint"])
    assert rows[0].kwargs == ({"num_bullets": 3},) * 3
    ours = tmp_path / "instructions.parquet"
    data.save_instructions(ours, raw)
    assert data.load_instructions(ours) == rows


@pytest.mark.skipif(not SHARED.exists(), reason="IFEval is not here")
def test_ifeval_is_an_evaluation_set():
    """It has rules without constraints: every rule gets a sentence."""
    rows = data.load_instructions(SHARED / "test.parquet")
    raw = pq.read_table(SHARED / "test.parquet").to_pylist()
    assert [row.prompt for row in rows] == [file["prompt"] for file in raw]
    assert [list(row.instruction_ids) for row in rows] == [f["instruction_id_list"] for f in raw]
    first = rows[0]
    assert first.constraints[2] == "The response must be no fewer than 300 words long."
    assert first.kwargs[2] == {"num_words": 300, "relation": "at least"}
