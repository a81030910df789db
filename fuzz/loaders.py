"""All that reads what others have written, by name."""

from importlib.util import find_spec

import of_data
import of_models
import of_runs
import of_servers
from loader import Loader


def loaders() -> dict[str, Loader]:
    found = (*of_models.LOADERS, *of_runs.LOADERS, *of_data.LOADERS, *of_servers.LOADERS)
    if find_spec("flwr") is not None:
        import of_messages

        found += of_messages.LOADERS
    return {loader.name: loader for loader in found}
