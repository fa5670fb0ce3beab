"""What other frameworks ship: one FastAPI process, one model, a forward pass per request.

python -m benchmarks.serve.plain MODEL_FOLDER PORT
"""

import sys
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Request

from scpo_ray import models
from scpo_ray.config import FormatConfig
from scpo_ray.formatting import Formatter


def make(folder: Path) -> FastAPI:
    """Its responses are tokenised and padded together, in the order in which they came, while everyone else waits."""
    loaded = models.load(folder)
    formatter = Formatter(loaded.tokenizer, FormatConfig())
    api = FastAPI()

    @api.post("/v1/score")
    async def score(request: Request) -> dict:
        body = await request.json()
        context = [{"role": "user", "content": body["prompt"]}]
        with torch.inference_mode():
            inputs = formatter.pad(formatter.format([context] * len(body["responses"]), body["responses"]))
            return {"rewards": loaded.model(**inputs).logits.squeeze(-1).tolist()}

    return api


if __name__ == "__main__":
    torch.set_num_threads(2)
    uvicorn.run(make(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning")
