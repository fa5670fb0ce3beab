"""Every community's reward model behind one endpoint.

serve run --name rewards serve.reward:app run_dir=runs/demo tokens_file=tokens.txt
"""

import os

import click
from ray.serve import Application

from scpo_ray.errors import ScpoError
from scpo_ray.serving.settings import settings_of

# Read by the proxies of a cluster that `serve run` starts; on others it is set before `ray start` (docs/serving.md).
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "scpo_ray.serving.proxy:middlewares")


def app(settings: dict[str, str]) -> Application:
    """Built by `serve run` and `serve deploy` from `args`.

    Raises:
        ScpoError: a bad setting, or something cannot be served; where `serve run` calls, what it prints as one line.
    """
    try:
        config = settings_of(settings)
        from scpo_ray.serving.deployment import application  # deferred: a bad setting fails in milliseconds

        return application(config)
    except ScpoError as error:
        if click.get_current_context(silent=True) is None:
            raise
        raise click.ClickException(str(error)) from None
