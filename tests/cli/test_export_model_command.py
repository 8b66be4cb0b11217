import json
from pathlib import Path

import numpy as np
from command_line import misused, refused, run
from tiny_host import open_plainly
from tiny_model import save_bert


def test_host_makes_a_graph_of_a_model_folder(tmp_path: Path) -> None:
    model, out = save_bert(tmp_path / "bert"), tmp_path / "graphs" / "host.onnx"
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 1}  # tracing takes a while
    (model / "config.json").write_text(json.dumps(config))
    result = run("export-model", model, "-o", out, "--dtype", "float16", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["graph"], said["model"], said["dtype"]) == (str(out), "BertModel", "float16")
    beside = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.parent.iterdir()} == {"host.onnx", "host.onnx.data", *beside}
    ids = np.array([[2, 5, 9, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (hidden,) = open_plainly(out, False).run(["last_hidden_state"], feed)
    assert hidden.shape == (1, 4, 16) and hidden.dtype == np.float16 and np.isfinite(hidden).all()
    assert "--force" in refused("export-model", model, "-o", out)


def test_host_refuses_what_it_cannot_export_in_one_sentence(tmp_path: Path) -> None:
    assert "does not exist" in refused("export-model", tmp_path / "none" / "x", "-o", tmp_path / "host.onnx")
    assert "Missing argument 'MODEL'" in misused("export-model", "-o", tmp_path / "host.onnx")
    assert not list(tmp_path.iterdir())
