"""SAEs of SAELens behind FastAPI, as one writes it in twenty lines: PORT NAME=FOLDER..."""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sae_lens import SAE

app = FastAPI()
saes = {name: SAE.load_from_disk(path) for name, _, path in (word.partition("=") for word in sys.argv[2:])}


class Rows(BaseModel):
    """Activations [n, d_in]."""

    x: list[list[float]]


@app.post("/encode/{name}")  # type: ignore[untyped-decorator]  # where FastAPI is not installed
def encode(name: str, rows: Rows) -> list[dict[str, list[float]]]:
    """The active features of each row."""
    with torch.no_grad():
        f = saes[name].encode(torch.tensor(rows.x))
    return [{"indices": row.nonzero()[:, 0].tolist(), "values": row[row > 0].tolist()} for row in f]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
