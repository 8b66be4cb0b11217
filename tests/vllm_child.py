"""Run in vLLM's environment by `vllm_processes.called`: imports a script, and calls its functions as it is told."""

import importlib.util
import os
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path


def main() -> None:
    number, path = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(number, False)
    connection = Connection(number)
    sys.path.append(str(Path(path).parent))  # as of a script that is run
    spec = importlib.util.spec_from_file_location("script", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["script"] = script
    spec.loader.exec_module(script)
    while True:
        try:
            function, arguments, named = connection.recv()
        except EOFError:
            return
        try:
            given = getattr(script, function)(*arguments, **named)
        except Exception as error:
            connection.send((None, (isinstance(error, ValueError), str(error), traceback.format_exc()[-6000:])))
        else:
            connection.send((given, None))


if __name__ == "__main__":
    main()
