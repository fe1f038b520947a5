"""Adapters in shared storage: a local folder, and S3 on a loopback server."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.ledger import adapter_store
from orchestrator.workers import storage
from tests.support.sweeps import Desk, completes, make
from trainables.values.errors import ConfigError

FILES = {"adapter_model.safetensors": b"weights" * 1000, "adapter_config.json": b"{}"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on a server of this process, as a storage address."""
    from moto.server import ThreadedMotoServer

    before = {name: os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")}
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import boto3

    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="bucket")
    yield f"s3://bucket/sweeps?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["folder", "file", "s3"])
def place(request, tmp_path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return str(tmp_path / "store") if request.param == "folder" else (tmp_path / "store").as_uri()


def test_what_is_written_is_read_back_whole_and_apart(place):
    storage.write(place, "a", "1" * 64, FILES)
    storage.write(place, "a", "2" * 64, {"adapter_config.json": b"[]"})
    assert storage.read(place, "a", "1" * 64) == FILES
    assert storage.read(place, "a", "2" * 64) == {"adapter_config.json": b"[]"}


def test_storage_that_works_has_no_fault_and_keeps_no_mark(place):
    mark = storage.put_mark(place)
    assert storage.fault(place, mark) is None
    storage.remove_mark(place, mark)
    assert "not the driver's" in storage.fault(place, mark)


def test_storage_that_cannot_be_written_is_named(s3, tmp_path):
    (tmp_path / "file").write_text("")
    for where in (str(tmp_path / "file" / "below"), s3.replace("bucket", "nobodys"), "ftp://host/x", "s4://x"):
        with pytest.raises(ConfigError, match="storage: ") as error:
            storage.put_mark(where)
        assert where in str(error.value)


def test_a_place_that_another_machine_sees_differently_is_a_fault(tmp_path):
    mark = storage.put_mark(str(tmp_path / "here"))
    (tmp_path / "there").mkdir()
    assert "not the driver's" in storage.fault(str(tmp_path / "there"), mark)


def test_the_driver_keeps_a_copy_of_what_a_worker_put_into_storage(place, tmp_path):
    """The report brings no bytes; export, MLflow and verify find the adapter in the sweep's folder all the same."""
    desk = Desk(tmp_path / "sweep", make(storage=place))

    def stores(task):
        for report in completes(task):
            if report.adapter:
                storage.write(place, "t", task.key, report.adapter)
                report = replace(report, adapter=None, adapter_at=(place, "t"))
            yield report

    task = desk.do(stores)
    entry = desk.ledger.entry(task.key)
    assert entry.result.state == "completed"
    kept = tmp_path / "sweep" / "adapters" / task.key
    assert adapter_store.fault(kept, entry.adapter_sha256) is None
    assert adapter_store.read(kept.parent, task.key) == storage.read(place, "t", task.key)
