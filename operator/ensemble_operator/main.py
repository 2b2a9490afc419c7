"""`ensemble-operator`: the operator's process."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import kopf
from kubernetes.aio.client.configuration import Configuration

from ensemble_core.errors import UserError
from ensemble_operator import handlers, logs, metrics
from ensemble_operator.cluster import CUSTOM, ApiError, KubernetesCluster, load_configuration
from ensemble_operator.engine import RETRY_SECONDS, Engine
from ensemble_operator.settings import VARIABLES, Settings, settings_from

Answer = TypeVar("Answer")
# For TLS connections to say goodbye: a closed session does not wait for that (aiohttp's own advice).
CLOSING_SECONDS = 0.25
DESCRIPTION = (
    "Manages HPOSearch, EnsembleSelection and EnsembleDeployment resources of the cluster in which it runs, or else of"
    " the one that $KUBECONFIG names. It is told everything by environment variables."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop by SIGTERM; 2 if the environment is wrong, 1 if something ended it otherwise."""
    width = max(map(len, VARIABLES))
    argparse.ArgumentParser(
        prog="ensemble-operator",
        description=DESCRIPTION,
        epilog="\n".join(["environment:", *(f"  {name:{width}}  {text}" for name, text in VARIABLES.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    try:
        settings = settings_from(os.environ)
        configuration = asyncio.run(load_configuration())
    except UserError as error:
        print(f"ensemble-operator: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    return run(settings, configuration)


def run(settings: Settings, configuration: Configuration) -> int:
    """Life after life: a new one begins when our custom resource definitions come or go."""
    told, log = metrics.Metrics(), logs.Log()
    server = metrics.serve(told, settings.metrics_port) if settings.metrics_port else None
    log.write("info", f"watches {', '.join(settings.namespaces) or 'all namespaces'}")
    try:
        while asyncio.run(live(settings, configuration, told, log)):
            pass
    except Exception as error:
        log.write("error", "ends", error)
        return 1
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
    log.write("info", "ends as it was told")
    return 0


async def live(settings: Settings, configuration: Configuration, told: metrics.Metrics, log: logs.Log) -> bool:
    """Work until told to stop, or until the definitions have changed; whether it is the latter."""
    told.forget_all()
    kinds = await unless_stopped(served_kinds(configuration, log))
    if kinds is None:
        return False
    if missing := sorted(CUSTOM.keys() - kinds):
        log.write("warning", f"the cluster has no {', '.join(missing)}: waits for the custom resource definitions")
    stop = asyncio.Event()
    engine = Engine(configuration, settings, told, kinds, stop.set, log)
    frame = kopf.operator(
        registry=handlers.registry(engine, configuration, kinds),
        settings=handlers.kopf_settings(),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz" if settings.health_port else None,
        stop_flag=stop,
    )
    try:
        await frame
        await asyncio.sleep(CLOSING_SECONDS)
    except Exception as failure:
        # kopf gives up its watches for good on errors that pass: in the midst of a stream, or when a kind goes.
        if engine.error() is None:
            log.write("warning", f"cannot watch custom resources: {failure}; starts anew", failure)
            return bool(await unless_stopped(asyncio.sleep(RETRY_SECONDS, True)))
    if (error := engine.error()) is not None:
        raise error
    return engine.restart


async def unless_stopped(work: Coroutine[Any, Any, Answer]) -> Answer | None:
    """What the work comes to; none if SIGTERM ended it, which process 1 of a container takes no notice of by itself."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def served_kinds(configuration: Configuration, log: logs.Log) -> frozenset[str]:
    """Of our kinds, those that the cluster has; asks until it is answered."""
    cluster = KubernetesCluster(configuration)
    try:
        while True:
            try:
                return (await cluster.capabilities()) & CUSTOM.keys()
            except ApiError as error:
                log.write("warning", f"the API server is not available: {error}")
                await asyncio.sleep(RETRY_SECONDS)
    finally:
        await cluster.close()


if __name__ == "__main__":
    sys.exit(main())
