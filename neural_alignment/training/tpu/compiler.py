"""Compiles a program for a TPU. Run by an interpreter that has jax and libtpu but not this package.

usage: python compiler.py PROGRAM TOPOLOGY MINUTES GIB

Prints one line of JSON with the result. `PROGRAM` is a file with a serialized `HloModuleProto`, `TOPOLOGY` is a name
such as v3:2x2x1. The process ends after `MINUTES` of processor time, or if it needs more than `GIB` of memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
import time
from pathlib import Path

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # The metadata server only exists on Google Cloud.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

_COPY = re.compile(r"= mhlo\.copy (%[\w#]+) (\{[^{}\n]*\} )?: ")


def without_copies(text: str) -> str:
    """Replaces `mhlo.copy`, which the compiler of the TPU rejects, by `stablehlo.optimization_barrier`.

    Both are the identity, and both keep their result separate from their operand.

    Args:
        text: a module in MLIR's text form.
    """
    return _COPY.sub(r"= stablehlo.optimization_barrier \1 : ", text)


def compiled(program: bytes, topology: str) -> dict[str, object]:
    """Compiles a program for one core. Returns memory in bytes, arithmetic and traffic, or the reason of a failure.

    Args:
        program: a serialized `HloModuleProto`.
        topology: name of a topology that has such a core.
    """
    import jax
    from jax._src.interpreters import mlir
    from jax._src.lib.mlir import ir
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies
    from jaxlib import _jax

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    cores, options = _jax.DeviceList((device,)), _jax.CompileOptions()
    with mlir.make_ir_context():
        text = without_copies(str(ir.Module.parse(_jax.mlir.hlo_to_stablehlo(program))))
        module = ir.Module.parse(text)
        if jax.__version_info__ < (0, 7):  # It takes bytes.
            module = mlir.module_to_bytecode(module)
        begin = time.monotonic()
        try:
            executable = device.client.compile(module, cores, options)
        except JaxRuntimeError as error:
            return {"reason": str(error)}
    seconds = time.monotonic() - begin
    memory, cost = executable.get_compiled_memory_stats(), executable.cost_analysis()
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "flops": int(cost["flops"]),
        "bytes_accessed": int(cost["bytes accessed"]),
        "seconds_to_compile": round(seconds),
    }


def main() -> None:
    """Compiles the program of the command line and prints the result."""
    path, topology, minutes, gib = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (int(60 * float(minutes)),) * 2)
    resource.setrlimit(resource.RLIMIT_DATA, (int(2**30 * float(gib)),) * 2)
    os.environ.update(ENVIRONMENT)
    with contextlib.redirect_stdout(sys.stderr):
        result = compiled(Path(path).read_bytes(), topology)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
