"""The interface keeps what its description says: requests made from it, right and wrong, by schemathesis."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.service import FakeRender, serving, until
from lipstream.serve.service import Service

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


def test_the_interface_keeps_what_it_describes(make_service: Callable[..., Service], inputs: tuple[Path, Path]) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    with serving(make_service(max_queue=1000, max_client_jobs=1000), FakeRender()) as client:
        job_id = client.post("/jobs", files={"video": inputs[0].read_bytes(), "audio": inputs[1].read_bytes()}).json()[
            "id"
        ]
        until(lambda: client.get(f"/jobs/{job_id}").json()["state"] == "done")
        root = str(client.base_url).removesuffix("/api/v1/")
        described = httpx.get(f"{root}/api/v1/openapi.json").json()
        schema = schemathesis.openapi.from_dict(described)
        n_operations = 0
        for found in schema.get_all_operations():
            operation = found.ok()
            n_operations += 1

            @settings(
                max_examples=15, deadline=None, database=None, derandomize=True,
                phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                # No description of a form can say which files are media, or which addresses are public.
                excluded = [positive_data_acceptance] if case.method == "POST" else []
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    case.call_and_validate(base_url=root, timeout=30, excluded_checks=excluded)

            check()
        assert n_operations == 7
        assert client.get(f"/jobs/{job_id}/result").status_code == 200  # nobody could delete what they do not know


def test_the_description_names_every_setting_and_status(service: Service) -> None:
    with serving(service) as client:
        root = str(client.base_url).removesuffix("/api/v1/")
        described = httpx.get(f"{root}/api/v1/openapi.json").json()
    schemas = described["components"]["schemas"]
    assert {"JobModel", "AddressesModel", "Settings", "JobReply", "Refusal"} <= set(schemas)
    assert schemas["Settings"]["properties"]["preset"]["enum"] == ["exact", "balanced", "fast"]
    post = described["paths"]["/api/v1/jobs"]["post"]
    assert {"202", "400", "401", "413", "415", "422", "429", "507"} <= set(post["responses"])
    assert {"multipart/form-data", "application/json"} == set(post["requestBody"]["content"])
    for reference in set(_references(described)):
        assert reference.removeprefix("#/components/schemas/") in schemas
    assert len(json.dumps(described)) < 100_000


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [one for inner in value.values() for one in _references(inner)]
    return [one for inner in value for one in _references(inner)] if isinstance(value, list) else []
