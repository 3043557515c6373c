"""Servers of the stores' APIs on this machine, and a run's commands against them."""

import contextlib
import http.server
import logging
import os
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest

from seif_jax import object_store, storage

KINDS = ("gs", "s3")


class Server(ThreadingHTTPServer):
    request_queue_size = 128


@contextlib.contextmanager
def server(kind: str) -> Iterator[dict[str, str]]:
    """Starts an empty store with the bucket `bucket`. Yields the variables by which it is found."""
    if kind == "gs":
        emulator = pytest.importorskip("gcp_storage_emulator.server")
        with pytest.MonkeyPatch.context() as patch:
            # The emulator's own answers one request at a time. Its threads may get in each other's
            # way; it then answers 500, and the client repeats the request.
            patch.setattr(http.server, "HTTPServer", Server)
            gs = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
            gs.start()
            logging.getLogger(emulator.__name__).setLevel(logging.CRITICAL)
        try:
            host, port = gs._api._httpd.server_address
            yield {"STORAGE_EMULATOR_HOST": f"http://{host}:{port}"}
        finally:
            gs.stop()
    else:
        moto = pytest.importorskip("moto.server")
        s3 = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        s3.start()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        try:
            host, port = s3.get_host_and_port()
            yield s3_bucket(f"http://{host}:{port}")
        finally:
            s3.stop()


def s3_bucket(url: str) -> dict[str, str]:
    """Creates the bucket `bucket` in a server. Returns the variables by which it is found."""
    boto3 = pytest.importorskip("boto3")
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test",
    )  # fmt: skip
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="bucket")
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    return {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", **keys}


@contextlib.contextmanager
def machine(variables: dict[str, str], cache: os.PathLike[str] | str) -> Iterator[None]:
    """This process as one of a machine whose cache is this folder: nothing is open yet."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**variables, "XDG_CACHE_HOME": str(cache)}.items():
            patch.setenv(name, value)
        patch.setattr(storage, "_copies", [])
        patch.setattr(object_store, "_systems", {})
        yield
        for copy in storage._copies:
            if copy.lock:
                copy.lock.close()
