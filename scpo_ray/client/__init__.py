"""The reward service's Python client, and a reward function for TRL; needs neither torch nor Ray nor transformers.

with Client("http://localhost:8000", token=...) as client:
    client.score(prompt="Tea or coffee?", responses=["Tea.", "Coffee."], communities="Chile")
"""

from scpo_ray.client.clients import MODEL_HEADER, TOKEN_VARIABLE, AsyncClient, Client
from scpo_ray.client.trl import RewardFunction, reward_function

__all__ = ["MODEL_HEADER", "TOKEN_VARIABLE", "AsyncClient", "Client", "RewardFunction", "reward_function"]
