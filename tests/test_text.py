"""Text as a task: which bytes are read, what the transformer may see, and a run from end to end."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daily import thorough
from signax.experiments import cli, default_config, text, transformer
from signax.experiments.errors import UsageError
from signax.experiments.metric import ACCURACY, BITS_PER_BYTE
from signax.experiments.task import make_task

T = 8


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Forty files of 30 bytes, and some that are no text to learn from."""
    root = tmp_path / "lib"
    for name in (
        *(f"module{i}.py" for i in range(40)), "test/test_a.py", "json/tests/b.py", "notes.txt",
        "site-packages/c.py", "encodings/cp1.py", "_sysconfigdata_x.py", "config-3/d.py",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name:<30}")
    return root


# The text


def test_every_byte_of_a_window_is_foretold_once_and_no_file_is_on_both_sides(sources: Path):
    loaded = text.load_text(T, sources)
    assert loaded.fingerprint.startswith("40 files, 1,200 bytes")
    seen = {which: set() for which in ("train", "test")}
    for which, windows in (("train", loaded.train), ("test", loaded.test)):
        for file in np.unique(windows.files):
            pieces = windows.text[windows.files == file]
            whole = bytes(pieces[0]) + b"".join(bytes(piece[1:]) for piece in pieces[1:])
            assert len(pieces) == 29 // T  # the first byte is foretold by nobody
            seen[which].add(whole.split()[0].decode())
    assert {name for names in seen.values() for name in names} == {
        f"module{i}.py" for i in range(40)
    }
    assert not seen["train"] & seen["test"]
    assert seen["test"] == {f"module{i}.py" for i in range(40) if text.is_test(f"module{i}.py")}


def test_the_split_goes_by_the_name_alone():
    """A tenth of the files: of 5,000 names a share within 5 standard deviations, 0.021."""
    share = np.mean([text.is_test(f"package/module{i}.py") for i in range(5000)])
    assert abs(share - 0.1) < 5 * math.sqrt(0.1 * 0.9 / 5000)


def test_the_standard_library_is_millions_of_bytes_and_a_spread_of_it_is_from_many_files():
    loaded = text.load_text(64)
    train, test = (len(part.text) * 64 for part in (loaded.train, loaded.test))
    assert train > 5_000_000
    assert test > 300_000
    few = loaded.test.spread(16_384)
    assert len(few.text) == 256
    assert len(np.unique(few.files)) > 20
    assert loaded.test.spread(10**9).text.shape == loaded.test.text.shape


def test_a_text_that_is_too_short_is_an_error(sources: Path):
    with pytest.raises(UsageError, match=r"config\.text\.sequence_length=100"):
        text.load_text(100, sources)


# The model


@pytest.fixture(scope="module")
def tiny() -> tuple[transformer.Model, Any]:
    return transformer.make_model(T, width=16, num_layers=1, num_heads=2, seed=0)


@pytest.fixture(scope="module")
def nats_of(tiny: tuple[transformer.Model, Any]) -> Callable:
    """Of three rows."""
    model, params = tiny
    return jax.jit(lambda rows: model.nats(params, rows))


ROWS = np.random.default_rng(0).integers(0, 256, (64, T + 1)).astype(np.uint8)


def test_a_byte_is_foretold_from_those_before_it_alone(nats_of: Callable):
    changed = ROWS.copy()
    changed[0, 5] ^= 1
    before, after = (np.asarray(nats_of(rows))[0] for rows in (ROWS, changed))
    np.testing.assert_array_equal(before[:4], after[:4])  # of the bytes 1 to 4
    assert (before[4:] != after[4:]).all()  # of byte 5 itself and of those that follow it


def test_an_untrained_model_needs_eight_bits_per_byte(nats_of: Callable):
    assert abs(np.mean(nats_of(ROWS)) / math.log(2) - 8) < 0.1


def test_padding_does_not_count_in_the_score(tiny: tuple[transformer.Model, Any], nats_of: Any):
    model, params = tiny
    is_example = np.arange(64).reshape(2, 32) % 5 > 0
    examples = {"text": jnp.asarray(ROWS.reshape(2, 32, -1))}
    score = jax.jit(model.score)(params, examples, is_example)
    nats = np.asarray(nats_of(ROWS))[is_example.ravel()]
    np.testing.assert_allclose(score, nats.mean() / math.log(2), rtol=1e-6)


def test_the_default_size_with_a_width_of_320_has_five_million_parameters():
    shapes = jax.eval_shape(lambda: transformer.make_model(64, 320, 4, 4, 0)[1])
    assert 5.0e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 5.2e6


# The task and its metric


def test_heads_must_share_the_width():
    config = default_config.get_config()
    config.dataset, config.hidden_size = "stdlib", 30
    with pytest.raises(UsageError, match=r"hidden_size=30 is not divisible by config\.text\.num_h"):
        make_task(config)


def test_a_target_is_written_as_people_see_the_metric():
    assert ACCURACY.reaches(0.95, 95)
    assert not ACCURACY.reaches(0.949, 95)
    assert BITS_PER_BYTE.reaches(3.0, 3)
    assert not BITS_PER_BYTE.reaches(3.1, 3)
    assert (ACCURACY.shown(0.97412), BITS_PER_BYTE.shown(3.1416)) == ("97.41%", "3.142")


SMALL = (
    "--config.dataset=stdlib", "--config.hidden_size=16", "--config.text.num_layers=1",
    "--config.text.sequence_length=16", "--config.text.scored_bytes=1024",
    "--config.num_workers=2", "--config.batch_size=32",
)  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@thorough
def test_a_run_on_text_reports_bits_per_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    steps = ("--config.num_steps=20", "--config.eval_every=10")
    learn = ("--config.optimizer.name=adamw", "--config.optimizer.learning_rate=0.01")
    assert cli.main(["train", *SMALL, *steps, *learn, "--workdir=run"]) == 0
    rows, result = rows_of(Path("run")), json.loads(Path("run/result.json").read_text())
    assert rows[-1]["test_bits_per_byte"] < rows[0]["test_bits_per_byte"] < 8.1
    assert result["test_bits_per_byte"] == rows[-1]["test_bits_per_byte"]
    assert "test_accuracy" not in {*rows[0], *result}
    assert f"{result['test_bits_per_byte']:.3f}" in capsys.readouterr().out
    assert cli.main(["compare", "run"]) == 0
    assert "test bits per byte" in capsys.readouterr().out
    accurate = {**result, "metric": "accuracy", "train_accuracy": 0.5, "test_accuracy": 0.5}
    Path("other").mkdir()
    Path("other/result.json").write_text(json.dumps(accurate))
    assert cli.main(["compare", "run", "other"]) == 2
    assert "runs of one kind of data" in capsys.readouterr().err
